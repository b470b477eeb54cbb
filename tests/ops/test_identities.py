"""What one op is when it is a special case of another."""

from typing import Any

import torch

from fairway.ops.delta.naive import delta
from fairway.ops.gla import chunk as gla_chunk
from fairway.ops.gla.chunk import gla
from fairway.ops.linear_attention.naive import linear_attention
from fairway.ops.retention import chunk, naive
from fairway.ops.ssd.chunk import ssd
from fairway.ops.ttt import chunk as ttt_chunk
from fairway.ops.ttt import naive as ttt_naive
from fairway.ops.ttt.inner import Carried

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def test_the_three_forms_of_retention_agree(draw: Any) -> None:
    q, k, v = draw(2, 45, 3, 6), draw(2, 45, 3, 6), draw(2, 45, 3, 5)
    decay = (1 - 2.0 ** -(5 + torch.arange(3, dtype=torch.float64))).log()
    recurrent = naive.retention(q, k, v, decay)
    for other in (naive.retention_parallel(q, k, v, decay), chunk.retention(q, k, v, decay, chunk=16)):
        torch.testing.assert_close(other, recurrent, rtol=1e-12, atol=1e-12)


def test_gla_with_one_decay_per_head_is_retention(draw: Any) -> None:
    q, k, v, decay = draw(2, 45, 3, 6), draw(2, 45, 3, 6), draw(2, 45, 3, 5), -draw(3).abs()
    gated = gla(q, k, v, decay.view(1, 1, 3, 1).expand(2, 45, 3, 6))
    torch.testing.assert_close(gated, naive.retention(q, k, v, decay), **EXACT)


def test_ssd_is_gla_with_one_decay_per_head_and_step(draw: Any) -> None:
    x, step, B, C = draw(2, 21, 3, 5), draw(2, 21, 3).exp(), draw(2, 21, 3, 4), draw(2, 21, 3, 4)
    A = -draw(3).exp()
    gated = gla(C, B, step.unsqueeze(-1) * x, (step * A).unsqueeze(-1).expand(2, 21, 3, 4))
    torch.testing.assert_close(gated, ssd(x, step, A, B, C), **EXACT)


def test_plain_ttt_over_one_batch_from_zero_is_linear_attention(draw: Any) -> None:
    q, k, v = draw(2, 12, 3, 4), draw(2, 12, 3, 4), draw(2, 12, 3, 4)
    expected, (state, _) = linear_attention(q, k, v, feature_map="identity", normalise=False)
    carried = Carried.fresh((q.new_zeros(2, 3, 4, 4), q.new_zeros(2, 3, 1, 4)))
    ones = q.new_ones(3, 4)
    for module in (ttt_naive, ttt_chunk):
        output, after = module.ttt(q, k, v, q.new_ones(2, 12, 3), q.new_ones(12), ones, ones, carried, plain=True)
        torch.testing.assert_close(output, expected, **EXACT)
        torch.testing.assert_close(after.weights[0], state, **EXACT)
        assert after.place == 0


def test_plain_ttt_of_single_tokens_is_the_delta_rule(draw: Any) -> None:
    q, k, v, rate = draw(2, 12, 3, 4), draw(2, 12, 3, 4), draw(2, 12, 3, 4), draw(2, 12, 3).sigmoid()
    start = draw(2, 3, 4, 4)
    expected, state = delta(q, k, v, rate, None, start)
    ones = q.new_ones(3, 4)
    for module in (ttt_naive, ttt_chunk):
        carried = Carried.fresh((start, q.new_zeros(2, 3, 1, 4)))
        output, after = module.ttt(q, k, v, rate, q.new_ones(1), ones, ones, carried, plain=True)
        torch.testing.assert_close(output, expected, **EXACT)
        torch.testing.assert_close(after.weights[0], state, **EXACT)


def test_no_gradient_is_lost_through_the_inner_step(draw: Any) -> None:
    q, k, v = draw(1, 8, 2, 4), draw(1, 8, 2, 4).requires_grad_(), draw(1, 8, 2, 4).requires_grad_()
    rate = draw(1, 8, 2).sigmoid().requires_grad_()
    carried = Carried.fresh((draw(1, 2, 4, 4), draw(1, 2, 1, 4)))
    for module in (ttt_naive, ttt_chunk):
        output, _ = module.ttt(q, k, v, rate, q.new_ones(4) / 2, q.new_ones(2, 4), q.new_zeros(2, 4), carried)
        for gradient in torch.autograd.grad(output.square().sum(), (k, v, rate)):
            assert (gradient.abs().amax((0, 2)) > 0).all()


def test_decays_of_a_hundred_nats_per_step_stay_finite_in_float32(draw: Any) -> None:
    q, k, v = (draw(1, 64, 2, 8).float().requires_grad_() for _ in range(3))
    decay = (-100 * draw(1, 64, 2, 8).float().abs()).requires_grad_()
    output, state = gla_chunk.gla(q, k, v, decay)
    gradients = torch.autograd.grad(output.sum() + state.sum(), (q, k, v, decay))
    assert all(torch.isfinite(x).all() for x in (output, state, *gradients))
    exact, _ = gla_chunk.gla(*(x.detach().double() for x in (q, k, v, decay)), chunk=1)
    torch.testing.assert_close(output.double(), exact, rtol=1e-3, atol=1e-3)
