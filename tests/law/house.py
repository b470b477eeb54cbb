"""The source tree as the laws see it: every file with its text and syntax tree."""

import ast
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fairway"
TESTS = ROOT / "tests"
CODE = ("src", "tests", "benchmarks", "examples")

SLOTS = {
    "model.mixer": "model.mixer",
    "model.ffn": "model.ffn",
    "model.norm": "model.norm",
    "model.position": "model.position",
    "model.embedding": "model.embedding",
    "model.depth": "model.depth",
    "data.source": "data.source",
    "data.tokenizer": "data.tokenizer",
    "optim.optimizer": "train.optimizer",
    "optim.schedule": "train.schedule",
    "train.precision": "train.precision",
    "train.recompute": "train.recompute",
    "loss.distill": "distill.loss",
    "compress.prune": "compress.prune",
    "compress.quantize": "compress.quantize",
    "artifact.coder": "artifact.coder",
    "artifact.packing": "artifact.packing",
}
"""Every slot's package below `fairway`, and where a recipe chooses it."""


@dataclass(frozen=True)
class File:
    """One Python file."""

    name: str
    """Path from the root of the repository."""
    text: str

    @property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return _parsed(self.text)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Every function and method, nested ones too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


@cache
def files(*folders: str) -> tuple[File, ...]:
    """Every Python file below some folders of the repository."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(File(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


def modules(package: Path) -> list[Path]:
    """The technique files of a slot's folder."""
    return sorted(path for path in package.glob("*.py") if path.name != "__init__.py")


def copied(home: Path) -> Path:
    """A copy of the package that a process with `PYTHONPATH=home` imports, however the original is installed."""
    shutil.copytree(PACKAGE, home / "fairway", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (home / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [one for one in sys.meta_path if not type(one).__module__.startswith('_editable')]\n"
    )
    return home


def slot_folder(slot: str) -> Path:
    """The folder of a slot such as `model.mixer`."""
    return PACKAGE.joinpath(*slot.split("."))


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or an attribute chain; whatever else an attribute is taken of shows as `()`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value) or '()'}.{node.attr}"
    return ""


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that a file imports, by its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def listed(violations: Iterable[str]) -> str:
    """Violations as the message of a failed test."""
    return "\n".join(violations)


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)
