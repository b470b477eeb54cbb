"""Keys that grow in place are those that copying gives, whoever continues from where."""

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.model.key_cache import PAGE, appended, newest


def tokens(count: int) -> list[Tensor]:
    return list(torch.randn(2, 3, count, 5, generator=generator(0, "keys")).split(1, dim=2))


@torch.inference_mode()
@pytest.mark.parametrize("window", [None, 1, 7, PAGE + 3])
def test_a_long_walk_holds_what_copies_hold(window: int | None) -> None:
    drawn = tokens(4 * PAGE)
    grown = copied = drawn[0]
    for token in drawn[1:]:
        grown, copied = appended(grown, token), torch.cat((copied, token), dim=2)
        if window is not None:
            grown, copied = newest(grown, window), copied[:, :, -window:]
        assert torch.equal(grown, copied)


@torch.inference_mode()
def test_continuations_of_one_state_do_not_meet() -> None:
    drawn = tokens(6)
    shared = appended(appended(drawn[0], drawn[1]), drawn[2])
    one = appended(shared, drawn[3])
    other = appended(shared, drawn[4])
    assert torch.equal(one, torch.cat(drawn[:4], dim=2))
    assert torch.equal(other, torch.cat((*drawn[:3], drawn[4]), dim=2))
    assert torch.equal(appended(one, drawn[5]), torch.cat((*drawn[:4], drawn[5]), dim=2))
    shorter = newest(one, 2)
    assert torch.equal(appended(shorter, drawn[5]), torch.cat((drawn[2], drawn[3], drawn[5]), dim=2))


@torch.inference_mode()
def test_most_tokens_are_not_copied() -> None:
    grown, places = tokens(1)[0], set()
    for token in tokens(8 * PAGE):
        grown = appended(grown, token)
        places.add(grown.untyped_storage().data_ptr())
    assert len(places) <= 6


def test_gradients_reach_every_key() -> None:
    first, second = (token.requires_grad_() for token in tokens(2))
    appended(appended(first, second), second).square().sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    assert torch.equal(second.grad, 4 * second)
