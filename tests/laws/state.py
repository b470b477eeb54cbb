"""The law of state: a sequence cut anywhere, with the state carried, gives what the whole sequence gives."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise

import torch
from torch import Tensor

from fairway.core.seed import generator, numpy_generator
from fairway.model.parts import Context, State, Stateful

TOLERANCE = 1e-9
Run = Callable[[slice, State | None], tuple[Tensor, State]]


def context_piece(context: Context, piece: slice) -> Context:
    """The part of a context that belongs to a piece of the sequence."""
    changes = {}
    for field in fields(context):
        value = getattr(context, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = value[:, piece]
    return context.with_(**changes)


def runner(part: Stateful, x: Tensor, context: Context) -> Run:
    """Runs a mixer, a feed-forward, an embedding or a depth technique on pieces of `x`."""

    def run(piece: slice, state: State | None) -> tuple[Tensor, State]:
        y, after, *_ = part(x[:, piece], state, context_piece(context, piece))
        return y, after

    return run


def cuts(length: int, seed: int = 0) -> list[list[int]]:
    """Borders to cut at: one token at a time, first token alone, last token alone, and at random places."""
    rng = numpy_generator(seed, "cuts", length)
    random = [sorted({int(c) for c in rng.integers(1, length, size=size)}) for size in (1, 3)]
    inner = [list(range(1, length)), [1], [length - 1], *random]
    return [[0, *middle, length] for middle in inner]


def check_state_shape(part: Stateful, batch: int, state: State) -> None:
    """A state is a flat tuple of as many tensors as the empty one, of the same dtypes, batch first."""
    empty = part.empty_state(batch)
    assert len(state) == len(empty), f"the state has {len(state)} tensors, the empty state {len(empty)}"
    for index, (given, expected) in enumerate(zip(state, empty, strict=True)):
        assert given.shape[:1] == (batch,), f"tensor {index} of the state has shape {tuple(given.shape)}"
        assert expected.shape[:1] == (batch,), f"tensor {index} of the empty state is not batch first"
        assert given.dtype == expected.dtype, (
            f"tensor {index} of the state turned from {expected.dtype} to {given.dtype}"
        )


def check_split(
    part: Stateful, run: Run, length: int, batch: int, *, seed: int = 0, tolerance: float = TOLERANCE
) -> None:
    """Outputs and final states of every cut equal those of the whole; `None` equals the empty state."""
    with torch.no_grad():
        whole, final = run(slice(0, length), None)
        check_state_shape(part, batch, final)
        started, _ = run(slice(0, length), part.empty_state(batch))
        assert_close(started, whole, tolerance, "outputs from the empty state")
        for borders in cuts(length, seed):
            outputs, state = in_pieces(run, borders)
            assert_close(outputs, whole, tolerance, f"outputs cut at {borders[1:-1]}")
            check_state_shape(part, batch, state)
            for index, (ours, expected) in enumerate(zip(state, final, strict=True)):
                assert_close(ours, expected, tolerance, f"tensor {index} of the final state, cut at {borders[1:-1]}")


def in_pieces(run: Run, borders: Sequence[int]) -> tuple[Tensor, State]:
    """Outputs side by side, and the last state."""
    outputs, state = [], None
    for start, stop in pairwise(borders):
        y, state = run(slice(start, stop), state)
        outputs.append(y)
    assert state is not None
    return torch.cat(outputs, dim=1), state


def check_split_gradients(
    part: Stateful, run: Run, length: int, x: Tensor | None, *, seed: int = 0, tolerance: float = TOLERANCE
) -> None:
    """Gradients of parameters and inputs through the carried state equal those of the whole sequence."""
    whole, _ = run(slice(0, length), None)
    weight = torch.randn(whole.shape, generator=generator(seed, "weight"), dtype=whole.dtype)
    wanted = [parameter for parameter in part.parameters() if parameter.requires_grad]
    wanted += [x] if x is not None else []
    expected = torch.autograd.grad((whole * weight).sum(), wanted, allow_unused=True)
    for borders in cuts(length, seed):
        outputs, _ = in_pieces(run, borders)
        seen = torch.autograd.grad((outputs * weight).sum(), wanted, allow_unused=True)
        for index, (ours, theirs) in enumerate(zip(seen, expected, strict=True)):
            if theirs is None or ours is None:
                assert theirs is None or not theirs.any(), f"gradient {index} is missing when cut at {borders[1:-1]}"
                assert ours is None or not ours.any(), f"gradient {index} appears only when cut at {borders[1:-1]}"
                continue
            assert_close(ours, theirs, tolerance, f"gradient {index}, cut at {borders[1:-1]}")


def check_causal(run_on: Callable[[Tensor], Tensor], x: Tensor, *, seed: int = 0, tolerance: float = 1e-12) -> None:
    """Changing a token changes nothing before it. `x` is (B, T, ...) or token ids (B, T)."""
    length = x.shape[1]
    with torch.no_grad():
        before = run_on(x)
        for place in {1, length // 2, length - 1}:
            changed = x.clone()
            if x.is_floating_point():
                changed[:, place] += torch.randn(x[:, place].shape, generator=generator(seed, place), dtype=x.dtype)
            else:
                changed[:, place] = changed[:, place] ^ 1
            after = run_on(changed)
            assert_close(after[:, :place], before[:, :place], tolerance, f"outputs before changed place {place}")
            assert not torch.equal(after[:, place:], before[:, place:]), f"a change at {place} changes nothing at all"


def check_remembers(run_on: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The first token matters to the second and later outputs: what mixes along time looks back."""
    with torch.no_grad():
        changed = x.clone()
        changed[:, 0] = changed[:, 0] * -1.5 + 0.7
        difference = (run_on(changed) - run_on(x))[:, 1:].abs().max()
        assert difference > 1e-7, "later outputs do not depend on the first token"


