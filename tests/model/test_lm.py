"""The model: ties, scales, caps, untying in training, counts, and recipes that cannot work."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from fairway.core.errors import ConfigError
from fairway.model.lm import DEPTH, FFN, MIXER, POSITION, LanguageModel, ModelConfig
from fairway.model.parts import active_parameters, after_step
from laws.models import VOCABULARY, built_model, model_config, opened_model, sample_tokens, technique

SLOTS = {"mixer": MIXER, "ffn": FFN, "position": POSITION, "depth": DEPTH}


def loss_of(model: LanguageModel, tokens: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
    output = model(tokens, progress=progress)
    logits = model.logits(output.hidden_BTD, progress)[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) + output.aux.loss()


@pytest.mark.parametrize("scale", ["none", "sqrt", "learned"])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_gradient_of_a_tied_table_is_the_sum_of_both_its_uses(scale: str, softcap: float | None) -> None:
    embedding, head = technique("token", scale=scale), {"softcap": softcap, "scale": 1.5}
    tied = opened_model(model_config(embedding=embedding, head=head))
    untied = opened_model(model_config(embedding=embedding, head={**head, "tied": False}))
    untied.load_state_dict({**untied.state_dict(), **tied.state_dict()})
    assert untied.head.own is not None
    with torch.no_grad():
        untied.head.own.weight.copy_(tied.embedding.output_table())
    tokens = sample_tokens()
    for model in (tied, untied):
        loss_of(model, tokens).backward()
    both = untied.embedding.weight.grad + untied.head.own.weight.grad
    assert torch.allclose(tied.embedding.weight.grad, both, rtol=0, atol=1e-12)
    unseen = [i for i in range(VOCABULARY) if i not in tokens]
    assert tied.embedding.weight.grad[unseen].any()
    assert not untied.embedding.weight.grad[unseen].any()


def test_ties_live_through_copies_saving_and_loading() -> None:
    model = opened_model(model_config())
    twin = copy.deepcopy(model).float().double()
    twin.load_state_dict(model.state_dict())
    names = [name for name, _ in twin.named_parameters()]
    assert len(names) == len(set(names))
    with torch.no_grad():
        twin.embedding.weight.mul_(2.0)
        hidden = twin(sample_tokens()).hidden_BTD
    assert torch.allclose(twin.logits(hidden), 30 * torch.tanh(hidden @ twin.embedding.weight.T / 30))


def test_untied_and_tied_heads_begin_near_the_uniform_distribution() -> None:
    for head in ({}, {"tied": False}, {"untie_at": 0.5}):
        model = opened_model(model_config(head=head), awake=False)
        assert float(loss_of(model, sample_tokens()).detach()) == pytest.approx(math.log(VOCABULARY), abs=0.1)


@pytest.mark.parametrize("progress", [0.0, 0.9])
@pytest.mark.parametrize(
    ("embedding", "head", "single"),
    [
        ("token", {"scale": 1.5}, True),
        ("token", {"tied": False}, True),
        ("token", {"untie_at": 0.5}, True),
        ("bigram_hash", {}, True),
        ("factored", {}, False),
    ],
)
def test_a_head_of_one_table_names_it(embedding: str, head: dict[str, Any], single: bool, progress: float) -> None:
    model = opened_model(model_config(embedding=technique(embedding), head=head))
    table = model.head.table(model.embedding, progress)
    assert (table is not None) == single
    if table is not None:
        hidden = model(sample_tokens()).hidden_BTD
        assert any(table.weight_VD is parameter for parameter in model.parameters())
        assert torch.equal(table(hidden), model.head.uncapped(hidden, model.embedding, progress))


def test_a_head_unties_at_its_share_of_training_and_not_before() -> None:
    model = opened_model(model_config(head={"untie_at": 0.5}))
    assert model.head.own is not None
    own, table, tokens = model.head.own.weight, model.embedding.weight, sample_tokens()
    for progress in (0.0, 0.3, 0.49, 0.5, 0.8):
        model.zero_grad(set_to_none=True)
        before = own.detach().clone()
        loss_of(model, tokens, progress).backward()
        assert (own.grad is None) == (progress < 0.5)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
        after_step(model, model(tokens, progress=progress).aux.statistics)
        assert torch.equal(own, table) == (progress < 0.5)
        assert not torch.equal(own, before)


def test_a_head_that_will_untie_begins_as_a_copy_of_any_linear_table() -> None:
    model = opened_model(model_config(embedding=technique("factored"), head={"untie_at": 0.5}), awake=False)
    assert model.head.own is not None
    assert torch.allclose(model.head.own.weight, model.embedding.output_table())


def test_progress_switches_the_head_without_changing_its_logits_at_the_moment_of_untying() -> None:
    model = opened_model(model_config(head={"untie_at": 0.5}), awake=False)
    hidden = model(sample_tokens()).hidden_BTD
    assert torch.allclose(model.logits(hidden, 0.4), model.logits(hidden, 0.6))


def test_active_parameters_leave_out_idle_experts() -> None:
    model = opened_model(model_config(ffn={"kind": "moe", "experts": 4, "top": 2}))
    total = sum(p.numel() for p in model.parameters())
    per_expert = 2 * 48 * 96
    assert total - active_parameters(model) == 2 * 2 * per_expert
    dense = opened_model(model_config())
    assert active_parameters(dense) == sum(p.numel() for p in dense.parameters())


def test_flops_count_applications_and_the_head() -> None:
    one = opened_model(model_config(depth={"kind": "plain", "layers": 1}))
    looped = opened_model(model_config(depth={"kind": "recurrent", "layers": 4, "step": "none"}))
    head = 2 * 48 * VOCABULARY
    assert looped.flops(32) - head == 4 * (one.flops(32) - head)
    assert sum(p.numel() for p in looped.parameters()) == sum(p.numel() for p in one.parameters())
    factored = opened_model(model_config(depth={"kind": "plain", "layers": 1}, embedding=technique("factored")))
    assert factored.flops(32) - one.flops(32) == 2 * 16 * 48 * 2 + 2 * 16 * VOCABULARY - head


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"width": 50}, "do not divide the width"),
    ({"mixer": {"kind": "attention", "heads": 6, "key_groups": 4}}, "share 4 key groups"),
    ({"ffn": {"kind": "moe", "experts": 2, "top": 3}}, "top 3"),
    ({"ffn": {"kind": "moe", "capacity": 0}}, "capacity"),
    ({"ffn": {"kind": "moe", "shared": 2}}, "leave none"),
    ({"ffn": {"kind": "moe", "groups": 3}}, "equal groups"),
    ({"ffn": {"kind": "moe", "routing": "expert"}}, "future leaks"),
    ({"ffn": {"kind": "moe", "routing": "expert", "allow_future": True, "bias_rate": 0.1}}, "even by itself"),
    ({"depth": {"kind": "mixture_of_depths", "capacity": 0}}, "capacity"),
    ({"depth": {"kind": "mixture_of_depths", "layers": 2, "interval": 3}}, "routes none"),
    ({"depth": {"kind": "mixture_of_depths", "route": "random", "decide": "predictor"}}, "nothing to predict"),
    ({"depth": {"kind": "shared", "layers": 5, "groups": 2}}, "multiple of 2"),
    ({"depth": {"kind": "recurrent", "layers": 4, "prelude": 2, "coda": 2}}, "positive multiple"),
    ({"depth": {"kind": "recurrent", "gains": True, "test_loops": 9}}, "sinusoid"),
    ({"depth": {"kind": "skip", "layers": 1}}, "no other to skip to"),
    ({"embedding": {"kind": "factored", "inner": 1000}}, "wider than the model"),
    ({"head": {"tied": False, "untie_at": 0.5}}, "leave one of them out"),
    ({"head": {"untie_at": 0.5}, "embedding": {"kind": "factored", "tie": "table"}}, "cannot be untied"),
    ({"norm": {"kind": "rms", "fraction": 0}}, "fraction"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_wrong_combinations_are_refused_when_the_recipe_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.read(settings)


def test_a_config_read_back_is_the_same_model() -> None:
    config = model_config(embedding=technique("bigram_hash", base=technique("value")), norm="dyt", depth="act")
    again = ModelConfig.read(config.plain())
    assert again == config
    assert again.fingerprint() == config.fingerprint()


def test_the_json_schema_of_nested_embeddings_ends() -> None:
    schema = ModelConfig.model_json_schema()
    assert "bigram_hash" in str(schema["properties"]["embedding"])


@pytest.mark.parametrize("kind", ["rope", "position_interpolation", "ntk", "dynamic_ntk", "yarn", "llama3"])
def test_a_trained_model_is_extended_without_new_parameters(kind: str) -> None:
    config = model_config(position={"kind": "rope", "base": 500.0, "fraction": 0.5})
    long = config.extended(128, kind)
    assert long.context == 128
    assert long.position.plain()["base"] == 500.0
    assert long.position.plain().get("original", 32) == 32
    model, longer = opened_model(config), opened_model(long)
    longer.load_state_dict(model.state_dict())
    tokens = sample_tokens(30)
    same = torch.allclose(model(tokens).hidden_BTD, longer(tokens).hidden_BTD, atol=1e-12)
    assert same == (kind in ("rope", "dynamic_ntk"))
    assert longer(sample_tokens(128)).hidden_BTD.isfinite().all()
    if kind != "rope":
        again = long.extended(256, "yarn").position.plain()
        assert (again["original"], again["factor"]) == (32, 8.0)


def test_positions_that_cannot_be_extended_say_so() -> None:
    with pytest.raises(ConfigError, match="learned at 32 tokens"):
        model_config(position="learned").extended(64)
    with pytest.raises(ConfigError, match="longer context"):
        model_config().extended(32)


EVERY_PART = [{name: technique(kind)} for name in SLOTS for kind in SLOTS[name].kinds()]
ATTENTIONS = [
    {"mixer": technique("attention", **settings), **more}
    for settings, more in (
        ({"window": 5}, {}),
        ({"softcap": 3.0, "exclusive": True, "key_groups": 2}, {}),
        ({"qk_norm": False}, {}),
        ({"window": 9}, {"position": technique("rope", interleaved=True)}),
        ({}, {"block": {"parallel": True}}),
        ({}, {"block": {"placement": "sandwich", "depth_scale": True}}),
        ({}, {"block": {"placement": "post"}}),
        ({"heads": 3}, {"embedding": {"kind": "value", "base": technique("bigram_hash"), "smear": True}}),
    )
]


@pytest.mark.parametrize("parts", [*EVERY_PART, *ATTENTIONS], ids=str)
def test_outputs_that_are_not_wanted_change_neither_the_others_nor_the_state(parts: dict[str, Any]) -> None:
    model = built_model(model_config(**parts)).eval()
    tokens = sample_tokens(length=19)
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[0, 11] = True
    with torch.no_grad():
        for begun in (0, 8):
            before = model(tokens[:, :begun]).state if begun else None
            for starts_BT in (None, starts[:, begun:]) if model.config.isolates_documents() else (None,):
                whole = model(tokens[:, begun:], before, starts_BT=starts_BT)
                for first in (1, 6, 18 - begun):
                    part = model(tokens[:, begun:], before, starts_BT=starts_BT, first=first)
                    assert part.hidden_BTD.shape[1] == 19 - begun - first
                    assert torch.allclose(part.hidden_BTD, whole.hidden_BTD[:, first:], rtol=0, atol=1e-9)
                    for one, other in zip(part.state, whole.state, strict=True):
                        assert torch.allclose(one, other, rtol=0, atol=1e-9)


def test_the_last_block_spends_nothing_on_outputs_that_are_not_wanted() -> None:
    model = opened_model(model_config())
    rows: list[int] = []
    for block in model.depth.blocks:
        for part in (block.mixer.query, block.mixer.key, block.ffn):
            part.register_forward_hook(lambda module, given, result: rows.append(given[0].shape[1]))  # noqa: ARG005
    model(sample_tokens(length=19), first=15)
    assert rows == [19, 19, 19, 4, 19, 4]
