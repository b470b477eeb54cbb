"""TTT-Linear and TTT-MLP by mini-batches, in their dual form: no gradient matrix per token is ever formed.

With gZ the gradient of the losses by Z = K W0 + b0, and `eta_ij = tok_i lr_j` for j <= i: `Zbar = Q W0 + b0 - (eta
.* (Q K^T + 1)) gZ` are the outputs before LN with each token's own W_i. What earlier calls summed in this mini-batch
adds `-tok_i (Q sum_W + sum_b)`. The closed form of gZ keeps the inner step differentiable. Batch and heads are one
dimension here, so that each product with its sum is one operation: mini-batches follow one another, and of one
sequence each is small. Sun et al. 2024 (arXiv:2407.04620).
Shape key: B batch, T time, H heads, N sequences times heads, K head width, F hidden width, M places of a mini-batch,
C places of a piece of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    (batch, length, heads, width), batch_size = q_BTHK.shape, len(token_rate_M)
    if length == 0:
        return torch.zeros_like(q_BTHK), carried
    q_NTK, k_NTK, v_NTK, rate_NT1 = (
        x.transpose(1, 2).flatten(0, 1) for x in (q_BTHK, k_BTHK, v_BTHK, rate_BTH[..., None])
    )
    affine = None if plain else (gain_HK.unsqueeze(1).repeat(batch, 1, 1), bias_HK.unsqueeze(1).repeat(batch, 1, 1))
    carried = _reshaped(carried, lambda x: x.flatten(0, 1))
    first = min(length, batch_size - carried.place)
    whole, last = divmod(length - first, batch_size)
    sizes = [first, *[batch_size] * whole, *([last] if last else [])]
    outputs = []
    for q, k, v, rate in zip(*(x.split(sizes, 1) for x in (q_NTK, k_NTK, v_NTK, rate_NT1)), strict=True):
        token_rate_C1 = token_rate_M[carried.place : carried.place + q.shape[1], None]
        predicted, carried = _piece(_Piece(q, k, v, rate, token_rate_C1), affine, carried, batch_size)
        outputs.append(predicted)
    o_NTK = torch.cat(outputs, 1)
    if affine is not None:
        o_NTK = q_NTK + affine[0] * functional.layer_norm(o_NTK, (width,), eps=EPS) + affine[1]
    o_BHTK = o_NTK.unflatten(0, (batch, heads))
    return o_BHTK.transpose(1, 2), _reshaped(carried, lambda x: x.unflatten(0, (batch, heads)))


def _reshaped(carried: Carried, change: Callable[[Tensor], Tensor]) -> Carried:
    return Carried(tuple(map(change, carried.weights)), tuple(map(change, carried.sums)), carried.place)


@dataclass(frozen=True)
class _Piece:
    """Tokens of one mini-batch that are handled together."""

    q_NCK: Tensor
    k_NCK: Tensor
    v_NCK: Tensor
    rate_NC1: Tensor
    token_rate_C1: Tensor


Affine = tuple[Tensor, Tensor]
Learned = list[tuple[Tensor, Tensor]]
"""The inputs of each inner layer, and the rated gradients by its outputs."""


def _piece(piece: _Piece, affine: Affine | None, carried: Carried, batch_size: int) -> tuple[Tensor, Carried]:
    """Zbar (N, C, K), and what is carried on. Only a `plain` inner model, which has no affine map, has no bias."""
    weights, biased = carried.weights, affine is not None
    q, k = piece.q_NCK, piece.k_NCK
    if len(weights) == 2:
        rated = piece.rate_NC1 * _output_gradient(_layer(k, weights, biased), piece, affine)
        Zbar = _dual(q, k, rated, piece, carried, 0, biased)
        learned = [(k, rated)]
    else:
        Z1 = _layer(k, weights[:2])
        X2 = functional.gelu(Z1, approximate="tanh")
        grad_Z2 = _output_gradient(_layer(X2, weights[2:]), piece, affine)
        grad_Z1 = torch.ops.aten.gelu_backward(grad_Z2 @ weights[2].mT, Z1, approximate="tanh")
        rated1, rated2 = piece.rate_NC1 * grad_Z1, piece.rate_NC1 * grad_Z2
        X2bar = functional.gelu(_dual(q, k, rated1, piece, carried, 0), approximate="tanh")
        Zbar = _dual(X2bar, X2, rated2, piece, carried, 2)
        learned = [(k, rated1), (X2, rated2)]
    return Zbar, _after(piece, learned, carried, batch_size, biased)


def _after(piece: _Piece, learned: Learned, carried: Carried, batch_size: int, biased: bool) -> Carried:
    """The sums with this piece's keys and rated gradients of each layer; or, where it ends, the next weights.

    A whole mini-batch steps without sums, so that autograd keeps no second tensor as large as the weights.
    """
    place, last = carried.place + piece.q_NCK.shape[1], piece.token_rate_C1[-1]
    if not carried.place and place == batch_size:
        steps = [(inputs, last * rated) for inputs, rated in learned]
        return Carried.fresh(_added(carried.weights, steps, -1.0, biased))
    sums = _added(carried.sums, learned, 1.0, biased)
    if place < batch_size:
        return Carried(carried.weights, sums, place)
    return Carried.fresh(tuple(w - last * s for w, s in zip(carried.weights, sums, strict=True)))


def _added(to: Weights, learned: Learned, factor: float, biased: bool) -> Weights:
    """W and b of each layer with their share of the tokens' gradients times a factor."""
    found: list[Tensor] = []
    for layer, (inputs, rated) in enumerate(learned):
        W, b = to[2 * layer : 2 * layer + 2]
        found.append(torch.baddbmm(W, inputs.mT, rated, alpha=factor))
        found.append(torch.add(b, rated.sum(1, keepdim=True), alpha=factor) if biased else b)
    return tuple(found)


def _layer(x: Tensor, weights: Weights, biased: bool = True) -> Tensor:
    """`x W + b`."""
    return torch.baddbmm(weights[1], x, weights[0]) if biased else x @ weights[0]


def _dual(
    queries: Tensor, keys: Tensor, rated: Tensor, piece: _Piece, carried: Carried, layer: int, biased: bool = True
) -> Tensor:
    """Outputs of one inner layer with each token's own weights, given its rated gradients by Z."""
    pairs_NCC = queries @ keys.mT
    pairs_NCC = (pairs_NCC + 1.0 if biased else pairs_NCC).tril() * -piece.token_rate_C1
    Zbar = torch.baddbmm(_layer(queries, carried.weights[layer : layer + 2], biased), pairs_NCC, rated)
    if carried.place:
        Zbar = Zbar - piece.token_rate_C1 * _layer(queries, carried.sums[layer : layer + 2], biased)
    return Zbar


def _output_gradient(Z: Tensor, piece: _Piece, affine: Affine | None) -> Tensor:
    """The gradient of each token's loss by its Z."""
    if affine is None:
        return Z - piece.v_NCK
    gain, bias = affine
    shape = (Z.shape[-1],)
    hat, mean, rate = torch.native_layer_norm(Z, shape, None, None, EPS)
    inner = gain * (gain * hat + bias - (piece.v_NCK - piece.k_NCK))
    back = torch.ops.aten.native_layer_norm_backward
    return back(inner, Z, shape, mean, rate, None, None, [True, False, False])[0]
