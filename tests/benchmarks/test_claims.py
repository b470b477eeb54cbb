"""Claims: every file asks a fair question, verdicts follow from the numbers, and one claim runs from text to answer."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fairway.core.errors import ConfigError
from fairway.core.storage import read_json, write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _on_the_path() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


def module(name: str) -> Any:
    return importlib.import_module(f"claims.{name}")


def made(**changes: Any) -> Any:
    """A claim of two arms with some settings changed."""
    plain = {
        "question": "Is wide better?",
        "prediction": "Yes.",
        "source": "nobody",
        "arms": {"wide": [], "same": []},
        "comparisons": [{"arm": "wide", "than": "same"}],
        "equal": ["parameters", "steps"],
        "steps": 3,
    }
    return module("claim").Claim.read({**plain, **changes})


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks" / "claims").glob("*.yaml")))
def test_every_claim_holds_equal_what_it_promises(name: str) -> None:
    claim = module("claim").read_claim(name)
    assert set(module("claim").check(claim)) == set(claim.arms)
    for arm in claim.arms:
        for setting in claim.settings(arm):
            claim.recipe(arm, 0, setting)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {"wide": ["model.width=128"], "same": []}}, "equal parameters"),
        ({"arms": {"wide": ["model.ffn.ratio=8"], "same": []}, "equal": ["flops", "steps"]}, "equal flops"),
        ({"arms": {"wide": {"length": 2}, "same": []}}, "equal steps"),
        ({"bytes": "2MB", "equal": ["bytes", "steps"]}, "even at the finest step"),
    ],
)
def test_an_unfair_claim_is_refused_before_it_trains(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        module("claim").check(made(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"comparisons": [{"arm": "wide", "than": "none"}]}, "two of the arms"),
        ({"seconds": 3}, "not both"),
        ({"equal": ["parameters"]}, "equal must name steps"),
        ({"arms": {"wide": {"taught": True}, "same": []}}, "go together"),
        ({"comparisons": [{"arm": "wide", "than": "same", "metric": "beyond_context"}]}, "needs a context"),
    ],
)
def test_a_claim_that_does_not_hang_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(**changes)


def test_the_seconds_of_a_teacher_count() -> None:
    arms = {"wide": {"taught": True, "overrides": ["distill.loss.kind=soft"]}, "same": {"length": 2}}
    fair = made(arms=arms, teacher=[])
    assert module("claim").check(fair)
    with pytest.raises(ConfigError, match="equal steps"):
        module("claim").check(made(arms={**arms, "same": []}, teacher=[]))


def test_a_factor_on_the_rates_reaches_every_rate() -> None:
    claim = made(grid={"rates": [1, 0.5]})
    (whole,), (half,) = claim.settings("wide")
    one, two = (claim.recipe("wide", 0, (setting,)).train.optimizer for setting in (whole, half))
    assert two.lr == one.lr / 2
    assert two.rates.embedding == one.rates.embedding / 2
    assert claim.settings("wide", 1) == [(whole,)]


def runs_of(**values: list[float]) -> dict[str, list[dict[str, Any]]]:
    return {arm: [{"bits_per_byte": value} for value in those] for arm, those in values.items()}


@pytest.mark.parametrize(
    ("wide", "same", "margin", "verdict"),
    [
        ([1.00, 1.01, 0.99], [1.20, 1.21, 1.19], 0.0, "yes"),
        ([1.20, 1.21, 1.19], [1.00, 1.01, 0.99], 0.0, "no"),
        ([1.00, 1.20, 0.90], [1.05, 1.15, 0.95], 0.0, "unresolved"),
        ([1.00, 1.01, 0.99], [1.00, 1.01, 0.99], -0.1, "yes"),
        ([1.00, 1.01, 0.99], [1.05, 1.06, 1.04], 0.1, "no"),
        ([1.00], [2.00], 0.0, "unresolved"),
    ],
)
def test_a_verdict_says_whether_the_prediction_held(
    wide: list[float], same: list[float], margin: float, verdict: str
) -> None:
    claim = made(comparisons=[{"arm": "wide", "than": "same", "margin": margin}])
    (row,) = module("verdict").judge(claim, runs_of(wide=wide, same=same))
    assert row["verdict"] == verdict
    if len(wide) > 1:
        assert row["difference"] == pytest.approx(sum(wide) / 3 - sum(same) / 3)
        assert row["low"] < row["difference"] < row["high"]


def test_several_comparisons_are_corrected_together() -> None:
    arms = {"wide": [], "same": [], "third": []}
    comparisons = [{"arm": "wide", "than": "same"}, {"arm": "wide", "than": "third"}]
    claim = made(arms=arms, comparisons=comparisons)
    runs = runs_of(wide=[1.0, 1.02, 0.98], same=[1.05, 1.07, 1.03], third=[1.05, 1.07, 1.03])
    both = module("verdict").judge(claim, runs)
    assert [row["verdict"] for row in both] == ["unresolved", "unresolved"]
    assert all(row["p"] < 0.05 < row["p_corrected"] for row in both)


def test_steps_to_equal_loss_lie_between_the_measured_points() -> None:
    verdict = module("verdict")
    fast, slow = [[10, 1.0, 3.0], [20, 2.0, 1.0]], [[10, 2.0, 3.5], [20, 4.0, 2.0]]
    runs = {"wide": [{"curve": fast}], "same": [{"curve": slow}]}
    assert verdict.target_of(runs) == 2.0
    assert verdict.values_of(made(), "steps_to_loss", runs) == {"wide": [15.0], "same": [20.0]}
    assert verdict.values_of(made(), "seconds_to_loss", runs) == {"wide": [1.5], "same": [4.0]}


def test_written_text_is_measured_by_its_runs_of_four_tokens() -> None:
    measure = module("measure")
    loop, plain, short = [1, 2, 3, 4, 1, 2, 3, 4], [5, 6, 7, 8, 9], [1, 2, 3]
    assert measure.repetition([loop, plain, short]) == pytest.approx((1 / 5 + 0) / 2)
    assert measure.sameness([loop, plain, short]) == pytest.approx(1 / 7)
    assert measure.sameness([plain, plain]) == pytest.approx(1 / 2)
    assert measure.repetition([plain, plain]) == measure.repetition([short]) == measure.sameness([]) == 0.0


def test_the_page_sets_what_students_write_beside_the_corpus() -> None:
    arms = {"wide": {"taught": True}, "same": {"length": 2}}
    claim = made(arms=arms, teacher=[])
    figures = {"mean": 0.5, "sigma": 0.1, "n": 2}
    counts = dict.fromkeys(("bits_per_byte", "repetition", "sameness", "bytes", "steps", "seconds"), figures)
    answer = {
        "name": "wide", "claim": claim.plain(), "comparisons": [], "tuned": {}, "date": "2026-01-01",
        "arms": dict.fromkeys(arms, counts), "sizes": {arm: {"parameters": 1, "flops": 1e6} for arm in arms},
        "of_the_corpus": {"repetition": {**figures, "mean": 0.25}, "sameness": {**figures, "mean": 0.75}},
        "machine": {"processor": "none", "torch threads": 1}, "versions": {"torch": "2"},
    }  # fmt: skip
    page = "\n".join(module("page")._section(answer))
    assert "| arm | n | bits per byte | 4-grams repeated within its text | 4-grams repeated over its texts |" in page
    assert "within its text 0.25 ± 0.1, 4-grams repeated over its texts 0.75 ± 0.1" in page


@pytest.mark.slow
def test_a_claim_runs_from_text_to_page_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    script, work = ROOT / "benchmarks" / "claims" / "run.py", tmp_path / "work"
    command = [sys.executable, str(script), "context_extension", "--smoke", "--work", str(work)]
    first = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    assert first.stdout.count("seed 1") == 5
    answer = tmp_path / "work-smoke" / "context_extension.json"
    found = read_json(answer)
    assert {arm: figures["beyond_context"]["n"] for arm, figures in found["arms"].items()} == dict.fromkeys(
        ("yarn", "ntk", "dynamic_ntk", "interpolation", "none"), 2
    )
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    assert read_json(answer)["runs"] == found["runs"]
    assert again.stdout == first.stdout
    write_json(tmp_path / "answers" / "context_extension.json", found)
    page = module("page").render(tmp_path / "answers")
    assert "## context_extension" in page
    assert page.count("| yarn below") == 3
