"""The benchmark of compression runs on a tiny run and writes its table, drawing and figures."""

import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from fairway.cli.console.application import invoke
from fairway.core.storage import read_json

ROOT = Path(__file__).parents[2]
SMALLER = ["model.width=32", "budget.bytes=12kB", "budget.steps=6", "data.max_bytes=300kB", "evaluate.max_bytes=6kB"]


@pytest.mark.slow
def test_every_point_is_a_file_within_its_size(tmp_path: Path) -> None:
    with chdir(tmp_path):
        assert invoke(["run", str(ROOT / "recipes" / "tiny.yaml"), *SMALLER, "--folder", "run"]) == 0
    text = ROOT / "README.md"
    chosen = ["--methods", "rtn,deep compression", "--percents", "50,90", "--bytes", "800", "--folder", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "compression.py"), str(tmp_path / "run"), str(text), *chosen]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    rows = read_json(tmp_path / "compression.json")["rows"]
    assert [row["percent"] for row in rows] == [100, 50, 90, 50, 90]
    assert all(row["bytes"] is None or row["bytes"] <= row["cap"] for row in rows)
    assert "| rtn |" in (tmp_path / "compression.md").read_text()
    assert "<svg" in (tmp_path / "compression.svg").read_text()
