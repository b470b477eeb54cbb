"""The gated delta rule by the native kernel, registered with torch so that autograd sees one op.

It keeps each token's error and the state at the start of every span of 64 tokens; nothing else for the gradients.
Queries, keys, values and errors are all float32 or all bfloat16; the rest is float32. Where the machine multiplies
bfloat16 in pairs, products of bfloat16 inputs round both sides to it and sum in float32: outputs, states and gradients
then lie within 1e-2, as norms, of what `naive.py` gives in float64 for the same inputs. Elsewhere only what is kept and
what is given back is rounded, and states are those of float32. See `naive.py` for the definition.
Shape key: B batch, T time, H heads, K key width, V value width, S spans.
"""

from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer

SPAN = 64


def delta(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    log_decay_BTH: Tensor | None,
    state_BHKV: Tensor | None,
    starts_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The same as `naive.delta` on the CPU; outputs have the dtype of the values."""
    given = (q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTH, state_BHKV, starts_BT)
    y_BTHV, final, *_ = _forward(*(None if tensor is None else tensor.contiguous() for tensor in given))
    return y_BTHV, final


@torch.library.custom_op("fairway::delta", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, the final state, the errors (B, T, H, V) and the state at the start of each span (B, H, S, K, V)."""
    outputs = _outputs(k, v)
    given = (q, k, v, beta, log_decay, state, starts)
    kernel("delta_forward")(*map(pointer, given), *map(pointer, outputs), _sizes(q, v))
    return outputs


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _outputs(k, v)


@torch.library.custom_op("fairway::delta_backward", mutates_args=())
def _backward(
    grad_y: Tensor, grad_last: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None,
    starts: Tensor | None, errors: Tensor, firsts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by q, k, v, beta, the logarithms of the decays (empty where there are none) and the carried state."""
    by_q, by_k, by_v, by_beta = (torch.empty_like(tensor) for tensor in (q, k, v, beta))
    by_decay = beta.new_empty(0) if log_decay is None else torch.empty_like(log_decay)
    by_state = _state(k, v)
    last = None if grad_last is None else grad_last.contiguous()
    given = (grad_y.contiguous(), last, q, k, v, beta, log_decay, starts, errors, firsts)
    found = (by_q, by_k, by_v, by_beta, None if log_decay is None else by_decay, by_state)
    kernel("delta_backward")(*map(pointer, given), *map(pointer, found), _sizes(q, v))
    return by_q, by_k, by_v, by_beta, by_decay, by_state


@_backward.register_fake
def _(
    grad_y: Tensor, grad_last: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None,
    starts: Tensor | None, errors: Tensor, firsts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    by_q, by_k, by_v, by_beta = (torch.empty_like(tensor) for tensor in (q, k, v, beta))
    by_decay = beta.new_empty(0) if log_decay is None else torch.empty_like(log_decay)
    return by_q, by_k, by_v, by_beta, by_decay, _state(k, v)


def _outputs(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    last, spans = _state(k, v), -(-k.shape[1] // SPAN)
    firsts = last.new_empty(*last.shape[:2], spans, *last.shape[2:])
    return torch.empty_like(v), last, torch.empty_like(v), firsts


def _state(k: Tensor, v: Tensor) -> Tensor:
    batch, _, heads, width = k.shape
    return k.new_empty(batch, heads, width, v.shape[3], dtype=torch.float32)


def _sizes(q: Tensor, v: Tensor) -> Any:
    return longs(*q.shape, v.shape[3], q.dtype == torch.bfloat16)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    q, k, v, beta, log_decay, _, starts = inputs
    ctx.save_for_backward(q, k, v, beta, log_decay, starts, output[2], output[3])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    q, k, v, beta, log_decay, *kept = ctx.saved_tensors
    grad_y = torch.zeros_like(v) if grad_y is None else grad_y
    *gradients, by_decay, by_state = _backward(grad_y, grad_last, q, k, v, beta, log_decay, *kept)
    return *gradients, None if log_decay is None else by_decay, by_state if ctx.needs_input_grad[5] else None, None


_forward.register_autograd(_differentiate, setup_context=_save)
