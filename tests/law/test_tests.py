"""Tests stand where their subject stands, and their names are sentences."""

import ast
from collections import Counter
from collections.abc import Iterator

from law.house import PACKAGE, TESTS, File, files, listed

FREE = (
    "cheats",
    "contract",
    "golden",
    "flow",
    "law",
    "laws",
    "reference",
    "fuzz",
    "survival",
    "examples",
    "benchmarks",
)
"""Folders of tests/ that cut across the package."""
SHORTEST_NAME = 3


def test_every_package_has_tests() -> None:
    packages = [path for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))]
    bare = [path.name for path in packages if not any((TESTS / path.name).rglob("test_*.py"))]
    assert not bare, listed(bare)


def test_every_test_file_stands_beside_what_it_tests() -> None:
    astray = []
    for path in TESTS.rglob("test_*.py"):
        folder = path.parent.relative_to(TESTS)
        if folder.parts[:1] and folder.parts[0] in FREE:
            continue
        if not (PACKAGE / folder).is_dir():
            astray.append(f"{path.relative_to(TESTS)} mirrors no folder of the package")
    assert not astray, listed(astray)


def test_no_two_test_files_share_a_name() -> None:
    counts = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert not [name for name, count in counts.items() if count > 1]


def test_test_folders_are_no_packages() -> None:
    assert not list(TESTS.rglob("__init__.py"))


def curt(file: File) -> Iterator[str]:
    """Tests whose name is no sentence, and tests that cannot fail."""
    for function in file.functions():
        if not function.name.startswith("test_"):
            continue
        where = f"{file.name}:{function.lineno} {function.name}"
        if len(function.name.split("_")) - 1 < SHORTEST_NAME:
            yield f"{where} is no sentence"
        if not any(_judges(node) for node in ast.walk(function)):
            yield f"{where} cannot fail"


def _judges(node: ast.AST) -> bool:
    """An assertion, or a call that may hold one: a helper, `raises`, `assert_close`."""
    return isinstance(node, ast.Assert | ast.Call)


def test_every_test_is_a_sentence_that_can_fail() -> None:
    violations = [violation for file in files("tests") for violation in curt(file)]
    assert not violations, listed(violations)


def test_a_curt_name_and_an_empty_test_are_found() -> None:
    assert list(curt(File("a.py", "def test_lion_works() -> None:\n    assert f()\n")))
    assert list(curt(File("a.py", "def test_the_future_cannot_leak() -> None:\n    x = 1\n")))
    assert not list(curt(File("a.py", "def test_the_future_cannot_leak() -> None:\n    assert f()\n")))
