"""Attention: every setting keeps the whole contract, and each does what it says against the naive definition."""

from typing import Any

import pytest
import torch

from fairway.model.mixer.attention import Config
from fairway.model.parts import NO_CONTEXT, PositionConfig
from fairway.model.position import none as no_position
from fairway.model.position import rope, yarn
from fairway.ops.attention import blocked, naive
from laws import building
from laws.mixers import check_mixer, sample, site
from laws.state import TOLERANCE, check_isolation

VARIANTS: list[dict[str, Any]] = [
    {"heads": 6, "key_groups": 2},
    {"heads": 4, "key_groups": 1},
    {"window": 1},
    {"window": 5},
    {"window": 100},
    {"softcap": 2.0},
    {"exclusive": True, "key_groups": 3},
    {"qk_norm": False},
    {"window": 4, "softcap": 3.0, "exclusive": True, "key_groups": 2},
]


@pytest.mark.parametrize("settings", [v for v in VARIANTS if v.get("window") != 1])
def test_every_setting_keeps_the_contract(settings: dict[str, Any]) -> None:
    check_mixer(Config(kind="attention", **settings), flops_range=(0.3, 1.1))


def test_a_window_of_one_sees_its_own_token_alone() -> None:
    mixer = building.opened(lambda: Config(kind="attention", window=1).build(48, site()))
    x = sample()
    values = x @ mixer.value.weight.T
    assert torch.allclose(mixer(x)[0], values @ mixer.output.weight.T, atol=1e-12)


@pytest.mark.parametrize("settings", VARIANTS)
def test_every_setting_isolates_documents(settings: dict[str, Any]) -> None:
    mixer = building.opened(lambda: Config(kind="attention", **settings).build(48, site()))
    for border in (1, 9, 18):
        check_isolation(mixer, sample(), NO_CONTEXT, border, tolerance=TOLERANCE)


@pytest.mark.parametrize("settings", VARIANTS)
def test_every_setting_is_the_definition(settings: dict[str, Any]) -> None:
    config = Config(kind="attention", **settings)
    mixer = building.opened(lambda: config.build(48, site()))
    x, heads, groups = sample(), config.heads, config.key_groups or config.heads
    width = 48 // heads
    q, k, v = (
        (x @ w.weight.T).unflatten(2, (-1, width)).transpose(1, 2) for w in (mixer.query, mixer.key, mixer.value)
    )
    if config.qk_norm:
        q = mixer.norm.gain * q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.gain_H[:, None, None]
        k = mixer.norm.gain * k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    place = torch.arange(19)[None]
    q, k = mixer.position.rotate(q, place, 0), mixer.position.rotate(k, place, 0)
    first = None if config.window is None else (place - config.window + 1).clamp_min(0).expand(2, -1)
    y = naive.attend(q, k, v, first, config.softcap)
    if config.exclusive:
        own = v.repeat_interleave(heads // groups, dim=1)
        y = y - (y * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True) * own
    expected = y.transpose(1, 2).flatten(2) @ mixer.output.weight.T
    assert torch.allclose(mixer(x)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (7, 7), (5, 12), (200, 200), (130, 170)])
def test_blocks_of_attention_are_the_definition_with_all_gradients(queries: int, keys: int) -> None:
    g = torch.Generator().manual_seed(queries)
    small = queries <= 12
    q = torch.randn(1, 2, queries, 4, generator=g, dtype=torch.float64).requires_grad_()
    k, v = (torch.randn(1, 1, keys, 4, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    first = torch.randint(0, keys - queries + 1, (1, queries), generator=g)
    for begin, cap in ((None, None), (first, 2.0)) if small else ((first, None),):
        ours, exact = blocked.attend(q, k, v, begin, cap), naive.attend(q, k, v, begin, cap)
        assert torch.allclose(ours, exact, rtol=0, atol=1e-12)
        weight = torch.randn(exact.shape, generator=g, dtype=torch.float64)
        for a, b in zip(
            torch.autograd.grad((ours * weight).sum(), (q, k, v)),
            torch.autograd.grad((exact * weight).sum(), (q, k, v)),
            strict=True,
        ):
            assert torch.allclose(a, b, rtol=0, atol=1e-11)


def test_tokens_left_out_keep_the_positions_of_the_others() -> None:
    mixer = building.opened(lambda: Config(kind="attention").build(48, site()))
    x = sample(length=4)
    places = torch.tensor([[0, 3, 7, 20], [1, 2, 3, 4]])
    y, state = mixer(x, None, NO_CONTEXT.with_(positions_BT=places))
    later, _ = mixer(x[:, :1], state, NO_CONTEXT.with_(positions_BT=places[:, -1:] + 5))
    both, _ = mixer(
        torch.cat((x, x[:, :1]), 1), None, NO_CONTEXT.with_(positions_BT=torch.cat((places, places[:, -1:] + 5), 1))
    )
    assert torch.allclose(torch.cat((y, later), 1), both, atol=1e-11)
    assert (y[1] - mixer(x)[0][1]).abs().max() < 1e-11
    assert (y[0] - mixer(x)[0][0]).abs().max() > 1e-6


@pytest.mark.parametrize(
    "position",
    [rope.Config(), rope.Config(fraction=0.5), rope.Config(interleaved=True), yarn.Config(), no_position.Config()],
)
@pytest.mark.parametrize("settings", [{}, {"key_groups": 2}, {"qk_norm": False}])
def test_norm_and_rotation_at_once_are_the_two_after_each_other(
    settings: dict[str, Any], position: PositionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer = building.opened(lambda: Config(kind="attention", **settings).build(48, site(position)))
    x = sample().requires_grad_()
    y = mixer(x)[0]
    (seen,) = torch.autograd.grad(y.sin().sum(), x)
    monkeypatch.setattr(mixer, "_angles", lambda *_: None)
    apart = mixer(x)[0]
    (wanted,) = torch.autograd.grad(apart.sin().sum(), x)
    assert torch.allclose(y, apart, rtol=0, atol=1e-12)
    assert torch.allclose(seen, wanted, rtol=0, atol=1e-11)
