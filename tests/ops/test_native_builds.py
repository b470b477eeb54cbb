"""The native library built otherwise: with sanitizers, for 64-bit Arm, and not at all."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from law.house import PACKAGE, ROOT, copied
from laws import kernel_calls

KERNELS = sorted(
    [*PACKAGE.glob("ops/*/kernel.cpp"), *PACKAGE.glob("artifact/coder/*.cpp"), *PACKAGE.glob("data/kernel/*.cpp")]
)
HEADERS = sorted([*PACKAGE.glob("ops/kernel/*.h"), *PACKAGE.glob("data/kernel/*.h")])
SAFE = {"algorithm", "cmath", "cstdint", "cstdlib", "cstring", "immintrin.h", "sys/mman.h"}
ARM = "aarch64-linux-gnu"
HERE = Path(__file__).parent


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout


def built(folder: Path, *options: str) -> Path:
    """The library, built by the package's own rules."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} here")
    run("cmake", "-S", ROOT, "-B", folder, *options)
    run("cmake", "--build", folder, "--parallel", "2")
    return folder / "libfairway.so"


def test_kernels_use_no_templates_of_the_library() -> None:
    """The linker would keep one instance for all instruction levels, perhaps one that the machine cannot run."""
    for path in [*KERNELS, *HEADERS]:
        included = set(re.findall(r"#include <(.+?)>", path.read_text(encoding="utf-8")))
        assert included <= SAFE, f"{path} includes {included - SAFE}"


