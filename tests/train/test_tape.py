"""The tape keeps what is dear, runs what is cheap once more, and changes no bit of any gradient."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fairway.core.config import Slot
from fairway.core.seed import generator
from fairway.model.lm import FFN, MIXER, NORM, ModelConfig
from fairway.train.recomputation import Selective, measure
from fairway.train.tape import Tape, held, unpack

BASE: dict[str, Any] = {"width": 32, "depth": 2, "context": 32, "mixer": {"kind": "attention", "heads": 2}}
WITH_HEADS = ("attention", "delta", "gla", "mamba2", "retnet", "ttt_linear", "ttt_mlp", "linear_attention")


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def taped(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    tape = Tape(x)
    with tape, saved_tensors_hooks(tape.pack, unpack):
        return function(x)


def gradients(function: Callable[[Tensor], Tensor], selective: bool) -> Tensor:
    torch.manual_seed(3)
    x = torch.randn(64, 64, generator=generator(1)).requires_grad_()
    y = taped(function, x) if selective else function(x)
    return torch.autograd.grad(y.square().sum(), x)[0]


def chain_in_time(x: Tensor, steps: int) -> Tensor:
    state = x.tanh()
    for _ in range(steps):
        state = state * 0.9 + x.sin()
    return state.sin()


WEIGHT = torch.randn(64, 64, generator=generator(2))
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "a chain of point functions": lambda x: ((x @ WEIGHT).tanh().exp() * x).sigmoid(),
    "dropout": lambda x: functional.dropout((x @ WEIGHT).exp(), 0.3) * x.tanh(),
    "a slice of a result": lambda x: (x @ WEIGHT).tanh()[8:40, ::2].exp().mT @ WEIGHT[:32],
    "pieces of a result": lambda x: torch.cat([part.exp() for part in (x @ WEIGHT).tanh().chunk(4, -1)], 0).sin(),
    "scores of attention": lambda x: torch.bmm(
        torch.softmax(torch.bmm(x[None, :, :8].tanh(), x[None, :, 8:16].mT.exp()), -1), x[None]
    ),
    "a change in place": lambda x: ((y := x @ WEIGHT) * 2.0).add_(y.mul(3.0).exp()).sin(),
    "a buffer filled step by step": lambda x: torch.zeros(64, 64).index_copy(0, torch.arange(64), x.exp()).sin(),
    "a long chain in time": lambda x: chain_in_time(x, 400),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_bit_equal_to_those_of_autograd(name: str) -> None:
    assert torch.equal(gradients(FUNCTIONS[name], True), gradients(FUNCTIONS[name], False))


def test_products_run_once_and_point_functions_twice() -> None:
    def counts(selective: bool) -> Counter[str]:
        with Operations() as operations:
            gradients(lambda x: (x @ WEIGHT).sin().exp() @ WEIGHT, selective)
        return operations.counts

    plain, again = counts(False), counts(True)
    assert again["aten::mm"] == plain["aten::mm"] == 4
    assert again["aten::exp"] == 2 * plain["aten::exp"] == 2
    assert again["aten::sin"] == plain["aten::sin"] + 1


def test_what_several_gradients_need_is_computed_again_once() -> None:
    with Operations() as operations:
        gradients(lambda x: ((y := x.sin().exp()) @ WEIGHT) * y + y.tanh(), True)
    assert operations.counts["aten::exp"] == 2


def test_a_graph_differentiates_twice() -> None:
    x = torch.randn(64, 64, generator=generator(1)).requires_grad_()
    y = taped(lambda x: (x @ WEIGHT).exp().sin(), x).sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y, x)[0])


def test_a_tensor_changed_after_it_was_needed_is_noticed() -> None:
    x = torch.randn(64, 64, generator=generator(1)).requires_grad_()
    kept = torch.ones(64, 64)
    y = taped(lambda x: (x * kept).exp().sin(), x)
    kept.add_(1.0)
    with pytest.raises(AssertionError, match="changed in place"):
        y.sum().backward()


def test_what_is_held_are_the_products_alone() -> None:
    x = torch.randn(64, 64, generator=generator(1)).requires_grad_()
    tape = Tape(x)
    with tape:
        product = x @ WEIGHT
        last = product.tanh().exp().mul(2.0)
    assert {id(leaf) for leaf in held(tape.pack(last))} == {id(product)}
    assert next(iter(held(tape.pack(product)))) is product


def kinds(slot: Slot, name: str) -> list[dict[str, Any]]:
    return [{name: {"kind": kind, **({"heads": 2} if kind in WITH_HEADS else {})}} for kind in slot.kinds()]


EVERY = [*kinds(MIXER, "mixer"), *kinds(FFN, "ffn"), *kinds(NORM, "norm")]


@pytest.mark.parametrize("change", EVERY, ids=lambda change: "-".join(map(str, next(iter(change.values())).values())))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_part_keeps_its_gradients_and_nothing_dear_runs_twice(change: dict[str, Any], dtype: torch.dtype) -> None:
    def run(runner: Selective | None) -> tuple[list[Tensor], Counter[str]]:
        model = ModelConfig.read(BASE | change).build(64, seed=0).train()
        for index, parameter in enumerate(model.parameters()):
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator(4, index))
        model.runner = runner
        tokens_BT = torch.randint(0, 64, (4, 32), generator=generator(3))
        with Operations() as operations:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                output = model(tokens_BT)
            (output.hidden_BTD.square().mean() + output.aux.loss()).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], operations.counts

    (plain, before), (found, after) = run(None), run(Selective())
    assert len(plain) == len(found) > 4
    assert all(map(torch.equal, found, plain))
    assert after["aten::mm"] == before["aten::mm"]
    assert sum(after.values()) > sum(before.values())


@pytest.mark.parametrize("change", EVERY, ids=lambda change: "-".join(map(str, next(iter(change.values())).values())))
def test_every_part_needs_less_memory(change: dict[str, Any]) -> None:
    model = ModelConfig.read(BASE | change).build(64, seed=0)
    costs = measure(model, torch.randint(0, 64, (4, 32), generator=generator(3)))
    assert all(dear < kept for dear, kept in zip(costs.dear, costs.kept, strict=True))
