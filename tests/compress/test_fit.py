"""Files just below the cap, at any cap; predictions within one per cent; every parameter stored exactly
once."""

from pathlib import Path

import pytest
import torch

from fairway.artifact.format import read, restore
from fairway.compress.fit import Fit, _Attempt, compress_model, search
from fairway.compress.plan import CompressConfig
from fairway.compress.predict import gaussian_bits, predict_bytes, predict_strength
from fairway.core.errors import BudgetError
from fairway.model.lm import LanguageModel, ModelConfig

MODEL = ModelConfig.read({"width": 96, "context": 32, "mixer": {"kind": "attention", "heads": 4}, "depth": 4})
VOCABULARY = 300
TOKENIZER = bytes(range(200))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Heavy-tailed weights with rows of different sizes, as training makes them."""
    made = MODEL.build(VOCABULARY, seed=1)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.05, generator=random)
                parameter.mul_(torch.randn(len(parameter), 1, generator=random).mul(0.3).exp())
                parameter.mul_(torch.randn(parameter.shape, generator=random).mul(0.3).exp())
    return made


def fit(model: LanguageModel, cap: int, path: Path, **settings: object) -> Fit:
    return compress_model(model, "bpe", TOKENIZER, CompressConfig.read(settings), cap, path, {"fairway": "0.1.0"})


def needed(model: LanguageModel, path: Path) -> int:
    """Bytes at the finest step that is worth storing."""
    return fit(model, 10**8, path).bytes


def test_the_file_fills_the_cap_and_never_exceeds_it(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "model.fwy"
    whole = needed(model, path)
    for percent in range(30, 100, 7):
        cap = whole * percent // 100
        found = fit(model, cap, path)
        assert path.stat().st_size == found.bytes
        assert 0.995 * cap <= found.bytes <= cap
        assert abs(found.predicted_bytes - found.bytes) <= 0.01 * found.bytes
        assert found.report.total == found.bytes


def test_a_generous_cap_is_not_filled_with_digits_that_carry_nothing(model: LanguageModel, tmp_path: Path) -> None:
    found = fit(model, 10**8, tmp_path / "model.fwy")
    assert found.strength == CompressConfig().finest
    assert found.bytes < 1.2 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("quantize", "words"),
    [("rtn", "compress.finest"), ("nf4", "sixteen levels"), ("ternary", "three levels"), ("binary", "two levels"),
     ("kmeans", "compress.quantize.clusters")],
)  # fmt: skip
def test_a_file_far_below_the_cap_says_why_and_what_would_fill_it(
    model: LanguageModel, tmp_path: Path, quantize: str, words: str
) -> None:
    said: list[str] = []
    config = CompressConfig.read({"quantize": quantize, "prune": "magnitude"})
    path = tmp_path / "model.fwy"
    found = compress_model(
        model, "byte", b"", config, 900_000, path, {}, listener=lambda event: said.append(event.message or "")
    )
    assert found.bytes < 0.995 * 900_000
    assert words in found.note
    assert f"{found.bytes:,} of 900,000" in found.note
    assert "compress.prune.kind=magnitude" in found.note
    assert said[-1] == found.note
    assert fit(model, found.bytes * 2 // 3, path, quantize=quantize, prune="magnitude").note == ""


def test_a_finer_step_brings_the_weights_nearer(model: LanguageModel, tmp_path: Path) -> None:
    whole = needed(model, tmp_path / "model.fwy")
    errors = []
    for percent in (35, 55, 75):
        fit(model, whole * percent // 100, tmp_path / "model.fwy")
        restored = restore(read(tmp_path / "model.fwy"))
        errors.append(sum(float((restored[n] - p.detach()).square().sum()) for n, p in model.named_parameters()))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_the_artifact_rebuilds_the_model(model: LanguageModel, tmp_path: Path) -> None:
    fit(model, 10**8, tmp_path / "model.fwy")
    found = read(tmp_path / "model.fwy")
    rebuilt = ModelConfig.read(found.model).skeleton(found.vocabulary).to_empty(device="cpu")
    rebuilt.load_state_dict(restore(found), strict=True)
    tokens_BT = torch.arange(32)[None]
    with torch.no_grad():
        ours = rebuilt.logits(rebuilt(tokens_BT).hidden_BTD)
        theirs = model.logits(model(tokens_BT).hidden_BTD)
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05
    assert found.tokenizer == TOKENIZER


def test_compressing_leaves_the_model_as_it_was(model: LanguageModel, tmp_path: Path) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(model, 100_000, tmp_path / "model.fwy")
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("expected", [1_900, 2_600, 12_000])
@pytest.mark.parametrize("share", [0.31, 0.5, 0.8, 0.97, 0.999])
def test_the_search_finds_the_step_however_wrong_the_expected_slope_is(share: float, expected: float) -> None:
    """With too small a slope it jumps to an end of the range that need not fit; with too large a one it would creep."""

    def attempt(strength: float) -> _Attempt:
        size = round(20_700 - 1_900 * (strength + 6))
        return _Attempt(strength, size, bytes(size))

    cap = round(20_700 * share)
    for start in (-1.0, -5.0, 1.0):
        found, count = search(attempt, cap, start, -6.0, 2.0, expected)
        assert 0.995 * cap <= found.size <= cap
        assert count <= 8


def test_a_margin_is_left_free(model: LanguageModel, tmp_path: Path) -> None:
    found = fit(model, 200_000, tmp_path / "model.fwy", margin=20_000)
    assert 0.995 * 180_000 <= found.bytes <= 180_000


def test_a_cap_that_cannot_be_met_is_refused_with_figures_and_nothing_is_written(
    model: LanguageModel, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match=r"takes [\d,]+ bytes, and 10 are allowed"):
        fit(model, 10, tmp_path / "model.fwy")
    assert not list(tmp_path.iterdir())


def test_embeddings_get_a_finer_step_if_asked(model: LanguageModel, tmp_path: Path) -> None:
    errors = {}
    for finer in (1.0, 4.0):
        fit(model, 200_000, tmp_path / "model.fwy", embedding_finer=finer)
        restored = restore(read(tmp_path / "model.fwy"))["embedding.weight"]
        errors[finer] = float((restored - model.state_dict()["embedding.weight"]).square().mean())
    assert errors[4.0] < errors[1.0] / 4


def test_gaussian_bits_follow_the_formula_for_fine_steps_and_vanish_for_coarse_ones() -> None:
    assert gaussian_bits(-4.5) == pytest.approx(2.0471 + 4.5, abs=1e-4)
    assert gaussian_bits(-2.0) == pytest.approx(2.0471 + 2.0, abs=5e-3)
    assert gaussian_bits(-3.999) - gaussian_bits(-4.001) == pytest.approx(-0.002, abs=4e-4)
    assert 0 < gaussian_bits(2.0) < 0.35
    weights = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    for strength in (-3.0, -1.0, 0.0, 1.0):
        counts = torch.unique(torch.round(weights / 2**strength), return_counts=True)[1].double() / len(weights)
        assert gaussian_bits(strength) == pytest.approx(float(-(counts * counts.log2()).sum()), abs=0.01)


def test_the_size_of_a_model_yet_to_be_trained_is_known_within_one_per_cent(tmp_path: Path) -> None:
    """Of a model whose weights turn out Gaussian, as the prediction says."""
    config = ModelConfig.read({"width": 192, "context": 32, "depth": 4})
    made = config.build(512, seed=3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    for cap in (500_000, 900_000):
        found = fit(made, cap, tmp_path / "model.fwy")
        assert predict_bytes(config, 512, 200, found.strength) == pytest.approx(found.bytes, rel=0.01)
        assert predict_strength(config, 512, 200, cap) == pytest.approx(found.strength, abs=0.05)
