"""The operators under the recurrences: gradients, and what a compiler is told about them."""

from typing import Any

import pytest
import torch

import fairway.ops.selective_scan.chunk  # noqa: F401
from fairway.ops.recurrence import recurrence
from fairway.ops.wkv4.chunk import wkv4


@pytest.mark.parametrize("shape", [(5, 2, 1), (5, 2, 3), (5, 1, 1)])
def test_gradients_are_right_also_for_a_decay_that_broadcasts(draw: Any, shape: tuple[int, ...]) -> None:
    arguments = (draw(*shape), draw(5, 2, 3), draw(2, 3))
    assert torch.autograd.gradcheck(recurrence, tuple(x.requires_grad_() for x in arguments))


def test_the_operator_keeps_the_rules_of_pytorch(draw: Any) -> None:
    arguments = tuple(x.requires_grad_() for x in (draw(5, 2, 1), draw(5, 2, 3), draw(2, 3)))
    torch.library.opcheck(torch.ops.fairway.recurrence.default, arguments)
    x, delta, B, C = draw(6, 2, 3), draw(6, 2, 3).exp(), draw(6, 2, 4), draw(6, 2, 4)
    A, state = -draw(3, 4).exp(), draw(2, 3, 4)
    arguments = tuple(tensor.requires_grad_() for tensor in (x, delta, B, C, A, state))
    torch.library.opcheck(torch.ops.fairway.selective_scan.default, (*arguments, None, False, 4))
    k, w, top = draw(6, 2, 3), draw(3).exp(), draw(2, 3)
    starts = torch.tensor([False, True, False, False, True, False])[:, None, None].expand(6, 2, 1)
    for given in (None, starts):
        torch.library.opcheck(torch.ops.fairway.wkv4_maxima.default, (k, w, top, given))


def test_a_gradient_that_reaches_only_one_of_the_two_results_is_right(draw: Any) -> None:
    arguments = tuple(x.requires_grad_() for x in (draw(4, 3), draw(4, 3), draw(3)))
    for index in (0, 1):
        assert torch.autograd.gradcheck(lambda *given, index=index: recurrence(*given)[index], arguments)


def test_keys_beyond_the_range_of_the_exponential_stay_finite(draw: Any) -> None:
    k = (1e4 * draw(2, 30, 3)).float().requires_grad_()
    output, state = wkv4(k, draw(2, 30, 3).float(), draw(3).float().exp(), draw(3).float())
    assert all(torch.isfinite(x).all() for x in (output, *state))
    (gradient,) = torch.autograd.grad(output.sum(), k)
    assert torch.isfinite(gradient).all()
