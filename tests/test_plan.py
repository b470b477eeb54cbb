import math

import pytest

from fairway.core.errors import BudgetError, ConfigError
from fairway.core.log import Event, silent
from fairway.plan import EMBEDDING_SHARE, Plan, estimate, fit_to_budget, vocabulary_of
from fairway.run import Recipe


def recipe(**budget) -> Recipe:
    return Recipe.read({"device": "cpu", "model": {"mixer": {"kind": "attention", "heads": 4}}, "budget": budget})


def parameters(of: Recipe) -> int:
    return sum(parameter.numel() for parameter in of.model.skeleton(vocabulary_of(of)).parameters())


@pytest.mark.parametrize("size", [100_000, 500_000, 1_000_000, 16_000_000])
def test_with_time_enough_the_parameters_fill_the_bytes_at_three_and_a_half_bits(size):
    sized = fit_to_budget(recipe(bytes=size, seconds=1e7))
    assert parameters(sized) == pytest.approx(8 * size / 3.6, rel=0.15)
    assert parameters(sized) < 8 * size / 3.3


def test_little_time_makes_a_smaller_model():
    counts = [parameters(fit_to_budget(recipe(bytes=4_000_000, seconds=seconds))) for seconds in (20, 200, 2000)]
    assert counts[0] < counts[1] < counts[2]
    assert counts[1] / counts[0] == pytest.approx(math.sqrt(10), rel=0.25)


@pytest.mark.parametrize("size", [60_000, 500_000, 4_000_000])
def test_sizes_are_such_as_a_person_would_pick(size):
    sized = fit_to_budget(recipe(bytes=size, seconds=1e7))
    vocabulary, width = vocabulary_of(sized), sized.model.width
    assert width % (4 * 8) == 0
    assert 8 <= width / sized.model.depth.layers <= 128
    assert vocabulary == 512 or vocabulary * width <= 1.35 * EMBEDDING_SHARE * parameters(sized)


def test_what_the_user_set_stays():
    start = Recipe.read(
        {"model": {"width": 120, "mixer": {"kind": "attention", "heads": 5}}, "budget": {"bytes": 300_000}}
    )
    sized = fit_to_budget(start, fixed=["model.width", "data.tokenizer.kind", "train.batch"])
    assert sized.model.width == 120
    assert sized.model.depth.layers > 1
    fixed = ["model.depth", "data.tokenizer"]
    deep = fit_to_budget(Recipe.read({"model": {"depth": 9}, "budget": {"bytes": 300_000}}), fixed=fixed)
    assert deep.model.depth.layers == 9
    assert vocabulary_of(deep) == 1024


def test_the_choice_is_the_same_every_time_and_changes_sizes_only():
    start = recipe(bytes=700_000, seconds=90)
    first, again = fit_to_budget(start), fit_to_budget(start)
    assert first == again
    assert first.train == start.train
    assert first.budget == start.budget
    assert first.data.source == start.data.source


def test_the_vocabulary_of_a_tokenizer_without_settings_is_its_own():
    assert vocabulary_of(Recipe.read({"data": {"tokenizer": "byte"}})) == 257


def test_a_tokenizer_of_unknown_size_cannot_be_planned(monkeypatch):
    start = Recipe.read({"data": {"tokenizer": "byte"}})
    monkeypatch.delattr(start.data.tokenizer.made, "vocabulary")
    with pytest.raises(ConfigError, match=r'"byte" tokenizer is known only once the data is prepared'):
        vocabulary_of(start)


def small(**budget) -> Recipe:
    model = {"width": 32, "context": 32, "depth": 2, "mixer": {"kind": "attention", "heads": 4}}
    train = {"batch": 4, "precision": "fp32"}
    data = {"tokenizer": "byte"}
    return Recipe.read({"device": "cpu", "data": data, "model": model, "train": train, "budget": budget})


def test_the_estimate_counts_what_the_model_has():
    events: list[Event] = []
    plan = estimate(small(bytes=20_000, steps=100), events.append)
    assert plan.total_parameters == parameters(small())
    assert plan.parameters["embedding"] == 257 * 32
    assert plan.exports["float32"] == 4 * plan.total_parameters
    assert plan.flops_per_token == pytest.approx(6 * plan.total_parameters, rel=0.15)
    assert (plan.steps, plan.tokens) == (100, 100 * 4 * 32)
    assert plan.step_seconds > 0
    assert plan.tokens_per_second == pytest.approx(4 * 32 / plan.step_seconds)
    assert 0 < plan.mfu < 1
    assert events[-1].fraction == 1.0


def test_the_backward_pass_keeps_more_when_the_batch_is_larger():
    """Each token has at least 2 layers of hidden vectors of 32 and 128 in fp32; fused operations serve both batches."""

    def kept(batch: int) -> Plan:
        recipe = small(steps=10)
        return estimate(Recipe.read({**recipe.plain(), "train": {**recipe.plain()["train"], "batch": batch}}), silent)

    plan, larger = kept(16), kept(64)
    assert plan.saved_activation_bytes > 512 * 2 * (32 + 128) * 4
    assert larger.saved_activation_bytes / plan.saved_activation_bytes == pytest.approx(4, rel=0.05)
    assert plan.state_bytes >= 3 * 4 * plan.total_parameters


@pytest.mark.parametrize(
    ("size", "seconds", "binding"),
    [(9_000, 5, "both"), (9_000, 1e6, "bytes"), (400_000, 5, "time"), (400_000, 1e6, "neither")],
)
def test_the_binding_budget_is_named(size, seconds, binding, monkeypatch):
    import fairway.plan

    trial = fairway.plan._Trial(1.0, 1.0, 1, 1, 1, "none", fairway.plan.Prediction(1, 0.0))
    monkeypatch.setattr(fairway.plan, "_preflight", lambda *_: trial)
    plan = estimate(small(bytes=size, seconds=seconds), silent)
    assert plan.binding == binding
    assert plan.artifact_bytes <= size
    assert plan.steps == pytest.approx(seconds, rel=0.01)


def test_a_cap_below_the_coarsest_step_is_refused():
    with pytest.raises(BudgetError, match="1 kB"):
        estimate(small(bytes=1000), silent)


def test_parameters_of_experts_not_chosen_are_told_apart():
    experts = {"kind": "moe", "experts": 4, "top": 1, "ratio": 1.0}
    sized = Recipe.read({**small(bytes=400_000).plain(), "budget": {"steps": 4}})
    routed = Recipe.read({**sized.plain(), "model": {**sized.model.plain(), "ffn": experts}})
    plan, dense = estimate(routed, silent), estimate(sized, silent)
    width, layers = routed.model.width, routed.model.depth.layers
    assert plan.total_parameters - plan.active_parameters == 3 * layers * 2 * width * width
    assert dense.active_parameters == dense.total_parameters
