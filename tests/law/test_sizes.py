"""Files and functions stay short enough to be read."""

import ast
from collections.abc import Iterator

from law.house import CODE, File, files, listed

LONGEST_FILE = 400
LONGEST_FUNCTION = 45


def too_long(file: File) -> Iterator[str]:
    lines = file.text.count("\n")
    if lines > LONGEST_FILE:
        yield f"{file.name} has {lines} lines; {LONGEST_FILE} at most"
    for function in file.functions():
        length = _length(function)
        if length > LONGEST_FUNCTION:
            yield f"{file.name}:{function.lineno} {function.name} has {length} lines; {LONGEST_FUNCTION} at most"


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the last one, its docstring left out."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_every_file_and_every_function_is_short() -> None:
    violations = [violation for file in files(*CODE) for violation in too_long(file)]
    assert not violations, listed(violations)


def test_a_long_file_and_a_long_function_are_found() -> None:
    body = "\n".join("    x = 1" for _ in range(45))
    assert list(too_long(File("a.py", f"def f():\n{body}\n")))
    assert not list(too_long(File("a.py", f'def f():\n    """Says."""\n{body[10:]}\n')))
    assert list(too_long(File("a.py", "x = 1\n" * 401)))


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}
    assert not [file.name for file in files(*CODE) if file.name.rpartition("/")[2] in drawers]