def check_isolation(part: Stateful, x: Tensor, context: Context, border: int, *, tolerance: float = TOLERANCE) -> None:
    """What follows a document's start is what it would be alone, also when the border falls on a cut."""
    starts = torch.zeros(x.shape[:2], dtype=torch.bool)
    starts[:, 0] = starts[:, border] = True
    marked = context.with_(starts_BT=starts)
    tail = slice(border, x.shape[1])
    with torch.no_grad():
        alone, _ = runner(part, x, context)(tail, None)
        run = runner(part, x, marked)
        together, _ = run(slice(0, x.shape[1]), None)
        assert_close(together[:, tail], alone, tolerance, "a document after another")
        around = sorted({0, border - 1, min(border + 1, x.shape[1]), x.shape[1]})
        for borders in ([0, border, x.shape[1]], around):
            outputs, _ = in_pieces(run, borders)
            assert_close(outputs[:, tail], alone, tolerance, f"a document after another, cut at {borders[1:-1]}")


def check_state_bytes(part: Stateful, run: Run, lengths: Sequence[int]) -> None:
    """`state_bytes` is what the state of one sequence really takes. `run` takes a batch of one."""
    with torch.no_grad():
        for length in lengths:
            _, state = run(slice(0, length), None)
            real = sum(tensor.numel() * tensor.itemsize for tensor in state)
            said = part.state_bytes(length)
            assert said == real, f"state_bytes({length}) says {said}; the state has {real} bytes"


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Equal shapes and, but for rounding, equal values; relative to the largest value above 1."""
    assert ours.shape == expected.shape, f"{what}: shape {tuple(ours.shape)} instead of {tuple(expected.shape)}"
    if not ours.numel():
        return
    if not expected.is_floating_point():
        assert torch.equal(ours, expected), f"{what} differ"
        return
    assert ours.isfinite().all() == expected.isfinite().all(), f"{what}: not finite"
    scale = expected.abs().clamp(max=1e30).max().clamp_min(1.0)
    error = (ours - expected).abs().clamp(max=1e30).max() / scale
    assert error <= tolerance, f"{what} differ by {error:.2g}"
