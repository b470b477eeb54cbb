"""Linear recurrences over outer products by native kernels, registered with torch so that autograd sees one op.

`S_t = decay_t S_(t-1) + k_t^T v_t`, `y_t = q_t S_t`. A kernel keeps the state at the start of every span of tokens and
computes the others again for the gradients. Shape key: B batch, T time, G key groups, H value heads, K key width, V
value width, S spans.
"""

from ctypes import c_int
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer

GIVEN = "Tensor q, Tensor k, Tensor v, Tensor log_decay"
FORWARD = f"({GIVEN}, Tensor state, Tensor? starts) -> (Tensor, Tensor, Tensor)"
BACKWARD = (
    f"(Tensor grad_y, Tensor grad_last, {GIVEN}, Tensor firsts, Tensor? starts) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)"
)


class Recurrence:
    """The op of the kernels `NAME_forward` and `NAME_backward`: `(q, k, v, log_decay, state, starts) -> (y, state)`.

    q and k are (B, T, G, K), v and y (B, T, H, V), log_decay (B, T, H) or (B, T, H, K), state (B, H, K, V), starts (B,
    T) or None; all float32 on the CPU, but that kernels with `halves` take q, k and v, and give y, in bfloat16 too.
    Value head h reads key group h // (H / G); kernels that are not `grouped` need as many groups as heads.
    """

    def __init__(self, name: str, span: int, *, grouped: bool, halves: bool = False) -> None:
        self.name, self.span, self.grouped, self.halves = name, span, grouped, halves
        op = torch.library.custom_op
        self._op = op(f"fairway::{name}", self._forward, mutates_args=(), schema=FORWARD)
        self._back = op(f"fairway::{name}_backward", self._backward, mutates_args=(), schema=BACKWARD)
        self._op.register_fake(self._results)
        self._back.register_fake(self._gradients)
        self._op.register_autograd(self._differentiate, setup_context=self._save)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        inputs = (tensor.contiguous() for tensor in (q, k, v, log_decay, state))
        y, last, _ = self._op(*inputs, None if starts is None else starts.contiguous())
        return y, last

    def _results(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Room for outputs, the final state, and the state at the start of each span (B, H, S, K, V)."""
        v, state = given[2], given[4]
        batch, length, heads, width = v.shape
        firsts = state.new_empty(batch, heads, -(-length // self.span), state.shape[2], width)
        return torch.empty_like(v), torch.empty_like(state), firsts

    def _forward(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        results = self._results(*given)
        kernel(f"{self.name}_forward")(*map(pointer, (*given, *results)), *self._sizes(given[0], given[2]))
        return results

    def _gradients(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Room for the gradients by q, k, v, the logarithms of decays and the carried state."""
        by_q, by_k, by_v, by_decay = (torch.empty_like(tensor) for tensor in given[2:6])
        return by_q, by_k, by_v, by_decay, torch.empty_like(given[1], memory_format=torch.contiguous_format)

    def _backward(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        grad_y, grad_last, q, _, v, *_ = given
        by_q, by_k, *rest = self._gradients(*given)
        groups, heads = q.shape[2], v.shape[2]
        if heads != groups:
            by_q, by_k = (q.new_empty(*q.shape[:2], heads, q.shape[3]) for _ in range(2))
        inputs = (grad_y.contiguous(), grad_last.contiguous(), *given[2:])
        kernel(f"{self.name}_backward")(*map(pointer, (*inputs, by_q, by_k, *rest)), *self._sizes(q, v))
        if heads != groups:
            by_q, by_k = (by.unflatten(2, (groups, heads // groups)).sum(3) for by in (by_q, by_k))
        by_v, by_decay, by_state = rest
        return by_q, by_k, by_v, by_decay, by_state

    def _sizes(self, q: Tensor, v: Tensor) -> list[Any]:
        batch, length, groups, keys = q.shape
        sizes = longs(batch, length, *([groups] if self.grouped else []), v.shape[2], keys, v.shape[3])
        return [sizes, *([c_int(q.dtype == torch.bfloat16)] if self.halves else [])]

    @staticmethod
    def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        q, k, v, log_decay, _, starts = inputs
        ctx.set_materialize_grads(False)  # else one by `firsts`, which nobody reads, would be filled with zeros
        ctx.save_for_backward(q, k, v, log_decay, output[2], starts)

    def _differentiate(
        self, ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        v, firsts = saved[2], saved[4]
        if grad_y is None:
            grad_y = torch.zeros_like(v)
        if grad_last is None:
            grad_last = firsts.new_zeros(*firsts.shape[:2], *firsts.shape[3:])
        return (*self._back(grad_y, grad_last, *saved), None)
