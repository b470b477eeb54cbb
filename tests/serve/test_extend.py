"""A longer context on a trained artifact: the same weights, new positions, and an origin on record."""

from pathlib import Path

import pytest
import torch

from fairway.artifact.format import read
from fairway.core.errors import ConfigError
from fairway.serve.extend import at_context, extend
from fairway.serve.load import load
from fairway.serve.model import Model


def test_the_new_file_has_the_same_weights_a_longer_context_and_names_its_origin(
    artifact: Path, tmp_path: Path
) -> None:
    out = tmp_path / "long.fwy"
    assert extend(artifact, 48, "yarn", out) == out.stat().st_size
    before, after = load(artifact), load(out)
    assert (before.context, after.context) == (12, 48)
    settings = after.network.config.position.plain()
    assert (settings["kind"], settings["factor"], settings["original"]) == ("yarn", 4.0, 12)
    weights = dict(after.network.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in before.network.named_parameters())
    assert read(out).notes["extended_from"] == before.sha256
    assert read(out).notes["extended_context"] == 12


def test_what_is_read_from_the_file_is_what_extending_in_memory_gives(artifact: Path, tmp_path: Path) -> None:
    extend(artifact, 48, "ntk", tmp_path / "long.fwy")
    tokens = list(range(40))
    there, here = load(tmp_path / "long.fwy"), at_context(load(artifact), 48, "ntk")
    assert torch.equal(there.logits(tokens), here.logits(tokens))
    assert not torch.allclose(here.logits(tokens), load(artifact).logits(tokens), atol=1e-3)


def test_extending_in_memory_leaves_the_model_as_it_was(model: Model) -> None:
    before = model.logits([1, 2, 3, 4])
    longer = at_context(model, 24, "position_interpolation")
    with torch.no_grad():
        next(longer.network.parameters()).add_(1.0)
    assert torch.equal(model.logits([1, 2, 3, 4]), before)
    assert model.context == 12


def test_a_file_is_not_written_over_itself(artifact: Path) -> None:
    with pytest.raises(ConfigError, match="written over itself"):
        extend(artifact, 48, "yarn", artifact)


@pytest.mark.parametrize(("context", "kind", "said"), [(8, "yarn", "cannot be extended to 8"), (48, "yarm", "yarn")])
def test_what_cannot_be_extended_is_refused_and_nothing_written(
    context: int, kind: str, said: str, artifact: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        extend(artifact, context, kind, tmp_path / "long.fwy")
    assert not list(tmp_path.iterdir())
