"""What may not stand in any file: loose ends, paths of one machine, banners."""

import re
from collections.abc import Iterator

import pytest

from law.house import CODE, ROOT, File, files, listed

UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
OWN_PATH = re.compile(r"""(?<![\w.])/(?:home|root|Users|work|mnt|opt)/\w""")
BANNER = re.compile(r"^\s*#\s*[-=#*~]{4,}", re.MULTILINE)
PROSE = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "Makefile",
    ".ci/run",
    "pyproject.toml",
    "constraints.txt",
)


def loose(file: File) -> Iterator[str]:
    for number, line in enumerate(file.text.splitlines(), 1):
        if UNFINISHED.search(line):
            yield f"{file.name}:{number} is unfinished: {line.strip()}"
        if OWN_PATH.search(line):
            yield f"{file.name}:{number} names a path of one machine: {line.strip()}"
        if file.name.endswith(".py") and BANNER.match(line):
            yield f"{file.name}:{number} is a banner"


def everything() -> list[File]:
    prose = [ROOT / name for name in PROSE]
    for folder, pattern in (
        ("docs", "*.md"),
        ("recipes", "*.yaml"),
        ("benchmarks", "*.md"),
        ("campaigns", "*.md"),
    ):
        prose += sorted((ROOT / folder).rglob(pattern))
    own = [File(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in prose]
    return [*files(*CODE), *own]


def test_nothing_is_left_loose() -> None:
    violations = [violation for file in everything() for violation in loose(file)]
    assert not violations, listed(violations)


@pytest.mark.parametrize(
    "line",
    [
        "# TO" + "DO: later",
        "x = 1  # FIX" + "ME",
        'open("/ro' + 'ot/data.txt")',
        "see /ho" + "me/me/file",
        "# " + "-" * 10,
    ],
)
def test_each_loose_end_is_found(line: str) -> None:
    assert list(loose(File("a.py", line)))


def test_ordinary_lines_are_let_through() -> None:
    assert not list(loose(File("a.py", "# runs/default holds /sys/fs/cgroup and https://x.org/home/a\n")))


def test_every_module_says_what_it_is_in_its_first_line() -> None:
    silent = [file.name for file in files("src") if file.text.strip() and not (_doc(file))]
    assert not silent, listed(silent)


def _doc(file: File) -> str:
    import ast

    return (ast.get_docstring(file.tree) or "").partition("\n")[0]
