"""What runners really evaluate and keep, against counts, formulas and a memory tracker."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fairway.core.seed import generator
from fairway.model.lm import ModelConfig
from fairway.model.values import Aux, Runner
from fairway.ops.attention.native import FUSED
from fairway.train.recomputation import Revolve, Segmented, Selective, distinct_bytes, measure, saved_tensors
from fairway.train.recompute.none import Config as Nothing
from fairway.train.recompute.optimal import Config as Optimal
from fairway.train.recompute.segments import Config as Segments
from fairway.train.segmentation import cheapest_segments, equal_segments, revolve_split
from fairway.train.settings import fitted
from laws.live_memory import Memory

WIDTH = 256
BATCH, TIME = 16, 16


class Chain(nn.Module):
    """Blocks `x + dropout(tanh(w x))` that count their evaluations."""

    def __init__(self, count: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(WIDTH, generator=generator(1, i)) for i in range(count))
        self.dropout = dropout
        self.evaluations: Counter[int] = Counter()

    def run(self, start: int, stop: int, x_BTD: Tensor) -> tuple[Tensor, list[Aux]]:
        auxes = []
        for index in range(start, stop):
            self.evaluations[index] += 1
            x_BTD = x_BTD + functional.dropout(torch.tanh(self.weights[index] * x_BTD), self.dropout)
            auxes.append(Aux({f"{index}": x_BTD.mean() * 1e-3}))
        return x_BTD, auxes

    def gradients(self, runner: Runner | None) -> list[Tensor]:
        torch.manual_seed(5)
        x_BTD = torch.randn(BATCH, TIME, WIDTH, generator=generator(2)).requires_grad_()
        count = len(self.weights)
        y_BTD, auxes = self.run(0, count, x_BTD) if runner is None else runner(count, self.run, x_BTD)
        assert [name for aux in auxes for name in aux.losses] == [str(index) for index in range(count)]
        loss = y_BTD.square().mean() + sum(aux.loss() for aux in auxes)
        return list(torch.autograd.grad(loss, [x_BTD, *self.weights]))


def runners(chain: Chain) -> dict[str, Runner]:
    def segmented(size: int, keep: bool) -> Segmented:
        return Segmented(chain, lambda count, costs: equal_segments(count, size, keep))  # noqa: ARG005

    return {
        "every": segmented(1, False),
        "threes": segmented(3, True),
        "optimal": Segmented(chain, lambda count, costs: cheapest_segments(costs(), None)),  # noqa: ARG005
        "revolve": Revolve(lambda count: 3, len(chain.weights)),  # noqa: ARG005
        "selective": Selective(),
    }


@pytest.mark.parametrize("name", ["every", "threes", "optimal", "revolve", "selective"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_bit_equal_with_dropout_on(name: str, dropout: float) -> None:
    chain = Chain(10, dropout)
    plain = chain.gradients(None)
    for ours, theirs in zip(chain.gradients(runners(chain)[name]), plain, strict=True):
        assert torch.equal(ours, theirs)


def test_a_runner_that_forgets_random_numbers_is_caught() -> None:
    def careless(count: int, run: Any, x_BTD: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(
            lambda x: run(0, count, x), x_BTD, use_reentrant=False, preserve_rng_state=False
        )

    chain = Chain(4, dropout=0.3)
    plain = chain.gradients(None)
    assert not all(map(torch.equal, chain.gradients(careless), plain))


@pytest.mark.parametrize(("size", "keep"), [(1, False), (3, False), (3, True), (4, True)])
def test_segments_evaluate_each_recomputed_block_twice(size: int, keep: bool) -> None:
    chain = Chain(10)
    chain.gradients(Segmented(chain, lambda count, costs: equal_segments(count, size, keep)))  # noqa: ARG005
    for segment in equal_segments(10, size, keep):
        for index in range(segment.start, segment.stop):
            assert chain.evaluations[index] == 1 + segment.recompute


@pytest.mark.parametrize("count", [1, 2, 5, 12, 20])
@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_revolve_evaluates_as_often_as_its_recurrence_says(count: int, slots: int) -> None:
    chain = Chain(count)
    chain.gradients(Revolve(lambda count: slots, count))  # noqa: ARG005
    assert sum(chain.evaluations.values()) == revolve_split(count, slots)[0] + count


def peak_of(chain: Chain, runner: Runner | None) -> float:
    """Peak memory of a training step in units of one activation."""
    with Memory() as memory:
        chain.gradients(runner)
    return memory.peak / (BATCH * TIME * WIDTH * 4)


def test_memory_falls_from_all_blocks_to_a_few_stored_inputs() -> None:
    chain = Chain(36)
    everything = peak_of(chain, None)
    sixes = peak_of(chain, Segmented(chain, lambda count, costs: equal_segments(count, 6, False)))  # noqa: ARG005
    few = peak_of(chain, Revolve(lambda count: 3, 36))  # noqa: ARG005
    assert everything > 2 * 36
    assert sixes < 6 + 2 * 6 + 6
    assert few < 3 + 8


def test_each_slot_of_revolve_is_one_stored_input() -> None:
    peaks = [peak_of(Chain(24), Revolve(partial(min, slots), 24)) for slots in (2, 4, 8)]
    assert peaks[1] - peaks[0] == pytest.approx(2, abs=0.3)
    assert peaks[2] - peaks[1] == pytest.approx(4, abs=0.3)


def test_selective_recomputation_multiplies_by_weights_only_once() -> None:
    model = SMALL.build(64, seed=0).train()
    tokens_BT = torch.randint(0, 64, (8, 16), generator=generator(3))

    def products(runner: Runner | None) -> int:
        model.runner = runner
        with Products() as counter:
            model(tokens_BT).hidden_BTD.sum().backward()
        return counter.count

    again = Segmented(model, lambda count, costs: equal_segments(count, 1, False))  # noqa: ARG005
    assert products(Selective()) == products(None)
    assert products(again) > products(None) + 6


PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, FUSED)


class Products(TorchDispatchMode):
    """Counts products with weights and fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in PRODUCTS
        return func(*args, **(kwargs or {}))


