"""Every quantiser: any weight at any strength, zeros that stay zero, finer steps that cost more and err
less.
"""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.examples import layer, model, text
from fairway.artifact.format import read, restore, unpack
from fairway.artifact.parts import Packed
from fairway.artifact.table import Histogram
from fairway.compress.calibrate import linear_weights
from fairway.compress.fit import compress_model, quantized
from fairway.compress.parts import Piece, Quantizer, Statistics
from fairway.compress.plan import QUANTIZERS, CompressConfig
from fairway.compress.predict import is_quantized
from fairway.model.parts import Role, parameter_roles

KINDS = QUANTIZERS.kinds()
UNIFORM = ("rtn", "gptq", "qat")


def quantizer(kind: str) -> Quantizer:
    return CompressConfig.read({"quantize": kind}).quantize.build()


def piece(rows: int = 24, columns: int = 64, kept: float | None = None, seed: int = 0) -> Piece:
    weight_RC, x_NC = layer(rows, columns, seed=seed)
    x_NC = x_NC.float()
    mask = None
    if kept is not None:
        mask = torch.rand(weight_RC.shape, generator=torch.Generator().manual_seed(seed)) < kept
    statistics = Statistics(len(x_NC), (x_NC.T @ x_NC).double())
    return Piece("w", Role.MATRIX, (rows, columns), weight_RC.float() * 0.05, statistics, mask)


def bits(packed: Packed) -> float:
    return sum(Histogram.of(array).entropy() for array in packed.arrays.values()) / packed.size


def error(packed: Packed, original: Tensor) -> float:
    return float((unpack("w", packed) - original).square().sum() / original.square().sum())


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_weight_keeps_its_shape_and_most_of_its_values(kind: str) -> None:
    original = piece()
    made = quantizer(kind)
    packed = made.quantize(original, made.finest)
    assert packed.shape == (24, 64)
    assert error(packed, original.weight_RC) < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_piece_gives_the_same_integers(kind: str) -> None:
    first, second = (quantizer(kind).quantize(piece(), -1.0) for _ in range(2))
    assert first.settings == second.settings
    assert all((array == second.arrays[name]).all() for name, array in first.arrays.items())


@pytest.mark.parametrize("kind", KINDS)
def test_quantising_leaves_the_weight_alone(kind: str) -> None:
    original = piece(kept=0.5)
    before = original.weight_RC.clone()
    quantizer(kind).quantize(original, 0.0)
    assert torch.equal(original.weight_RC, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [-3.0, -0.5])
def test_removed_weights_are_exactly_zero(kind: str, strength: float) -> None:
    original = piece(kept=0.4)
    assert original.kept_RC is not None
    restored = unpack("w", quantizer(kind).quantize(original, strength))
    assert not restored[~original.kept_RC].any()
    assert float((restored[original.kept_RC] != 0).float().mean()) > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_more_strength_means_fewer_bits(kind: str) -> None:
    made = quantizer(kind)
    original = piece(64, 96)
    strengths = [made.finest, -2.0, 0.0, 1.0, made.coarsest]
    costs = [bits(made.quantize(original, strength)) for strength in strengths]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(costs))
    assert costs[-1] < 0.75 * costs[0]


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_weights_are_quantised_too(kind: str) -> None:
    """All zero, one row of zeros, a single column, a single huge weight, values near the limits of float32."""
    base = piece(4, 8).weight_RC
    row = base.clone()
    row[1] = 0
    spike = base.clone()
    spike[2, 3] = 1000.0
    for weight_RC in (torch.zeros(4, 8), row, base[:, :1].clone(), spike, base * 1e-12, base * 1e12):
        shape = tuple(weight_RC.shape)
        gram_CC = torch.eye(shape[1], dtype=torch.float64)
        for strength in (-4.0, 0.0, 2.0):
            packed = quantizer(kind).quantize(
                Piece("w", Role.MATRIX, shape, weight_RC, Statistics(10, gram_CC)), strength
            )
            restored = unpack("w", packed)
            assert bool(restored.isfinite().all())
            assert not restored[weight_RC.abs().sum(dim=1) == 0].any() or kind == "binary"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_three_dimensions_keep_them(kind: str) -> None:
    original = piece(24, 64)
    cube = Piece("w", Role.MATRIX, (2, 12, 64), original.weight_RC)
    assert tuple(unpack("w", quantizer(kind).quantize(cube, -1.0)).shape) == (2, 12, 64)


@pytest.mark.parametrize("kind", UNIFORM)
def test_errors_inside_the_range_are_at_most_half_a_step_where_nothing_is_fed_back(kind: str) -> None:
    weight_RC = piece().weight_RC
    alone = Piece("w", Role.MATRIX, (24, 64), weight_RC)
    packed = quantizer(kind).quantize(alone, -1.0)
    exponents = torch.from_numpy(packed.arrays["steps"].astype(float)) + packed.settings["base"]
    steps = 2 ** (exponents / packed.settings["resolution"])
    assert bool(((unpack("w", packed) - weight_RC).abs() <= steps[:, None] / 2 * (1 + 1e-5)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_covered_by_exactly_one_packing(kind: str) -> None:
    subject = model().requires_grad_(False)
    config = CompressConfig.read({"quantize": kind})
    packed = quantized(subject, config.quantize.build(), -1.0, config, {}, text())
    roles = parameter_roles(subject)
    assert list(packed) == list(roles)
    for name, parameter in subject.named_parameters():
        assert packed[name].shape == tuple(parameter.shape)
        assert (packed[name].kind == "raw") == (not is_quantized(roles[name], tuple(parameter.shape)))


@pytest.mark.parametrize("kind", KINDS)
def test_from_30_to_100_per_cent_of_what_it_needs_the_file_fills_the_cap(kind: str, tmp_path: Path) -> None:
    subject = model(width=64)
    settings = {"quantize": kind}
    path = tmp_path / "model.fwy"

    def fit(cap: int) -> int:
        found = compress_model(subject, "byte", b"", CompressConfig.read(settings), cap, path, {}, text())
        assert abs(found.predicted_bytes - found.bytes) <= 0.01 * found.bytes
        assert path.stat().st_size == found.bytes
        return found.bytes

    needed = fit(10**7)
    for percent in (35, 60, 90):
        cap = needed * percent // 100
        assert 0.995 * cap <= fit(cap) <= cap
    assert set(restore(read(path))) == {name for name, _ in subject.named_parameters()}


def test_the_law_of_zeros_catches_a_quantiser_that_revives_removed_weights() -> None:
    original = piece(kept=0.4)
    assert original.kept_RC is not None
    careless = Piece("w", Role.MATRIX, original.shape, original.weight_RC, original.statistics, None)
    assert unpack("w", quantizer("rtn").quantize(careless, -1.0))[~original.kept_RC].any()


def test_error_feedback_sees_every_linear_map_that_text_reaches() -> None:
    subject = model().requires_grad_(False)
    config = CompressConfig.read({"quantize": "gptq"})
    with_text = quantized(subject, config.quantize.build(), 0.0, config, {}, text())
    plain = CompressConfig.read({"quantize": "rtn"})
    without = quantized(subject, plain.quantize.build(), 0.0, plain, {}, [])
    changed = {
        name
        for name, packed in with_text.items()
        if any((a != without[name].arrays[k]).any() for k, a in packed.arrays.items())
    }
    assert changed == set(linear_weights(subject).values())
