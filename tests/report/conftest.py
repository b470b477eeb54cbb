"""A run folder written by hand: an artifact with real coding, curves, ledger, score and sample, but no training."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fairway.artifact import format as artifact
from fairway.artifact.packing import raw, rows
from fairway.artifact.parts import Packed
from fairway.artifact.steps import nearest_exponents
from fairway.core.storage import Journal, write_json, write_text
from fairway.data.tokenizer.byte import ByteTokenizer
from fairway.model.lm import ModelConfig
from fairway.model.parts import Role, parameter_roles

STEPS = 400
BYTES_CAP = 120_000


@pytest.fixture
def synthetic_run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    return write_run(tmp_path / "synthetic")


def write_run(folder: Path) -> Path:
    """Fills a folder as a finished run would."""
    model = ModelConfig.read({"width": 64, "context": 64, "depth": 3, "mixer": {"kind": "attention", "heads": 4}})
    recipe = {"name": "synthetic", "seed": 0, "budget": {"bytes": BYTES_CAP, "seconds": 60.0, "steps": None}}
    write_text(folder / "recipe.yaml", yaml.safe_dump({**recipe, "model": model.plain()}, sort_keys=False))
    size = write_artifact(folder / "model.fwy", model)
    write_curves(folder)
    write_score(folder)
    ledger = {"prepare": 6.2, "load": 0.4, "train": 59.6, "compress": 3.1, "evaluate": 9.7, "sample": 0.8, "other": 0.2}
    write_json(folder / "ledger.json", ledger)
    write_text(
        folder / "sample.txt",
        'def area(width, height):\n    """The area <of> a & rectangle."""\n    return width * height\n',
    )
    summary = {
        "run": str(folder),
        "artifact": str(folder / "model.fwy"),
        "bits_per_byte": 1.2345,
        "bytes": size,
        "bytes_cap": BYTES_CAP,
        "seconds_train": 59.6,
        "seconds_total": sum(ledger.values()),
        "parameters": 164_172,
        "steps": STEPS,
        "tokens": STEPS * 4096,
        "peak_memory_bytes": 612_000_000,
        "fingerprint": "5f1d6c0a" * 8,
        "machine": {"processor": "Example 9000", "threads": 2, "torch": "2.13.0", "devices": ["cpu"]},
    }
    write_json(folder / "summary.json", summary)
    return folder


def write_curves(folder: Path) -> None:
    """A loss that falls, with validation five times on the way."""
    with Journal(folder / "metrics.jsonl") as journal:
        for step in range(1, STEPS + 1):
            loss = 1.3 + 4.2 * math.exp(-step / 45) + 0.12 * math.sin(step * 1.7)
            record = {"step": step, "elapsed": step * 0.148, "train/loss": loss, "train/bpb": loss * 0.9, "lr": 1.0}
            record |= {"tokens": 4096, "step_seconds": 0.148 + 0.02 * math.sin(step)}
            journal.append(record | ({"val/bpb": loss * 0.92} if step % 80 == 0 else {}))


def write_score(folder: Path) -> None:
    """A score with gates of every kind."""
    gates = [
        {"name": "unseen_documents", "passed": True, "detail": "17 documents, all of the manifest's 17."},
        {"name": "every_byte_once", "passed": True, "detail": "401222 bytes; the pieces of the tokens hold as many."},
        {
            "name": "normalisation",
            "passed": True,
            "detail": "The worst sum of probabilities is off by 2.4e-07; 0.0001 is allowed.",
        },
        {"name": "artifact_is_the_one", "passed": None, "detail": "No log of a run was given."},
    ]
    score = {
        "bits_per_byte": 1.2345,
        "nats": 401_222 * 1.2345 * math.log(2),
        "bytes": 401_222,
        "documents": 17,
        "mode": "sliding",
        "gates": gates,
    }
    write_json(folder / "score.json", score)


def write_artifact(path: Path, config: ModelConfig) -> int:
    """An untrained model, its matrices filled with Gaussian numbers, rounded and coded; returns the file's size."""
    tokenizer = ByteTokenizer()
    network = config.build(tokenizer.vocabulary, 0)
    roles = parameter_roles(network)
    source = torch.Generator().manual_seed(1)
    tensors = {}
    for name, parameter in network.named_parameters():
        weight = parameter.detach()
        if roles[name] in (Role.MATRIX, Role.EMBEDDING):
            weight = torch.randn(weight.shape, generator=source) / math.sqrt(weight.shape[1])
            tensors[name] = rows_of_integers(weight)
        else:
            tensors[name] = raw.pack(weight, "float16")
    notes = {"fairway": "0.1.0", "window": 64}
    return artifact.write(
        path, artifact.Contents(config.plain(), tokenizer.vocabulary, "byte", tokenizer.save(), tensors, notes)
    )


def rows_of_integers(weight: torch.Tensor) -> Packed:
    """A weight rounded to about an eighth of each row's deviation."""
    exponents = nearest_exponents(weight.std(dim=1).clamp_min(1e-6).numpy() / 8)
    codes = np.rint(weight.numpy() / rows.steps_of(exponents)[:, None]).astype(np.int32)
    return rows.pack(codes, exponents, tuple(weight.shape))