SMALL = ModelConfig.read({"width": 32, "depth": 6, "context": 16, "mixer": {"kind": "attention", "heads": 2}})


def peak_of_model(config: Any) -> int:
    model = SMALL.build(64, seed=0).train()
    config.apply(model)
    tokens_BT = torch.randint(0, 64, (8, 16), generator=generator(3))
    model(tokens_BT).hidden_BTD.sum().backward()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Memory() as memory:
        model(tokens_BT).hidden_BTD.sum().backward()
    return memory.peak


def test_predicted_savings_are_real_on_a_language_model() -> None:
    model = SMALL.build(64, seed=0)
    costs = measure(model, torch.randint(0, 64, (8, 16), generator=generator(3)))
    assert len(costs.kept) == 6
    assert set(costs.inputs) == {8 * 16 * 32 * 4}
    assert model.runner is None
    plain_config, every_config = Nothing(), Segments(kind="every", keep_last=False)
    predicted = plain_config.predict(costs).bytes - every_config.predict(costs).bytes
    saved = peak_of_model(plain_config) - peak_of_model(every_config)
    assert saved == pytest.approx(predicted, rel=0.15)


def test_a_memory_budget_is_kept_and_computes_no_more_than_needed() -> None:
    costs = measure(SMALL.build(64, seed=0), torch.randint(0, 64, (8, 16), generator=generator(3)))
    whole, least = Nothing().predict(costs).bytes, Optimal().predict(costs).bytes
    budget = (whole + least) // 2
    found = Optimal(memory=budget).predict(costs)
    assert least < found.bytes <= budget < whole
    assert 0 < found.work < Optimal().predict(costs).work + 6
    assert peak_of_model(Optimal(memory=budget)) < peak_of_model(Nothing()) - 0.8 * (whole - found.bytes)


def test_a_budget_of_memory_chooses_the_optimal_kind_unless_another_was_named() -> None:
    assert fitted(Nothing(), None) == Nothing()
    assert fitted(Nothing(), 1000) == Optimal(kind="optimal", memory=1000)
    assert fitted(Optimal(kind="optimal"), 1000) == Optimal(kind="optimal", memory=1000)
    named = Segments(kind="every")
    own = Optimal(kind="optimal", memory=5)
    assert fitted(named, 1000) is named
    assert fitted(own, 1000) is own


class Published(nn.Module):
    """The block whose saved bytes are known: separate q, k, v, unfused attention, three dropouts, GELU of 4 h."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BSH: Tensor) -> Tensor:
        batch, time, width = x_BSH.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, time, self.heads, -1).transpose(1, 2).reshape(batch * self.heads, time, -1)

        normed = self.first(x_BSH)
        q, k, v = split(self.q(normed)), split(self.k(normed)), split(self.v(normed))
        scale = (width // self.heads) ** -0.5
        p = functional.dropout(torch.softmax(torch.bmm(q, k.mT) * scale, -1), self.dropout)
        y = torch.bmm(p, v).view(batch, self.heads, time, -1).transpose(1, 2).reshape(batch, time, width)
        x_BSH = x_BSH + functional.dropout(self.out(y), self.dropout)
        hidden = functional.gelu(self.up(self.second(x_BSH)))
        return x_BSH + functional.dropout(self.down(hidden), self.dropout)


@pytest.mark.parametrize(("dropout", "linear", "square"), [(0.1, 36, 6), (0.0, 32, 2)])
@pytest.mark.parametrize(("s", "b", "h", "a"), [(16, 2, 32, 4), (24, 3, 16, 2)])
def test_saved_bytes_equal_the_formula(
    dropout: float, linear: int, square: int, s: int, b: int, h: int, a: int
) -> None:
    block = Published(h, a, dropout).bfloat16()
    x_BSH = torch.randn(b, s, h, dtype=torch.bfloat16, requires_grad=True)
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    with saved_tensors() as saved:
        block(x_BSH)
    assert distinct_bytes(saved, weights) == s * b * h * linear + square * a * s * s * b + 8 * s * b
