"""TTT-Linear and TTT-MLP by their definition: one gradient per token, found by automatic differentiation.

At place i of a mini-batch that started with the inner weights W0: `W_i = W0 - tok_i sum_(j<=i) lr_j grad
l_j(W0)`, and the output is `f(q_i; W_i)`. The last W of a mini-batch starts the next one. Sun et al. 2024
(arXiv:2407.04620).
Shape key: B batch, T time, H heads, K head width, M places of a mini-batch.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fairway.ops.precision import full_precision
from fairway.ops.ttt.inner import EPS, Carried, Weights


@full_precision
def ttt(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    rate_BTH: Tensor,
    token_rate_M: Tensor,
    gain_HK: Tensor,
    bias_HK: Tensor,
    carried: Carried,
    plain: bool = False,
) -> tuple[Tensor, Carried]:
    """Outputs (B, T, H, K) and what is carried on. `rate_BTH` is lr_j, `token_rate_M` is tok_i.

    Gradients of the outputs flow through the inner steps.
    """
    weights, sums, place = carried.weights, carried.sums, carried.place
    outputs = []
    for t in range(q_BTHK.shape[1]):
        q, k, v = (x[:, t, :, None, :] for x in (q_BTHK, k_BTHK, v_BTHK))
        gradients = _gradients(weights, k, v, gain_HK, bias_HK, plain)
        rate = rate_BTH[:, t, :, None, None]
        sums = tuple(old + rate * new for old, new in zip(sums, gradients, strict=True))
        now = tuple(w - token_rate_M[place] * s for w, s in zip(weights, sums, strict=True))
        outputs.append(_predict(now, q, gain_HK, bias_HK, plain).squeeze(2))
        place += 1
        if place == len(token_rate_M):
            weights, sums, place = now, tuple(torch.zeros_like(s) for s in sums), 0
    output = torch.stack(outputs, 1) if outputs else torch.zeros_like(q_BTHK)
    return output, Carried(weights, sums, place)


def _predict(weights: Weights, x: Tensor, gain_HK: Tensor, bias_HK: Tensor, plain: bool) -> Tensor:
    if plain:
        return x @ weights[0]
    Z = x @ weights[0] + weights[1]
    if len(weights) == 4:
        Z = functional.gelu(Z, approximate="tanh") @ weights[2] + weights[3]
    normed = functional.layer_norm(Z, Z.shape[-1:], eps=EPS)
    return x + gain_HK.unsqueeze(1) * normed + bias_HK.unsqueeze(1)


def _gradients(
    weights: Weights, k: Tensor, v: Tensor, gain_HK: Tensor, bias_HK: Tensor, plain: bool
) -> tuple[Tensor, ...]:
    """The gradient of one token's loss by every inner weight, itself differentiable."""
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = tuple(w if w.requires_grad else w.detach().requires_grad_() for w in weights)
        loss = 0.5 * (_predict(leaves, k, gain_HK, bias_HK, plain) - v).square().sum()
        found = torch.autograd.grad(loss, leaves, create_graph=outer, allow_unused=True, materialize_grads=True)
    return tuple(g if outer else g.detach() for g in found)
