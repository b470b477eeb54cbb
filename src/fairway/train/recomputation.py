"""Runners that keep less of a stack of blocks than autograd would, by torch's non-reentrant checkpoints and hooks.

Most are a `Runner` of `model.values`: they are given `run(start, stop, x)` and decide which stretches run under a
checkpoint. `Pieces` is a `BlockRunner` and cuts along time. Gradients are those of the plain loop, bit for bit on the
same kernels: random numbers and autocast are restored before anything runs again.
Shape key: B batch, T time, D width.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from fairway.model.lm import LanguageModel
from fairway.model.parts import NO_AUX, Part, State, Stateful
from fairway.model.values import Aux, Context, Runner, Stretch
from fairway.train.segmentation import Costs, Segment, revolve_split
from fairway.train.tape import Tape, held, unpack

Result = tuple[Tensor, list[Aux]]
Planner = Callable[[int, Callable[[], Costs]], list[Segment]]


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
    before, training = (model.runner, model.block_runner), model.training
    model.runner, model.block_runner = probe, probe.block
    try:
        with _randomness_kept(tokens_BT):
            model.train()(tokens_BT)
    finally:
        model.runner, model.block_runner = before
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
    """Keeps what is dear to compute and computes what is cheap between it again: see `tape`."""

    def __call__(self, count: int, run: Stretch, x_BTD: Tensor) -> Result:
        auxes: list[Aux] = []
        for index in range(count):
            tape = Tape(x_BTD)
            with tape, saved_tensors_hooks(tape.pack, unpack):
                x_BTD, more = run(index, index + 1, x_BTD)
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


class Pieces:
    """Runs a block on pieces of the sequence; each keeps its input and the state before it, and is computed again.

    The gradients by a weight are summed over the pieces, so they are those of the whole but for the order of sums.
    A block that `may_be_cut` forbids to cut is computed again as a whole.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(
        self, block: Callable[..., tuple[Tensor, State, Aux]], x_BTD: Tensor, state: State | None, context: Context
    ) -> tuple[Tensor, State, Aux]:
        assert isinstance(block, Stateful)
        if not may_be_cut(block, self.length, x_BTD.shape[1]):
            return _checkpoint(block, x_BTD, state, context)
        y_BTD, state = in_pieces(block, x_BTD, state, context, self.length)
        return y_BTD, state, Aux()