@pytest.mark.slow
def test_no_kernel_shares_a_function_with_another_level(tmp_path: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("there is no nm here")
    built(tmp_path)
    objects = sorted(tmp_path.rglob("*.o"))
    assert len(objects) >= len(KERNELS)
    shared = [line for line in run("nm", "-C", *objects).splitlines() if " W " in line]
    assert not shared


@pytest.mark.slow
def test_the_kernel_tests_pass_under_the_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    library = built(tmp_path / "build", "-DFAIRWAY_SANITIZE=ON")
    home = copied(tmp_path / "home")
    shutil.copy(library, home / "fairway" / "ops" / "kernel" / "libfairway.so")
    watchers = [run("c++", f"-print-file-name={name}").strip() for name in ("libasan.so", "libubsan.so")]
    environment = {
        "PYTHONPATH": str(home),
        "LD_PRELOAD": " ".join(watchers),
        "OMP_NUM_THREADS": "2",
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    loaded = "from fairway.core import native; native.kernel('relu2_forward'); print(open('/proc/self/maps').read())"
    assert f"{home}/fairway/ops/kernel/libfairway.so" in run(sys.executable, "-c", loaded, **environment)
    tests = [
        *(path for path in HERE.rglob("test_*.py") if path != Path(__file__)),
        HERE.parent / "artifact" / "coder",
        HERE.parent / "data" / "test_native_words.py",
    ]
    report = run(
        sys.executable, "-m", "pytest", *tests, "-p", "no:cacheprovider", "-v", "-k", "not fake", **environment
    )
    assert " passed" in report


@pytest.mark.slow
def test_the_sanitizer_build_sees_a_write_behind_the_end(tmp_path: Path) -> None:
    library = built(tmp_path / "build", "-DFAIRWAY_SANITIZE=ON")
    watcher = run("c++", "-print-file-name=libasan.so").strip()
    fault = (
        "import ctypes\n"
        f"library = ctypes.CDLL({str(library)!r})\n"
        "x, y = (ctypes.c_float * 400)(), ctypes.CDLL(None).malloc\n"
        "y.restype = ctypes.c_void_p\n"
        "library.relu2_forward_portable(x, ctypes.c_void_p(y(100)), ctypes.c_long(400), 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", fault],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LD_PRELOAD": watcher, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.slow
def test_without_a_compiler_the_package_installs_works_and_says_what_is_missing(tmp_path: Path) -> None:
    sources, tools, home = tmp_path / "sources", tmp_path / "tools", tmp_path / "home"
    for path in (sources, tools):
        path.mkdir()
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    leave = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("src", "docs"):
        shutil.copytree(ROOT / name, sources / name, ignore=leave)
    for name in ("cmake", "ninja"):
        found = shutil.which(name)
        if found is not None:
            (tools / name).symlink_to(Path(found).resolve())
    bare = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CC", "CXX", "FAIRWAY_NATIVE", "FAIRWAY_LEVEL")
    }
    bare |= {"PATH": str(tools), "PYTHONPATH": str(home), "PIP_NO_CACHE_DIR": "1"}
    assert shutil.which("c++", path=bare["PATH"]) is None

    def plain(*command: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, *command]
        return subprocess.run(whole, capture_output=True, text=True, check=False, env=bare, cwd=tmp_path)

    done = plain("-m", "pip", "install", "--no-deps", "--target", str(home), str(sources))
    if "No matching distribution found for scikit-build-core" in done.stderr:
        pytest.skip("the build tool cannot be fetched here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [path for path in home.rglob("*") if path.suffix == ".so"]
    script = (
        "import torch, fairway; from fairway.core import native; from fairway.ops.rms_norm.native import rms_norm;"
        "assert native.level() is None; x = torch.randn(64, 256); y = rms_norm(x, None, 1e-6, x.dtype);"
        "assert torch.allclose(y.square().mean(-1), torch.ones(64), atol=1e-4); print(fairway.__file__)"
    )
    used = plain("-c", script)
    assert used.returncode == 0, used.stderr
    assert used.stdout.startswith(str(home))
    doctor = plain("-m", "fairway", "doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert "no C++ compiler" in doctor.stdout + doctor.stderr


@pytest.mark.slow
def test_the_kernels_compute_the_same_on_64_bit_arm(tmp_path: Path) -> None:
    for tool in (f"{ARM}-g++", "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} here")
    own = built(tmp_path / "own")
    cross = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={ARM}-g++")
    arm = built(tmp_path / "arm", *cross)
    compile_here = ("c++", "-std=c++17", "-O1")
    compile_there = (f"{ARM}-g++", *compile_here[1:])
    emulated = ("qemu-aarch64", "-L", f"/usr/{ARM}")

    (tmp_path / "kernels.h").write_text(prototypes(), encoding="utf-8")
    answers = []
    for compiler, library, prefix in ((compile_here, own, ()), (compile_there, arm, emulated)):
        program = library.parent / "answers"
        run(*compiler, f"-I{tmp_path}", HERE / "answers.cpp", library, f"-Wl,-rpath,{library.parent}", "-o", program)
        answers.append([float(line) for line in run(*prefix, program, LD_LIBRARY_PATH=str(library.parent)).split()])
    assert len(answers[0]) > 100
    assert answers[1] == pytest.approx(answers[0], rel=1e-4, abs=1e-5)

    calls, results, player = (tmp_path / name for name in ("calls", "results", "replay"))
    tests = [path for path in HERE.rglob("test_*.py") if path != Path(__file__)]
    plugin = ("-p", "laws.kernel_calls", "-p", "no:cacheprovider", "-q", "-k", "portable")
    settings = {"PYTHONPATH": str(HERE.parent), "FAIRWAY_KERNEL_CALLS": str(calls)}
    run(sys.executable, "-m", "pytest", *tests, *plugin, **settings)
    given = list(kernel_calls.read(calls))
    for compiler, library, prefix in ((compile_here, own, ()), (compile_there, arm, emulated)):
        run(*compiler, HERE / "replay.cpp", "-ldl", "-o", player)
        run(*prefix, player, library, calls, results, OMP_NUM_THREADS="3")
        seen = kernel_calls.results(given, results.read_bytes())
        wrong = [
            name for (name, buffers), found in zip(given, seen, strict=True) if not all(map(alike, buffers, found))
        ]
        assert not wrong
    asked = set(re.findall(r"(\w+)_portable\(", (HERE / "answers.cpp").read_text(encoding="utf-8")))
    assert {name for name, _ in exports()} == asked | {name.removesuffix("_portable") for name, _ in given}


def exports() -> list[tuple[str, str]]:
    """Every kernel: its name and its parameters."""
    pattern = r"^FAIRWAY_EXPORT\((\w+)\)\s*\(([^)]*)\)"
    return [found for path in KERNELS for found in re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)]


def prototypes() -> str:
    """A header of the portable kernels; pointers to structures of their own are without a type."""
    lines = [
        f"void {name}_portable({re.sub(r'const (Instruction|Matrix)', 'const void', all_)});"
        for name, all_ in exports()
    ]
    return "\n".join(["#include <cstdint>", 'extern "C" {', *lines, "}", ""])


def alike(wanted: kernel_calls.Buffer, seen: Tensor) -> bool:
    """Whether a buffer is the same after a call: whole numbers exactly, real ones within what rounding may change."""
    after = wanted.after
    if not after.is_floating_point():
        return torch.equal(seen, after)
    changed = (after.view(torch.uint8) != wanted.before.view(torch.uint8)).view(-1, after.element_size()).any(dim=1)
    written = after[changed & after.isfinite()].double()
    relative = 2e-2 if after.dtype == torch.bfloat16 else 1e-4
    least = 1e-6 + relative * float(written.abs().max()) if len(written) else 1e-6
    return torch.allclose(seen.double(), after.double(), rtol=relative, atol=least, equal_nan=True)
