"""Runners that keep less of a stack of blocks than autograd would, by torch's non-reentrant checkpoints and hooks.

Most are a `Runner` of `model.values`: they are given `run(start, stop, x)` and decide which stretches run under a
checkpoint. `Pieces` is a `BlockRunner` and cuts along time. Gradients are those of the plain loop, bit for bit on the
same kernels: random numbers and autocast are restored before anything runs again.
Shape key: B batch, T time, D width.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import pairwise
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
    plan = stretches(pieces, x_BTD.shape[0] * part.state_bytes(length), x_BTD[:, :length].nbytes)
    y_BTD, *after = _again_by(part, [length * size for size in plan], context, x_BTD, *(state or ()))
    return y_BTD, tuple(after)


def stretches(pieces: int, state: int, inputs: int) -> list[int]:
    """Pieces in a stretch, outermost first and then inside each of these, down to single pieces.

    As few levels, of three, as keep states of at most half the bytes of all inputs; if none does, the fewest states.
    `state` and `inputs` are the bytes of a state and of a piece's inputs.
    """
    plans: list[list[int]] = []
    for levels in (1, 2, 3):
        size = 1
        while size**levels < pieces:
            size += 1
        plans.append([size**level for level in reversed(range(levels))])
    light = [plan for plan in plans if 2 * state * sum(states_kept(pieces, plan)) <= pieces * inputs]
    return light[0] if light else min(plans, key=lambda plan: sum(states_kept(pieces, plan)))


def states_kept(pieces: int, plan: list[int]) -> list[int]:
    """The states that are kept at a time between the stretches of each level."""
    around = (pieces, *plan)
    return [-(-min(outer, pieces) // size) - 1 if outer > size else 0 for outer, size in pairwise(around)]


def _again_by(part: Any, lengths: list[int], context: Context, x_BTD: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """The output, and after it the tensors of the last state."""
    outputs = []
    for piece_BTD, here in _cut(x_BTD, context, lengths[0]):
        run = partial(_again_by, part, lengths[1:], here) if lengths[1:] else partial(_piece, part, here)
        # tensors are handed over one by one: those inside a tuple a checkpoint around this one would keep
        y_BTD, *after = _checkpoint(run, piece_BTD, *state)
        outputs.append(y_BTD)
        state = tuple(after)
    return torch.cat(outputs, 1), *state


def _cut(x_BTD: Tensor, context: Context, length: int) -> Iterator[tuple[Tensor, Context]]:
    """`x_BTD.split(length, 1)`, each with its context. Gradients are written into one tensor as they come.

    Cuts are made one by one between their uses, so that autograd, which runs what is younger first, comes back to each
    before the pieces in front of it, and no gradients wait to be joined.
    """
    joint: list[Tensor] = []
    start = 0
    *all_but_last, last = context.pieces(length, max(1, -(-x_BTD.shape[1] // length)))
    for here in all_but_last:
        piece_BTD, x_BTD = _First.apply(x_BTD, length, start, joint)
        yield piece_BTD, here
        start += length
    yield x_BTD, last


class _First(torch.autograd.Function):
    """The first `length` tokens of those behind `start`, and the rest.

    Gradients come from the end: that of the rest lies already at the end of the tensor in `joint`.
    """

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, length: int, start: int, joint: list[Tensor]) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.length, ctx.start, ctx.joint = x_BTD.shape, length, start, joint
        return x_BTD[:, :length], x_BTD[:, length:]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        assert not torch.is_grad_enabled(), "gradients of pieces cannot be differentiated again"
        first_BTD, rest_BTD = grad_outputs
        given = [gradient for gradient in grad_outputs if gradient is not None]
        if not given:
            return None, None, None, None
        (batch, tokens, width), start = ctx.shape, ctx.start
        if not ctx.joint:
            ctx.joint.append(given[0].new_empty(batch, start + tokens, width))
        joint_BTD = ctx.joint[0]
        _write(joint_BTD[:, start : start + ctx.length], first_BTD)
        _write(joint_BTD[:, start + ctx.length :], rest_BTD)
        if start:
            return joint_BTD[:, start:], None, None, None
        ctx.joint.clear()
        return joint_BTD, None, None, None


def _write(place: Tensor, values: Tensor | None) -> None:
    """Writes values, or zeros where there are none, unless they lie there already."""
    if values is None:
        place.zero_()
    elif values.data_ptr() != place.data_ptr():
        place.copy_(values)


def _piece(part: Any, context: Context, x_BTD: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    y_BTD, after, *aux = part(x_BTD, state or None, context)
    assert all(values == NO_AUX for values in aux), f"{part} must say that it needs whole sequences"
    return y_BTD, *after


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
