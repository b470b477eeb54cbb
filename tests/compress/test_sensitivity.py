"""Steps by sensitivity: least loss at equal bits, curvature in the right place, files within their caps."""

from pathlib import Path

import pytest
import torch

from compress.examples import model, text
from fairway.compress.fit import compress_model
from fairway.compress.plan import CompressConfig
from fairway.compress.predict import gaussian_bits
from fairway.compress.sensitivity import balanced, shifts
from fairway.core.errors import ConfigError

CURVATURE = {"a": 40.0, "b": 1.0, "c": 0.2}
DEVIATION = {"a": 0.5, "b": 1.0, "c": 3.0}
SIZES = {"a": 1000, "b": 4000, "c": 2000}


def loss(steps: dict[str, float]) -> float:
    """Half the curvature times the error of uniform rounding."""
    return sum(CURVATURE[n] * SIZES[n] * steps[n] ** 2 / 24 for n in SIZES)


def bits(strengths: dict[str, float]) -> float:
    return sum(SIZES[n] * gaussian_bits(strengths[n]) for n in SIZES)


def test_no_other_choice_of_steps_has_less_loss_at_equal_bits() -> None:
    own = balanced({n: CURVATURE[n] * DEVIATION[n] ** 2 for n in SIZES}, SIZES)
    assert sum(own[n] * SIZES[n] for n in SIZES) == pytest.approx(0, abs=1e-9)
    best = {n: -4.5 + own[n] for n in SIZES}
    found = loss({n: 2 ** best[n] * DEVIATION[n] for n in SIZES})
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        move = torch.randn(3, generator=random, dtype=torch.float64) * 0.3
        counts = torch.tensor(list(SIZES.values()), dtype=torch.float64)
        move -= (move @ counts) / counts.sum()
        other = {n: best[n] + float(d) for n, d in zip(SIZES, move, strict=True)}
        assert bits(other) == pytest.approx(bits(best), rel=1e-3)
        assert loss({n: 2 ** other[n] * DEVIATION[n] for n in SIZES}) > found


def test_what_the_loss_does_not_feel_gets_the_coarsest_step() -> None:
    assert balanced({"a": 1.0, "b": 0.0}, {"a": 10, "b": 10}) == {"a": 0.0, "b": 3.0}


@pytest.mark.parametrize("kind", ["fisher", "hutchinson"])
def test_a_map_behind_a_small_gain_gets_a_coarser_step(kind) -> None:
    subject = model()
    before = shifts(subject, text(), kind, {})
    name = next(name for name in before if "blocks.1" in name and name.endswith("ffn.output.weight"))
    with torch.no_grad():
        dict(subject.named_parameters())[name].mul_(0.01)
    after = shifts(subject, text(), kind, {})
    assert after[name] > before[name] + 0.5
    assert not any(parameter.grad is not None for parameter in subject.parameters())


def test_files_stay_within_their_caps_and_without_text_it_is_refused(tmp_path: Path) -> None:
    config, path = CompressConfig.read({"sensitivity": "fisher"}), tmp_path / "model.fwy"
    whole = compress_model(model(), "byte", b"", config, 10**7, path, {}, text()).bytes
    cap = whole * 6 // 10
    found = compress_model(model(), "byte", b"", config, cap, path, {}, text())
    assert 0.99 * cap <= found.bytes == path.stat().st_size <= cap
    with pytest.raises(ConfigError, match="sensitivity"):
        compress_model(model(), "byte", b"", config, cap, path, {})
