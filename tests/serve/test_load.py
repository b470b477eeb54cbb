"""Loading: the artifact alone gives the model that was written, and nothing else is taken for one."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fairway
from fairway.artifact.format import Contents, read, write
from fairway.core.errors import ArtifactError
from fairway.serve.load import load
from fairway.serve.model import Model
from serve.tiny import random_network


def test_a_loaded_model_is_the_one_that_was_written(model: Model, artifact: Path) -> None:
    loaded = load(artifact)
    tokens = model.tokenizer.encode(b"hello world").tolist()
    assert torch.equal(loaded.logits(tokens), model.logits(tokens))
    assert loaded.notes == {"made": "in a test"}
    assert loaded.sha256 == hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert loaded.context == 12
    assert "".join(loaded.generate("hello", tokens=9)) == "".join(model.generate("hello", tokens=9))
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())


def test_the_package_loads_an_artifact(artifact: Path) -> None:
    assert fairway.load(artifact).score("hello").bytes == 5


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="lode"):
        fairway.lode  # noqa: B018  # pyrefly: ignore[missing-attribute]


def test_importing_the_package_imports_no_torch() -> None:
    code = "import fairway, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_serving_imports_nothing_that_trains() -> None:
    code = (
        "import fairway.serve.load, sys; "
        "bad = ('train', 'optim', 'loss', 'compress', 'data.source'); "
        "print([m for m in sys.modules if m.startswith(tuple(f'fairway.{b}' for b in bad))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign", "empty"])
def test_a_damaged_or_foreign_file_is_refused(artifact: Path, tmp_path: Path, damage: str) -> None:
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 4
    wrong = {"flip": bytes(data), "cut": artifact.read_bytes()[:-9], "foreign": b"PK\x03\x04" * 99, "empty": b""}[
        damage
    ]
    path = tmp_path / "wrong.fwy"
    path.write_bytes(wrong)
    with pytest.raises(ArtifactError, match=r"wrong\.fwy"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere\.fwy"):
        load(tmp_path / "nowhere.fwy")


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "vocabulary", "model", "tokenizer"])
def test_contents_that_do_not_fit_together_are_refused(artifact: Path, tmp_path: Path, fault: str) -> None:
    good = read(artifact)
    tensors = dict(good.tensors)
    first = next(iter(tensors))
    values = {name: getattr(good, name) for name in ("model", "vocabulary", "tokenizer_kind", "tokenizer", "notes")}
    if fault == "missing":
        del tensors[first]
    elif fault == "extra":
        tensors["more"] = tensors[first]
    elif fault == "shape":
        other = next(name for name in tensors if tensors[name].shape != tensors[first].shape)
        tensors[first] = tensors[other]
    elif fault == "vocabulary":
        values["vocabulary"] += 1
    elif fault == "model":
        values["model"] = {**good.model, "width": 17}
    else:
        values["tokenizer"] = b"\xff" * 9
    path = tmp_path / "wrong.fwy"
    write(path, Contents(tensors=tensors, **values))
    with pytest.raises(ArtifactError):
        load(path)


def test_weights_are_not_shared_between_two_loads(artifact: Path) -> None:
    one, two = load(artifact), load(artifact)
    next(one.network.parameters()).data.zero_()
    assert next(two.network.parameters()).abs().sum() > 0
    assert random_network(one.network.vocabulary).config == one.network.config
