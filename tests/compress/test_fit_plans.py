"""Every plan fills every cap that it can: all pruners, quantisers and coders from 30 to 100 % of what they need."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.examples import VOCABULARY, model, text
from fairway.artifact.format import read, restore
from fairway.compress.fit import Fit, compress_model
from fairway.compress.plan import PRUNERS, QUANTIZERS, CompressConfig
from fairway.core.errors import BudgetError
from fairway.model.lm import LanguageModel

FEW_LEVELS = ("nf4", "ternary", "binary")
"""Quantisers that may leave bytes unused, and say so."""
QUICK = ({"prune": "wanda"}, {"quantize": "kmeans", "coder": "huffman"})
MIXED: tuple[dict[str, Any], ...] = (
    {"coder": "range"},
    {"coder": "huffman"},
    {"prune": "wanda", "quantize": "lqer"},
    {"prune": "sparsegpt", "quantize": "gptq", "coder": "range"},
    {"prune": "magnitude", "quantize": "kmeans", "coder": "huffman"},
    {"prune": {"kind": "wanda", "pattern": "2:4"}},
    {"prune": "structured", "quantize": "trellis"},
    {"sensitivity": "fisher"},
    {"quantize": {"kind": "rtn", "row_power": 0.5}, "sensitivity": "kronecker"},
)


def plans() -> list[Any]:
    """One plan for each kind, and mixtures; all but two are slow."""
    singly: list[dict[str, Any]] = [{"prune": kind} for kind in PRUNERS.kinds() if kind != "none"]
    singly += [{"quantize": kind} for kind in QUANTIZERS.kinds()]
    cases = [*QUICK, *(plan for plan in (*singly, *MIXED) if plan not in QUICK)]
    return [pytest.param(case, id=str(case), marks=[] if case in QUICK else [pytest.mark.slow]) for case in cases]


@pytest.fixture(scope="module")
def subject() -> LanguageModel:
    """Rows of different sizes and heavy tails, as training makes them."""
    made = model(width=64, depth=2)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(torch.randn(len(parameter), 1, generator=random).mul(0.3).exp())
                parameter.mul_(torch.randn(parameter.shape, generator=random).mul(0.3).exp())
    return made


def fit(subject: LanguageModel, plan: dict[str, Any], cap: int, path: Path) -> Fit:
    return compress_model(subject, "byte", b"", CompressConfig.read(plan), cap, path, {}, text(batch=4))


@pytest.mark.parametrize("plan", plans())
def test_a_plan_fills_any_cap_between_a_third_and_all_of_what_it_needs_or_says_what_it_can(
    subject: LanguageModel, plan: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.fwy"
    needed = fit(subject, plan, 10**8, path).bytes
    few = plan.get("quantize") in FEW_LEVELS
    filled = 0
    for percent in (30, 50, 75, 100):
        cap = needed * percent // 100
        path.unlink(missing_ok=True)
        try:
            found = fit(subject, plan, cap, path)
        except BudgetError as error:
            least = re.search(r"takes ([\d,]+) bytes, and ([\d,]+) are allowed", str(error))
            assert least is not None
            assert int(least[2].replace(",", "")) == cap < int(least[1].replace(",", ""))
            assert percent <= 50
            assert few or percent == 30
            assert not path.exists()
            continue
        assert path.stat().st_size == found.bytes <= cap
        assert abs(found.predicted_bytes - found.bytes) <= 0.01 * found.bytes
        assert found.bytes >= 0.995 * cap or (few and f"{found.bytes:,}" in found.note)
        filled += found.bytes >= 0.995 * cap
        contents = read(path)
        assert contents.vocabulary == VOCABULARY
        assert all(tensor.isfinite().all() for tensor in restore(contents).values())
    assert filled >= (1 if few else 3)
