"""The machine as the process may use it."""

import builtins
import io
import os
from typing import Any

import pytest
import torch

from fairway.core import device
from fairway.core.errors import ConfigError

MATMUL = torch.backends.mkldnn.matmul  # pyrefly: ignore[missing-attribute]


def quota(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    real = builtins.open

    def fake(path: Any, *rest: Any, **more: Any) -> Any:
        if path != "/sys/fs/cgroup/cpu.max":
            return real(path, *rest, **more)
        if text is None:
            raise FileNotFoundError(path)
        return io.StringIO(text)

    monkeypatch.setattr(builtins, "open", fake)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("200000 100000\n", 2),
        ("max 100000\n", 8),
        ("50000 100000\n", 1),
        ("9900000 100000\n", 8),
        ("nonsense", 8),
        (None, 8),
    ],
)
def test_threads_follow_the_affinity_and_the_containers_quota(
    text: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota(monkeypatch, text)
    assert device.available_threads() == threads


@pytest.mark.parametrize(("wished", "threads"), [("3", 3), ("100", 8), ("many", 8), ("", 8)])
def test_the_users_own_wish_for_fewer_threads_is_kept(
    wished: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota(monkeypatch, None)
    monkeypatch.setenv("OMP_NUM_THREADS", wished)
    assert device.available_threads() == threads


def test_the_number_of_threads_asked_for_is_the_number_in_use() -> None:
    before = torch.get_num_threads()
    try:
        assert device.use_threads(1) == torch.get_num_threads() == 1
        assert device.use_threads() == torch.get_num_threads() == device.available_threads()
    finally:
        torch.set_num_threads(before)


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device.select("auto").type == kind


def test_an_unknown_device_is_refused_with_what_would_work() -> None:
    with pytest.raises(ConfigError, match='no device "gpu"; auto, cpu or cuda would work'):
        device.select("gpu")


def test_a_gpu_that_is_not_there_is_refused_and_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        device.select("cuda:1")


def test_peak_memory_grows_with_what_is_touched_and_stays() -> None:
    before = device.peak_memory()
    block = bytearray(before)
    block[::4096] = b"x" * len(block[::4096])
    grown = device.peak_memory()
    del block
    assert grown > before * 1.4
    assert device.peak_memory() >= grown


def test_free_memory_is_some_and_less_than_the_machine_has() -> None:
    assert 0 < device.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_keeping_freed_memory_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRWAY_KEEP_FREED_MEMORY", "0")
    assert device.keep_freed_memory() is False


def test_the_route_of_float32_products_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRWAY_ONEDNN_FLOAT32", "0")
    assert device.route_float32_products() is False


def test_float32_products_keep_their_precision_on_whatever_route() -> None:
    before = MATMUL.fp32_precision
    left, right = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(0))
    try:
        device.route_float32_products()
        error = (left @ right).double() - left.double() @ right.double()
    finally:
        MATMUL.fp32_precision = before
    assert error.norm() < 1e-6 * (left.double() @ right.double()).norm()


@pytest.mark.parametrize(
    ("facts", "slow", "slow_forward"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n", True, True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t: fma avx512f avx512bw\n", False, True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t: fma avx2\n", False, False),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nflags\t: avx512f\n", False, False),
        ("", False, False),
    ],
)
def test_the_route_is_for_processors_that_gain_by_it(
    facts: str, slow: bool, slow_forward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "open", lambda *_: io.StringIO(facts))
    assert device._mkl_is_slow() is slow
    assert device._mkl_is_slow(forward_only=True) is slow_forward


def test_a_route_that_rounds_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = MATMUL.fp32_precision
    monkeypatch.setattr(device, "_mkl_is_slow", lambda _: True)
    monkeypatch.setattr(device, "_products_are_float32", lambda: False)
    assert device.route_float32_products() is False
    assert MATMUL.fp32_precision == before


def test_repeatable_arithmetic_does_not_depend_on_settings() -> None:
    left, right = torch.randn(2, 200, 200, generator=torch.Generator().manual_seed(0))
    before, threads = MATMUL.fp32_precision, torch.get_num_threads()
    try:
        with device.repeatable(1):
            plain = left @ right
        device.route_float32_products()
        with device.repeatable(1):
            again = left @ right
        assert torch.get_num_threads() == threads
    finally:
        MATMUL.fp32_precision = before
    assert torch.equal(plain, again)
