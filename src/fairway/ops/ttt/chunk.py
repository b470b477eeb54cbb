"""TTT-Linear and TTT-MLP by mini-batches, in their dual form: no gradient matrix per token is ever formed.

With gZ the gradient of the losses by Z = K W0 + b0, and `eta_ij = tok_i lr_j` for j <= i: `Zbar = Q W0 - (eta
.* Q K^T) gZ + b0 - eta gZ` are the outputs before LN with each token's own W_i. What earlier calls summed in
this mini-batch adds `-tok_i (Q sum_W + sum_b)`. The closed form of gZ keeps the inner step differentiable.
Sun et al. 2024 (arXiv:2407.04620).
Shape key: B batch, T time, H heads, K head width, F hidden width, M places of a mini-batch, C places of a
piece of it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fairway.ops.precision import full_precision
from fairway.ops.ttt.inner import Carried, normalised


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
    length, batch_size = q_BTHK.shape[1], len(token_rate_M)
    if length == 0:
        return torch.zeros_like(q_BTHK), carried
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    rate_BHT1 = rate_BTH.transpose(1, 2).unsqueeze(-1)
    affine = None if plain else (gain_HK.unsqueeze(1), bias_HK.unsqueeze(1))
    first = min(length, batch_size - carried.place)
    whole, last = divmod(length - first, batch_size)
    sizes = [first, *[batch_size] * whole, *([last] if last else [])]
    pieces = (x.split(sizes, 2) for x in (q_BHTK, k_BHTK, v_BHTK, rate_BHT1))
    outputs = []
    for q, k, v, rate in zip(*pieces, strict=True):
        token_rate_C1 = token_rate_M[carried.place : carried.place + q.shape[2], None]
        predicted, carried = _piece(_Piece(q, k, v, rate, token_rate_C1), affine, carried, batch_size)
        outputs.append(predicted)
    Z_BHTK = torch.cat(outputs, 2)
    output_BHTK = Z_BHTK if affine is None else q_BHTK + affine[0] * normalised(Z_BHTK)[0] + affine[1]
    return output_BHTK.transpose(1, 2), carried


@dataclass(frozen=True)
class _Piece:
    """Tokens of one mini-batch that are handled together."""

    q_BHCK: Tensor
    k_BHCK: Tensor
    v_BHCK: Tensor
    rate_BHC1: Tensor
    token_rate_C1: Tensor


Affine = tuple[Tensor, Tensor]


def _piece(piece: _Piece, affine: Affine | None, carried: Carried, batch_size: int) -> tuple[Tensor, Carried]:
    """Zbar (B, H, C, K), and what is carried on."""
    weights = carried.weights
    q, k = piece.q_BHCK, piece.k_BHCK
    if len(weights) == 2:
        grad_Z = _output_gradient(k @ weights[0] if affine is None else k @ weights[0] + weights[1], piece, affine)
        Zbar, rated = _dual(q, k, grad_Z, piece, carried, 0, with_bias=affine is not None)
        learned = [(k, rated, affine is not None)]
    else:
        Z1 = k @ weights[0] + weights[1]
        X2 = functional.gelu(Z1, approximate="tanh")
        grad_Z2 = _output_gradient(X2 @ weights[2] + weights[3], piece, affine)
        grad_Z1 = grad_Z2 @ weights[2].mT * _gelu_slope(Z1)
        Z1bar, rated1 = _dual(q, k, grad_Z1, piece, carried, 0)
        Zbar, rated2 = _dual(functional.gelu(Z1bar, approximate="tanh"), X2, grad_Z2, piece, carried, 2)
        learned = [(k, rated1, True), (X2, rated2, True)]
    return Zbar, _after(piece, learned, carried, batch_size)


def _after(piece: _Piece, learned: list[tuple[Tensor, Tensor, bool]], carried: Carried, batch_size: int) -> Carried:
    """The sums with this piece's keys and rated gradients of each layer; or, where it ends, the next weights.

    A whole mini-batch steps without sums, so that autograd keeps no second tensor as large as the weights.
    """
    place, last = carried.place + piece.q_BHCK.shape[2], piece.token_rate_C1[-1]
    if not carried.place and place == batch_size:
        steps = _summed([(keys, last * rated, with_bias) for keys, rated, with_bias in learned], carried.sums)
        return Carried.fresh(tuple(w - step for w, step in zip(carried.weights, steps, strict=True)))
    new = _summed(learned, carried.sums)
    sums = tuple(old + more for old, more in zip(carried.sums, new, strict=True))
    if place < batch_size:
        return Carried(carried.weights, sums, place)
    return Carried.fresh(tuple(w - last * s for w, s in zip(carried.weights, sums, strict=True)))


def _summed(learned: list[tuple[Tensor, Tensor, bool]], like: tuple[Tensor, ...]) -> list[Tensor]:
    """The sums of rated gradients by W and b of each layer; zeros like the old ones for a layer without b."""
    found: list[Tensor] = []
    for layer, (keys, rated, with_bias) in enumerate(learned):
        by_b = rated.sum(2, keepdim=True) if with_bias else torch.zeros_like(like[2 * layer + 1])
        found += [keys.mT @ rated, by_b]
    return found


def _dual(
    queries: Tensor,
    keys: Tensor,
    grad_Z: Tensor,
    piece: _Piece,
    carried: Carried,
    layer: int,
    with_bias: bool = True,
) -> tuple[Tensor, Tensor]:
    """Outputs of one inner layer with each token's own weights, and its rated gradients by Z."""
    W, b = carried.weights[layer : layer + 2]
    sum_W, sum_b = carried.sums[layer : layer + 2]
    rated = piece.rate_BHC1 * grad_Z
    steps = (queries @ keys.mT).tril() @ rated
    if with_bias:
        steps = steps + rated.cumsum(2)
    if carried.place:
        steps = steps + queries @ sum_W + sum_b
    Zbar = queries @ W - piece.token_rate_C1 * steps
    return Zbar + b if with_bias else Zbar, rated


def _output_gradient(Z: Tensor, piece: _Piece, affine: Affine | None) -> Tensor:
    """The gradient of each token's loss by its Z."""
    if affine is None:
        return Z - piece.v_BHCK
    gain, bias = affine
    hat, deviation = normalised(Z)
    inner = gain * (gain * hat + bias - (piece.v_BHCK - piece.k_BHCK))
    centred = inner - inner.mean(-1, keepdim=True) - hat * (inner * hat).mean(-1, keepdim=True)
    return centred / deviation


def _gelu_slope(x: Tensor) -> Tensor:
    """The derivative of GELU in its tanh form."""
    scale, cubic = math.sqrt(2.0 / math.pi), 0.044715
    tanh = (scale * (x + cubic * x**3)).tanh()
    return 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh.square()) * scale * (1.0 + 3.0 * cubic * x.square())
