"""The inner model of a TTT layer: what its carried state is, and its loss.

`f(x) = x + LN(Z(x))` with `Z(x) = x W + b`, or `Z(x) = gelu(x W1 + b1) W2 + b2`; the loss of a token is `1/2
||f(k) - v||^2`, so LN(Z) is fitted to v - k. A `plain` linear model is `f(x) = x W`. Sun et al. 2024
(arXiv:2407.04620).
Shape key: B batch, T time, H heads, K head width, F hidden width.
"""

from dataclasses import dataclass

from torch import Tensor

Weights = tuple[Tensor, ...]
"""(W, b), or (W1, b1, W2, b2); W is (B, H, inputs, outputs), b is (B, H, 1, outputs)."""

EPS = 1e-6


@dataclass(frozen=True)
class Carried:
    """The inner weights at the start of the mini-batch, and the sum of its rated gradients so far."""

    weights: Weights
    sums: Weights
    place: int
    """Tokens of the current mini-batch seen so far."""

    @classmethod
    def fresh(cls, weights: Weights) -> "Carried":
        """At the start of a mini-batch. The sums are views of one zero: they take no memory until they are used."""
        return cls(weights, tuple(weight.new_zeros(()).expand_as(weight) for weight in weights), 0)
