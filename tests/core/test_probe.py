import json
import sys
from pathlib import Path

import pytest
import torch

from fairway.core import probe


def test_a_ceiling_counts_two_operations_for_a_multiply_add(monkeypatch):
    monkeypatch.setattr(probe, "_best", lambda *_: 0.5)
    assert probe.gemm_ceiling(torch.float32, size=100) == pytest.approx(4 * 100**3)
    assert probe.copy_bandwidth(size=1000) == pytest.approx(4 * 1000)


def test_the_best_of_several_calls_is_taken(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert probe._best(lambda: calls.append(1), torch.zeros(1), 0.1) == 1.0
    assert len(calls) == 4


def test_ceilings_are_believable():
    assert 1e8 < probe.gemm_ceiling(torch.float32, size=128, seconds=0.02) < 1e15
    assert 1e7 < probe.copy_bandwidth(size=1 << 22, seconds=0.02) < 1e13


def test_a_diagnosis_is_plain_json_and_names_this_python(tmp_path: Path):
    found = json.loads(json.dumps(probe.diagnosis(tmp_path, seconds=0.001)))
    assert found["machine"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["torch"] == torch.__version__
    assert found["room"]["free_disk_bytes"] > 0
    assert isinstance(found["settings"]["native_kernels"], str)
    assert found["machine"]["devices"][0] == "cpu"


def test_a_package_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(probe, "OPTIONAL", {"json": "always there", "surely_not_a_package": "nothing"})
    found = probe.optional_packages()
    assert found["json"] == (True, "always there")
    assert found["surely_not_a_package"] == (False, "nothing")
    assert probe._version("surely-not-a-package") == "not installed"