def in_pieces(
    part: Stateful, x_BTD: Tensor, state: State | None, context: Context, length: int
) -> tuple[Tensor, State]:
    """Outputs and the last state of a mixer or block whose pieces of `length` tokens are computed again one by one.

    Where states outweigh the inputs of their pieces, stretches of pieces are computed again first, to find theirs.
    """
    pieces = -(-x_BTD.shape[1] // length)
    together = pieces_together(pieces, x_BTD.shape[0] * part.state_bytes(length), x_BTD[:, :length].nbytes)
    if together == pieces:
        return _one_by_one(part, length, context, x_BTD, *(state or ()))
    stretches = x_BTD.split(together * length, 1)
    outputs = []
    for stretch_BTD, here in zip(stretches, context.pieces(together * length, len(stretches)), strict=True):
        y_BTD, state = _checkpoint(partial(_one_by_one, part, length, here), stretch_BTD, *(state or ()))
        outputs.append(y_BTD)
    assert state is not None
    return torch.cat(outputs, 1), state


def pieces_together(pieces: int, state: int, inputs: int) -> int:
    """Pieces in a stretch, given the bytes of a state and of a piece's inputs: all where states are small, else about
    the square root, so that the states between stretches and those inside one are fewest together."""
    return pieces if 2 * state <= inputs else math.isqrt(pieces - 1) + 1


def _one_by_one(part: Any, length: int, context: Context, x_BTD: Tensor, *state: Tensor) -> tuple[Tensor, State]:
    parts = x_BTD.split(length, 1)
    outputs = []
    for piece_BTD, here in zip(parts, context.pieces(length, len(parts)), strict=True):
        # tensors are handed over one by one: those inside a tuple a checkpoint around this one would keep
        y_BTD, state, *aux = _checkpoint(partial(_piece, part, here), piece_BTD, *state)
        assert all(values == NO_AUX for values in aux), f"{part} must say that it needs whole sequences"
        outputs.append(y_BTD)
    return torch.cat(outputs, 1), state


def _piece(part: Any, context: Context, x_BTD: Tensor, *state: Tensor) -> Any:
    return part(x_BTD, state or None, context)


def may_be_cut(block: Stateful, length: int, tokens: int) -> bool:
    """Whether a sequence of `tokens` gains from pieces of `length`: it has several, and the state they carry does not
    grow, as attention's does; and no part of the block must see all tokens together."""
    whole = any(isinstance(module, Part) and module.needs_whole_sequences() for module in block.modules())
    return length < tokens and not whole and block.state_bytes(length) == block.state_bytes(tokens)


class _Probe:
    """Runs every block by itself, counts what it would keep, and keeps nothing."""

    def __init__(self, weights: set[int]) -> None:
        self.weights = weights
        self.inputs: list[int] = []
        self.kept: list[int] = []
        self.dear: list[int] = []
        self.states: list[int | None] = []
        self.tokens = 1

    def __call__(self, count: int, run: Stretch, x_BTD: Tensor) -> Result:
        auxes: list[Aux] = []
        for index in range(count):
            start_BTD = x_BTD.detach().requires_grad_()
            ignored = self.weights | {start_BTD.untyped_storage().data_ptr()}
            tape = Tape(start_BTD)
            with tape, saved_tensors() as saved:
                x_BTD, more = run(index, index + 1, start_BTD)
            self.kept.append(distinct_bytes(saved, ignored))
            dear = [leaf for tensor in saved for leaf in held(tape.pack(tensor))]
            self.dear.append(distinct_bytes(dear, ignored))
            self.inputs.append(start_BTD.untyped_storage().nbytes())
            auxes += more
        return x_BTD.detach(), auxes

    def block(
        self, block: Callable[..., tuple[Tensor, State, Aux]], x_BTD: Tensor, state: State | None, context: Context
    ) -> tuple[Tensor, State, Aux]:
        """Notes the state of a block that may be cut along time, as its `BlockRunner`."""
        assert isinstance(block, Stateful)
        batch, self.tokens = x_BTD.shape[:2]
        cut = may_be_cut(block, self.tokens - 1, self.tokens)
        self.states.append(batch * block.state_bytes(self.tokens) if cut else None)
        return block(x_BTD, state, context)

    def costs(self) -> Costs:
        """What was counted."""
        ones = (1.0,) * len(self.kept)
        states = tuple(self.states) or (None,) * len(self.kept)
        return Costs(tuple(self.inputs), tuple(self.kept), tuple(self.dear), ones, states, self.tokens)


@contextmanager
def saved_tensors() -> Iterator[list[Tensor]]:
    """Collects what autograd saves in the block. A graph made here cannot be differentiated."""
    saved: list[Tensor] = []

    def unpack(packed: None) -> Tensor:  # noqa: ARG001
        raise AssertionError("a probe's graph is not differentiated")

    with saved_tensors_hooks(lambda tensor: saved.append(tensor.detach()), unpack):
        yield saved


def distinct_bytes(tensors: Iterable[Tensor], ignored: set[int]) -> int:
    """Bytes of the tensors' storages, each counted once, without those whose address is in `ignored`."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({one.data_ptr(): one.nbytes() for one in storages if one.data_ptr() not in ignored}.values())


def again(run: Stretch, start: int, stop: int, x_BTD: Tensor) -> Result:
    """Runs blocks now, keeps their input, and runs them again when their gradients are needed."""
    return _checkpoint(partial(run, start, stop), x_BTD)


def _checkpoint(function: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=True, **settings)


def _randomness_kept(like: Tensor) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[like.device] if like.device.type == "cuda" else [])


def _storages(model: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
