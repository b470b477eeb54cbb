"""Nothing can execute what a file holds, and one module writes files."""

import ast
from collections.abc import Iterator

import pytest

from law.house import File, dotted, files, imported, listed

MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "random")
CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "torch.load": "reads pickle",
    "torch.save": "writes pickle, and not atomically",
    "numpy.load": "may read pickle",
    "np.load": "may read pickle",
    "np.save": "writes past core/storage",
    "np.savez": "writes past core/storage",
    "yaml.load": "may build any object; yaml.safe_load reads plain data",
    "yaml.unsafe_load": "builds any object",
    "yaml.full_load": "builds more than plain data",
    "np.random.seed": "touches the global generator",
    "os.system": "runs a shell",
    "shutil.move": "writes past core/storage",
    "os.rename": "writes past core/storage",
    "os.replace": "writes past core/storage",
}
METHODS = {
    "write_text": "writes past core/storage",
    "write_bytes": "writes past core/storage",
    "save_file": "writes past core/storage",
    "tofile": "writes past core/storage",
}
WRITER = "src/fairway/core/storage.py"


def forbidden(file: File) -> Iterator[str]:
    """What a file of the package does that no file may, but for the one that writes."""
    for module in imported(file.tree):
        if module.split(".")[0] in MODULES:
            yield f"{file.name} imports {module}"
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Call):
            reason = _reason(node)
            if reason and (file.name != WRITER or "core/storage" not in reason):
                yield f"{file.name}:{node.lineno} {ast.unparse(node.func)}: {reason}"


def _reason(call: ast.Call) -> str:
    name = dotted(call.func)
    if name in CALLS:
        return CALLS[name]
    owner, _, method = name.rpartition(".")
    if method in METHODS and not owner.endswith("storage"):
        return METHODS[method] if owner or not isinstance(call.func, ast.Name) else ""
    if (name == "open" or method == "open" or name.endswith("fdopen")) and _writes(call):
        return "writes past core/storage"
    if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS and not owner.endswith("storage"):
        return METHODS[call.func.attr]
    return ""


def _writes(call: ast.Call) -> bool:
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return any(set(mode) & set("wax+") and set(mode) <= set("rwaxbt+") for mode in modes)


def test_the_package_runs_no_foreign_code_and_writes_in_one_place() -> None:
    violations = [violation for file in files("src") for violation in forbidden(file)]
    assert not violations, listed(violations)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import random",
        "import torch\ntorch.load(x)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text)",
        "np.save(path, x)",
        "open(path, 'w')",
        "open(path, mode='ab')",
        "path.open('wb')",
        "gzip.open(path, 'wt')",
        "Path('a').write_text(text)",
        "folder.joinpath(name).write_bytes(data)",
        "torch.save(model, path)",
        "np.random.seed(0)",
    ],
)
def test_each_forbidden_thing_is_found(text: str) -> None:
    assert list(forbidden(File("src/fairway/a.py", text)))


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "model.requires_grad_(True).eval()",
        "open(path)",
        "open(path, 'rb')",
        "path.open('r')",
        "yaml.safe_load(text)",
        "storage.write_text(path, text)",
        "write_bytes(path, data)",
        "np.random.Generator(np.random.Philox(3))",
        "'wax'.join(names)",
    ],
)
def test_what_is_allowed_is_let_through(text: str) -> None:
    assert not list(forbidden(File("src/fairway/a.py", text)))
