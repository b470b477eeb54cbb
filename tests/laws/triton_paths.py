"""The Triton kernels beside the definitions: how far every output, state and gradient is from float64.

`python -m laws.triton_paths OP CASE...` prints the errors as JSON; with `TRITON_INTERPRET=1` it needs no GPU.
"""

import importlib
import json
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.seed import generator

OPS = ("gla", "retention", "ssd", "delta", "selective_scan_euler", "selective_scan_zoh")


@dataclass(frozen=True)
class Case:
    """One comparison. Selective scans have `keys` states and `values` channels."""

    length: int
    batch: int = 2
    heads: int = 2
    keys: int = 19
    values: int = 37
    dtype: torch.dtype = torch.float32
    starts: bool = False
    carried: bool = True
    decay: float = 1.0
    """A factor of every log decay."""
    tolerance: float = 2e-5
    """Largest relative error, as norms."""


BF16 = 3e-2
"""What bfloat16 products may be off: 2^-8 for each operand, more where gradients by decays cancel."""

STRONG = 5e-4
"""Log decays of a chunk add up to some thousands here, and float32 keeps their sums, whose differences are
exponentiated, to 2^-24 of that: 2e-4. Only gradients by what decays come near it; the rest stays below 1e-5."""

CASES = {
    "ragged": Case(71),
    "documents": Case(130, batch=1, heads=4, starts=True),
    "one": Case(1),
    "whole": Case(64, batch=1, carried=False),
    "wide": Case(65, batch=1, heads=1, keys=80, values=72, starts=True),
    "strong": Case(70, batch=1, decay=50.0, tolerance=STRONG),
    "half": Case(71, batch=1, dtype=torch.bfloat16, starts=True, tolerance=BF16),
}
SCANS = {
    "ragged": Case(21, keys=3, values=5),
    "documents": Case(21, batch=1, keys=3, values=18, starts=True),
    "one": Case(1, keys=3, values=5),
    "whole": Case(16, batch=1, keys=4, values=5, carried=False),
    "strong": Case(20, batch=1, keys=3, values=5, decay=50.0),
    "half": Case(21, batch=1, keys=3, values=5, dtype=torch.bfloat16, starts=True, tolerance=BF16),
}


def cases(op: str) -> dict[str, Case]:
    """The cases of one op."""
    return SCANS if op.startswith("selective_scan") else CASES


def inputs(op: str, case: Case) -> tuple[list[Tensor], Tensor]:
    """Arguments in float64 and the carried state."""
    source = generator(0, "triton", op, case.length)
    B, T, H, K, V = case.batch, case.length, case.heads, case.keys, case.values

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    if op.startswith("selective_scan"):
        x, step, A = draw(B, T, V), functional.softplus(draw(B, T, V)), -draw(V, K).exp() * case.decay
        return [x, step, A, draw(B, T, K), draw(B, T, K), draw(V)], draw(B, V, K)
    if op == "ssd":
        x, step, A = draw(B, T, H, V), functional.softplus(draw(B, T, H)), -draw(H).exp() * case.decay
        return [x, step, A, draw(B, T, (H + 1) // 2, K), draw(B, T, (H + 1) // 2, K), draw(H)], draw(B, H, K, V)
    q, k, v, state = draw(B, T, H, K), draw(B, T, H, K), draw(B, T, H, V), draw(B, H, K, V)
    if op == "retention":
        return [q, k, v, -draw(H).abs() / 4 * case.decay], state
    if op == "gla":
        return [q, k, v, functional.logsigmoid(2 * draw(B, T, H, K)) * case.decay], state
    beta, decay = draw(B, T, H).sigmoid(), functional.logsigmoid(draw(B, T, H)) * case.decay
    return [q, functional.normalize(k, dim=-1), v, beta, decay], state


def errors(op: str, case: Case, device: str = "cpu", reference: str = "naive") -> list[float]:
    """Relative errors of the output, the final state, and the gradient by every argument and the carried state.

    The reference sees the same rounded arguments.
    """
    arguments, state = inputs(op, case)
    rounded = [x.to(device, case.dtype if _narrow(op, x) else torch.float32) for x in arguments]
    starts = torch.rand(case.batch, case.length, generator=generator(0, "starts")) < 0.1
    more: list[Any] = [state.to(device, torch.float32) if case.carried else None, starts.to(device)]
    if not case.starts:
        more[1] = None
    seen = _results(op, "triton", rounded, more)
    exact = _results(op, reference, [x.double() for x in rounded], [_double(x) for x in more])
    assert all(bool(x.isfinite().all()) for x in seen)
    assert all(x.shape == y.shape for x, y in zip(seen, exact, strict=True))
    return [float((x.double() - y).norm() / y.norm().clamp_min(1e-6)) for x, y in zip(seen, exact, strict=True)]


def _narrow(op: str, x: Tensor) -> bool:
    return x.ndim == (3 if op.startswith("selective_scan") else 4)


def _double(x: Tensor | None) -> Tensor | None:
    return x.double() if x is not None and x.is_floating_point() else x


def function(op: str, form: str) -> Any:
    """An op in one of its forms: `naive`, `chunk`, `triton`."""
    folder, _, how = op.partition("_scan_")
    name = f"{folder}_scan" if how else op
    whole = getattr(importlib.import_module(f"fairway.ops.{name}.{form}"), name)
    return (lambda *given: whole(*given, how)) if how else whole


def _results(op: str, form: str, arguments: list[Tensor], more: list[Any]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in arguments]
    state = None if more[0] is None else more[0].detach().requires_grad_()
    output, after = function(op, form)(*leaves, state, more[1])
    source = generator(0, "weighting")
    loss = torch.zeros((), dtype=torch.float64, device=output.device)
    for x in (output, after):
        loss = loss + (x.double() * torch.randn(x.shape, generator=source, dtype=torch.float64).to(x.device)).sum()
    wanted = leaves if state is None else [*leaves, state]
    return [x.detach() for x in (output, after, *torch.autograd.grad(loss, wanted))]


def halves(op: str, device: str = "cpu") -> float:
    """How far two pieces with the state between them are from the whole."""
    case = next(iter(cases(op).values()))
    arguments, state = inputs(op, case)
    over_time = [x.ndim >= 3 for x in arguments]
    given, state = [x.to(device, torch.float32) for x in arguments], state.to(device, torch.float32)
    cut = case.length // 3
    call = function(op, "triton")
    whole, last = call(*given, state, None)
    first, middle = call(*(x[:, :cut] if timed else x for x, timed in zip(given, over_time, strict=True)), state, None)
    second, end = call(*(x[:, cut:] if timed else x for x, timed in zip(given, over_time, strict=True)), middle, None)
    pieces = torch.cat((first, second), 1)
    return max(float((pieces - whole).norm() / whole.norm()), float((end - last).norm() / last.norm()))


if __name__ == "__main__":
    _, op, *names = sys.argv
    print(json.dumps({name: errors(op, cases(op)[name]) for name in names} | {"halves": [halves(op)]}))
