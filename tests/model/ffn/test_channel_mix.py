"""RWKV-4 channel mixing beside its equation, token by token."""

import torch

from fairway.model.ffn.channel_mix import ChannelMix, Config
from fairway.model.parts import Context, Site
from laws import building
from laws.mixers import sample

WIDTH = 12


def opened(site: Site = Site()) -> ChannelMix:  # noqa: B008
    ffn = building.opened(lambda: Config().build(WIDTH, site))
    assert isinstance(ffn, ChannelMix)
    return ffn


def by_hand(ffn: ChannelMix, x_TD: torch.Tensor, starts_T: torch.Tensor) -> torch.Tensor:
    """The equation as a loop over one sequence."""
    rows, before = [], torch.zeros_like(x_TD[0])
    for x, start in zip(x_TD, starts_T, strict=True):
        before = torch.zeros_like(x) if start else before
        k = ffn.key.weight @ (ffn.share_key_D * x + (1 - ffn.share_key_D) * before)
        r = ffn.receptance.weight @ (ffn.share_receptance_D * x + (1 - ffn.share_receptance_D) * before)
        rows.append((ffn.output.weight @ k.clamp_min(0) ** 2) / (1 + torch.exp(-r)))
        before = x
    return torch.stack(rows)


def test_channel_mixing_is_its_equation_and_forgets_at_document_borders() -> None:
    ffn, x = opened(Site(layer=1, layers=3)), sample(WIDTH)
    starts_BT = torch.zeros(x.shape[:2], dtype=torch.bool)
    starts_BT[0, 5] = starts_BT[1, 0] = True
    expected = torch.stack([by_hand(ffn, row, starts) for row, starts in zip(x, starts_BT, strict=True)])
    y, _, _ = ffn(x, None, Context(None, starts_BT))
    assert torch.allclose(y, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(ffn(x)[0], expected, rtol=0, atol=1e-6)


def test_its_state_is_the_last_input() -> None:
    x = sample(WIDTH)
    _, (last,), _ = opened()(x)
    assert torch.equal(last, x[:, -1:])


def test_early_channels_of_the_first_layer_look_at_the_token_before() -> None:
    with torch.no_grad():
        ffn = Config().build(WIDTH, Site(layer=0, layers=2))
        ffn.init_weights(torch.Generator())
    assert isinstance(ffn, ChannelMix)
    assert torch.allclose(ffn.share_key_D, torch.arange(WIDTH) / WIDTH)


def test_at_three_and_a_half_it_has_the_parameters_of_an_ungated_feedforward() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in Config(ratio=3.5).build(192).parameters())
    assert abs(count / (8 * 192 * 192) - 1) < 0.002
