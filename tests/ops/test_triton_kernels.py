"""The GPU kernels against their definitions: on Triton's interpreter, by the compiler alone, and on a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from laws.triton_paths import BF16, OPS, STRONG, Case, cases, errors, halves

TESTS = Path(__file__).parents[1]
ARCHITECTURES = (80, 90)
SHARED = 99 * 1024
"""Bytes of shared memory that every GPU since Ampere gives a block."""


def ran(module: str, *arguments: str, **more: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def interpreted(op: str, *names: str) -> dict[str, list[float]]:
    return json.loads(ran("laws.triton_paths", op, *names, TRITON_INTERPRET="1"))


def judge(op: str, found: dict[str, list[float]]) -> None:
    assert max(found.pop("halves")) < 5e-6
    for name, seen in found.items():
        assert max(seen) <= cases(op)[name].tolerance, (op, name, seen)


def test_one_token_of_retention_is_that_of_the_definition() -> None:
    judge("retention", interpreted("retention", "one"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("op", OPS)
def test_the_interpreted_kernels_give_what_the_definition_gives(op: str) -> None:
    judge(op, interpreted(op, *cases(op)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_interpreted_kernels_are_proper_operators_and_mixers_find_them() -> None:
    assert json.loads(ran("laws.triton_operators", TRITON_INTERPRET="1")) == {
        "not proper": [],
        "not found": [],
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("op", OPS[:-1])
def test_every_kernel_compiles_for_gpus_and_fits_their_shared_memory(op: str) -> None:
    for architecture in ARCHITECTURES:
        compiled = json.loads(ran("laws.triton_compiling", op, str(architecture)))
        assert len(compiled) >= 2
        assert max(compiled.values()) <= SHARED, (architecture, compiled)


LARGE = {
    "ragged": Case(1000, batch=3, heads=5, keys=64, values=128),
    "documents": Case(777, batch=2, heads=4, keys=128, values=64, starts=True),
    "strong": Case(300, heads=4, keys=64, values=64, decay=50.0, tolerance=STRONG),
    "half": Case(2048, heads=4, keys=64, values=64, dtype=torch.bfloat16, starts=True, tolerance=BF16),
}
LARGE_SCANS = {
    "ragged": Case(1000, keys=16, values=100),
    "half": Case(2048, keys=16, values=256, dtype=torch.bfloat16, starts=True, tolerance=BF16),
}


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_the_kernels_on_a_gpu_give_what_the_definition_gives(op: str) -> None:
    for name, case in cases(op).items():
        assert max(errors(op, case, "cuda")) <= case.tolerance, name
    assert halves(op, "cuda") < 5e-6


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_large_shapes_on_a_gpu_give_what_the_chunked_form_gives(op: str) -> None:
    for name, case in (LARGE_SCANS if op.startswith("selective_scan") else LARGE).items():
        assert max(errors(op, case, "cuda", "chunk")) <= case.tolerance, name
