"""The selective state space of Mamba chunk by chunk.

Decays, writes and read-outs of a chunk are computed at once; only one fused multiply-add per step is sequential.
The states inside a chunk are not kept for the backward pass but computed again from the state at its start, so
memory grows with T D and T D N / C, not with T D N. With `g_t = dL/dh_t + abar_(t+1) .* g_(t+1)`,
`dL/dh_t = dy_t C_t^T`, the gradients are `dC_t = h_t dy_t`, by the write `g_t`, and by `Delta_t A`
`g_t .* h_(t-1) .* abar_t`. Gu & Dao 2023 (arXiv:2312.00752). Both directions are PyTorch operators.
Shape key: B batch, T time, D channels, N state width, C places of a chunk, S chunks.
"""

from typing import Any

import torch
from torch import Tensor

from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state
from fairway.ops.selective_scan.naive import Discretisation


@full_precision
def selective_scan(
    x_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None = None,
    state_BDN: Tensor | None = None,
    starts_BT: Tensor | None = None,
    discretisation: Discretisation = "euler",
    chunk: int = 16,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D) and the final state (B, D, N). `delta_BTD` is positive, `A_DN` negative."""
    state = initial_state(state_BDN, x_BTD, x_BTD.shape[0], *A_DN.shape)
    inputs = (tensor.transpose(0, 1).contiguous() for tensor in (x_BTD, delta_BTD, B_BTN, C_BTN))
    starts_TB = None if starts_BT is None else starts_BT.T.contiguous()
    y_TBD, final, _ = _forward(*inputs, A_DN, state, starts_TB, discretisation == "zoh", chunk)
    y_BTD = y_TBD.transpose(0, 1)
    return (y_BTD if D_D is None else y_BTD + D_D * x_BTD), final


@torch.library.custom_op("fairway::selective_scan", mutates_args=())
def _forward(
    x_TBD: Tensor,
    delta_TBD: Tensor,
    B_TBN: Tensor,
    C_TBN: Tensor,
    A_DN: Tensor,
    state_BDN: Tensor,
    starts_TB: Tensor | None,
    hold: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the final state, and the state at the start of each chunk (S, B, D, N)."""
    y_TBD = torch.empty_like(x_TBD)
    firsts = [state_BDN]
    for at in range(0, len(x_TBD), chunk):
        part = slice(at, at + chunk)
        decay_CBDN, write_CBDN = _discretised(x_TBD[part], delta_TBD[part], B_TBN[part], A_DN, hold)
        after_CBDN = _states(_cut(decay_CBDN, starts_TB, part), write_CBDN, firsts[-1])
        torch.matmul(after_CBDN, C_TBN[part].unsqueeze(-1), out=y_TBD[part].unsqueeze(-1))
        firsts.append(after_CBDN[-1].clone())
    return y_TBD, firsts[-1].clone(memory_format=torch.contiguous_format), torch.stack(firsts)[:-1]


