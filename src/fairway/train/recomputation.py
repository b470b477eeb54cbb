"""Runners that keep less of a stack of blocks than autograd would, by torch's non-reentrant checkpoints and hooks.

Each is a `Runner` of `model.values`: it is given `run(start, stop, x)` and decides which stretches run under a
checkpoint. Gradients are those of the plain loop, bit for bit on the same kernels: random numbers and autocast are
restored before anything runs again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fairway.model.lm import LanguageModel
from fairway.model.values import Aux, Runner, Stretch
from fairway.ops.attention.native import FUSED
from fairway.ops.experts.native import MIXED
from fairway.train.segmentation import Costs, Segment, revolve_split

Result = tuple[Tensor, list[Aux]]
Planner = Callable[[int, Callable[[], Costs]], list[Segment]]

PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default, FUSED, MIXED})
"""What `selective` keeps: the outputs of products with weights, and of fused attention, which holds no scores."""


def install(model: nn.Module, runner: Runner) -> None:
    """Makes a language model run its blocks through `runner` in training."""
    assert isinstance(model, LanguageModel)
    model.runner = runner


def layers_of(model: nn.Module) -> int:
    """Applications of blocks in a language model."""
    assert isinstance(model, LanguageModel)
    return model.config.depth.layers


def measure(model: LanguageModel, tokens_BT: Tensor) -> Costs:
    """The costs of a model's blocks on a batch, by one forward pass that keeps nothing; work in blocks."""
    probe = _Probe(_storages(model))
    before, training = model.runner, model.training
    model.runner = probe
    try:
        with _randomness_kept(tokens_BT):
            model.train()(tokens_BT)
    finally:
        model.runner = before
        model.train(training)
    return probe.costs()


class Segmented:
    """Runs planned segments; a plan is made once for each shape of input."""

    def __init__(self, model: nn.Module, planner: Planner) -> None:
        self.weights = partial(_storages, model)
        self.planner = planner
        self.plans: dict[tuple[int, ...], list[Segment]] = {}

    def __call__(self, count: int, run: Stretch, x_BTD: Tensor) -> Result:
        key = (count, *x_BTD.shape)
        if key not in self.plans:
            self.plans[key] = self.planner(count, lambda: self._measure(count, run, x_BTD))
        auxes: list[Aux] = []
        for segment in self.plans[key]:
            if segment.recompute:
                x_BTD, more = again(run, segment.start, segment.stop, x_BTD)
            else:
                x_BTD, more = run(segment.start, segment.stop, x_BTD)
            auxes += more
        return x_BTD, auxes

    def _measure(self, count: int, run: Stretch, x_BTD: Tensor) -> Costs:
        probe = _Probe(self.weights())
        with _randomness_kept(x_BTD):
            probe(count, run, x_BTD)
        return probe.costs()


class Revolve:
    """Recursive recomputation: the inputs of at most `slots` blocks are stored at any time.

    Stretches shorter than all `layers` keep their input only, and are reversed with `slots` of their own.
    """

    def __init__(self, slots: Callable[[int], int], layers: int) -> None:
        self.slots = slots
        self.layers = layers

    def __call__(self, count: int, run: Stretch, x_BTD: Tensor) -> Result:
        chain = partial(self._reversible, run, 0, count, self.slots(count))
        return chain(x_BTD) if count == self.layers else _checkpoint(chain, x_BTD)

    def _reversible(self, run: Stretch, start: int, stop: int, slots: int, x_BTD: Tensor) -> Result:
        if stop - start == 1:
            return run(start, stop, x_BTD)
        middle = start + revolve_split(stop - start, slots)[1]
        first = partial(self._reversible, run, start, middle, slots)
        x_BTD, before = _checkpoint(first, x_BTD)
        x_BTD, after = self._reversible(run, middle, stop, max(1, slots - 1), x_BTD)
        return x_BTD, before + after


class Selective:
    """Keeps the outputs of products with weights and computes everything between them again, attention above all."""

    def __call__(self, count: int, run: Stretch, x_BTD: Tensor) -> Result:
        auxes: list[Aux] = []
        for index in range(count):
            x_BTD, more = _checkpoint(partial(run, index, index + 1), x_BTD, context_fn=_kept_products)
            auxes += more
        return x_BTD, auxes