@_forward.register_fake
def _(
    x_TBD: Tensor,
    delta_TBD: Tensor,  # noqa: ARG001
    B_TBN: Tensor,  # noqa: ARG001
    C_TBN: Tensor,  # noqa: ARG001
    A_DN: Tensor,  # noqa: ARG001
    state_BDN: Tensor,
    starts_TB: Tensor | None,  # noqa: ARG001
    hold: bool,  # noqa: ARG001
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    final = torch.empty_like(state_BDN, memory_format=torch.contiguous_format)
    return torch.empty_like(x_TBD), final, state_BDN.new_empty(-(-len(x_TBD) // chunk), *state_BDN.shape)


@torch.library.custom_op("fairway::selective_scan_backward", mutates_args=())
def _backward(
    grad_y_TBD: Tensor,
    grad_final_BDN: Tensor,
    x_TBD: Tensor,
    delta_TBD: Tensor,
    B_TBN: Tensor,
    C_TBN: Tensor,
    A_DN: Tensor,
    firsts_SBDN: Tensor,
    starts_TB: Tensor | None,
    hold: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by x, Delta, B, C, A and the carried state."""
    by_x, by_delta, by_B, by_C = (torch.empty_like(tensor) for tensor in (x_TBD, delta_TBD, B_TBN, C_TBN))
    by_A = torch.zeros_like(A_DN, memory_format=torch.contiguous_format)
    flow_BDN = grad_final_BDN.clone(memory_format=torch.contiguous_format)
    for index in reversed(range(len(firsts_SBDN))):
        part = slice(index * chunk, (index + 1) * chunk)
        x, delta, B, C, dy = (tensor[part] for tensor in (x_TBD, delta_TBD, B_TBN, C_TBN, grad_y_TBD))
        decay, write = _discretised(x, delta, B, A_DN, hold)
        kept = _cut(decay, starts_TB, part)
        after = _states(kept, write, firsts_SBDN[index])
        torch.matmul(dy.unsqueeze(-2), after, out=by_C[part].unsqueeze(-2))
        flow = _flows(dy, C, kept, flow_BDN)
        flow_BDN = kept[0] * flow[0]
        by_exponent = kept * flow
        by_exponent[1:] *= after[:-1]
        by_exponent[0] *= firsts_SBDN[index]
        if hold:
            gain = (delta.unsqueeze(-1) * A_DN).expm1() / A_DN
            by_gain = flow * x.unsqueeze(-1) * B.unsqueeze(-2) / A_DN
            by_A -= (by_gain * gain).sum((0, 1))
            by_exponent += by_gain * decay
            flow *= gain
        read = (flow @ B.unsqueeze(-1)).squeeze(-1)
        by_x[part] = read if hold else read * delta
        by_delta[part] = (by_exponent * A_DN).sum(-1)
        if not hold:
            by_delta[part] += read * x
        torch.matmul((x if hold else delta * x).unsqueeze(-2), flow, out=by_B[part].unsqueeze(-2))
        by_A += by_exponent.mul_(delta.unsqueeze(-1)).sum((0, 1))
    return by_x, by_delta, by_B, by_C, by_A, flow_BDN


@_backward.register_fake
def _(
    grad_y_TBD: Tensor,  # noqa: ARG001
    grad_final_BDN: Tensor,
    x_TBD: Tensor,
    delta_TBD: Tensor,
    B_TBN: Tensor,
    C_TBN: Tensor,
    A_DN: Tensor,
    firsts_SBDN: Tensor,  # noqa: ARG001
    starts_TB: Tensor | None,  # noqa: ARG001
    hold: bool,  # noqa: ARG001
    chunk: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    by_x, by_delta, by_B, by_C = (torch.empty_like(tensor) for tensor in (x_TBD, delta_TBD, B_TBN, C_TBN))
    by_A = torch.empty_like(A_DN, memory_format=torch.contiguous_format)
    by_state = torch.empty_like(grad_final_BDN, memory_format=torch.contiguous_format)
    return by_x, by_delta, by_B, by_C, by_A, by_state


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, delta, B, C, A, _, starts, ctx.hold, ctx.chunk = inputs
    ctx.save_for_backward(x, delta, B, C, A, output[2], starts)


def _differentiate(
    ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, delta, B, C, A, firsts, starts = ctx.saved_tensors
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    grad_final = x.new_zeros(x.shape[1], *A.shape) if grad_final is None else grad_final
    gradients = _backward(grad_y, grad_final, x, delta, B, C, A, firsts, starts, ctx.hold, ctx.chunk)
    return *gradients, None, None, None


torch.library.register_autograd("fairway::selective_scan", _differentiate, setup_context=_save)


def _discretised(x: Tensor, delta: Tensor, B: Tensor, A_DN: Tensor, hold: bool) -> tuple[Tensor, Tensor]:
    """Decays and writes (C, B, D, N) of one chunk."""
    exponent = delta.unsqueeze(-1) * A_DN
    if hold:
        return exponent.exp(), (exponent.expm1() / A_DN).mul_(x.unsqueeze(-1)).mul_(B.unsqueeze(-2))
    return exponent.exp_(), (delta * x).unsqueeze(-1) * B.unsqueeze(-2)


def _cut(decay_CBDN: Tensor, starts_TB: Tensor | None, part: slice) -> Tensor:
    """Decays that let nothing through where a document begins."""
    return decay_CBDN if starts_TB is None else decay_CBDN.masked_fill(starts_TB[part, :, None, None], 0.0)


def _states(decay_CBDN: Tensor, write_CBDN: Tensor, state_BDN: Tensor) -> Tensor:
    """The states after each step, in the place of the writes."""
    for decay_BDN, write_BDN in zip(decay_CBDN.unbind(0), write_CBDN.unbind(0), strict=True):
        state_BDN = torch.addcmul(write_BDN, decay_BDN, state_BDN, out=write_BDN)
    return write_CBDN


def _flows(dy_CBD: Tensor, C_CBN: Tensor, decay_CBDN: Tensor, flow_BDN: Tensor) -> Tensor:
    """The gradient by the state after each step, given that by the last one from what follows."""
    flow_CBDN = dy_CBD.unsqueeze(-1) * C_CBN.unsqueeze(-2)
    flows, decays = flow_CBDN.unbind(0), decay_CBDN.unbind(0)
    flows[-1].add_(flow_BDN)
    for t in range(len(flows) - 2, -1, -1):
        torch.addcmul(flows[t], decays[t + 1], flows[t + 1], out=flows[t])
    return flow_CBDN