class Offload:
    """Keeps activations in the host's memory; weights stay where they are."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = partial(_storages, model)

    def __call__(self, count: int, run: Stretch, x_BTD: Tensor) -> Result:
        weights, pin = self.weights(), x_BTD.device.type == "cuda"

        def pack(tensor: Tensor) -> tuple[torch.device, Tensor] | Tensor:
            if tensor.untyped_storage().data_ptr() in weights:
                return tensor
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pin)
            return tensor.device, host.copy_(tensor, non_blocking=pin)

        def unpack(packed: tuple[torch.device, Tensor] | Tensor) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            device, host = packed
            return host.to(device, non_blocking=pin)

        with saved_tensors_hooks(pack, unpack):
            return run(0, count, x_BTD)


class _Probe:
    """Runs every block by itself, counts what it would keep, and keeps nothing."""

    def __init__(self, weights: set[int]) -> None:
        self.weights = weights
        self.inputs: list[int] = []
        self.kept: list[int] = []
        self.products: list[int] = []

    def __call__(self, count: int, run: Stretch, x_BTD: Tensor) -> Result:
        auxes: list[Aux] = []
        for index in range(count):
            start_BTD = x_BTD.detach().requires_grad_()
            ignored = self.weights | {start_BTD.untyped_storage().data_ptr()}
            with saved_bytes(ignored) as sizes, _Products() as products:
                x_BTD, more = run(index, index + 1, start_BTD)
            self.products.append(products.bytes)
            self.inputs.append(start_BTD.untyped_storage().nbytes())
            self.kept.append(sum(sizes.values()))
            auxes += more
        return x_BTD.detach(), auxes

    def costs(self) -> Costs:
        """What was counted."""
        ones = (1.0,) * len(self.kept)
        return Costs(tuple(self.inputs), tuple(self.kept), tuple(self.products), ones)


class _Products(TorchDispatchMode):
    """Adds up the bytes of the outputs of products with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.bytes += sum(tensor.nbytes for tensor in _tensors(result))
        return result


@contextmanager
def saved_bytes(ignored: set[int]) -> Iterator[dict[int, int]]:
    """Counts what autograd saves in the block, by storage, each once; nothing is really saved.

    Storages whose address is in `ignored` do not count. A graph made here cannot be differentiated.
    """
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored and storage.data_ptr() not in sizes:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())

    def unpack(packed: None) -> Tensor:  # noqa: ARG001
        raise AssertionError("a probe's graph is not differentiated")

    with saved_tensors_hooks(pack, unpack):
        yield sizes


def again(run: Stretch, start: int, stop: int, x_BTD: Tensor) -> Result:
    """Runs blocks now, keeps their input, and runs them again when their gradients are needed."""
    return _checkpoint(partial(run, start, stop), x_BTD)


def _checkpoint(function: Callable[[Tensor], Result], x_BTD: Tensor, **settings: Any) -> Result:
    return checkpoint(function, x_BTD, use_reentrant=False, preserve_rng_state=True, **settings)


def _kept_products() -> tuple["_Keep", "_Replay"]:
    """Contexts of a first run and of its repetition.

    torch's own selective contexts want both to do the same operations, which autocast's memory of casts forbids
    where blocks share weights.
    """
    products: list[Tensor | tuple[Tensor, ...]] = []
    return _Keep(products), _Replay(products)


class _Keep(TorchDispatchMode):
    """Stores the outputs of `PRODUCTS`, in order."""

    def __init__(self, products: list[Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.products = products

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.products.append(_detached(result))
        return result


class _Replay(TorchDispatchMode):
    """Returns the stored outputs instead of computing those products again."""

    def __init__(self, products: list[Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.products = products
        self.index = 0

    def __enter__(self) -> "_Replay":
        self.index = 0
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        self.index += 1
        return _detached(self.products[self.index - 1])


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def _detached(result: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return result.detach() if isinstance(result, Tensor) else tuple(tensor.detach() for tensor in result)


def _randomness_kept(like: Tensor) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[like.device] if like.device.type == "cuda" else [])


def _storages(model: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
