"""One run of a claim, through the same `Run` that users call, and the figures that its comparisons need."""

import statistics
from pathlib import Path
from typing import Any

from fairway.core.device import keep_freed_memory, use_threads
from fairway.core.log import silent
from fairway.core.storage import read_journal, read_json, write_json
from fairway.data.manifest import Manifest
from fairway.evaluate.bpb import sample
from fairway.evaluate.by_position import by_position
from fairway.run import Recipe, Run
from fairway.serve.extend import at_context
from fairway.serve.load import load
from fairway.serve.model import Model

RESULT = "result.json"
EXTENSION_BYTES = 100_000
TEXTS, TEXT_TOKENS = 16, 128


def carry_out(
    recipe: Recipe,
    folder: Path,
    data: Path,
    *,
    extensions: tuple[str, ...] = (),
    context: int | None = None,
    teacher: Path | None = None,
) -> dict[str, Any]:
    """Trains, compresses and scores; leaves the figures in the folder, for `found_before`."""
    keep_freed_memory()
    use_threads()
    run = Run.create(recipe, folder)
    run.data = data
    summary = run.execute(silent)
    records = read_journal(folder / "metrics.jsonl")
    last = records[-max(1, len(records) // 20) :]
    found: dict[str, Any] = {
        "bits_per_byte": summary.bits_per_byte,
        "bytes": summary.bytes,
        "parameters": summary.parameters,
        "steps": summary.steps,
        "tokens": summary.tokens,
        "seconds": summary.seconds_train,
        "train_bits_per_byte": statistics.fmean(record["train/bpb"] for record in last),
        "curve": [[r["step"], r["elapsed"], r["val/bpb"]] for r in records if "val/bpb" in r],
    }
    watched = [record for record in records if "val/bpb_ahead" in record]
    if watched:
        found["val_bits_per_byte"], found["ahead_bits_per_byte"] = watched[-1]["val/bpb"], watched[-1]["val/bpb_ahead"]
    if context is not None:
        found["beyond_context"] = _beyond(load(run.artifact), data, context, extensions)
    if teacher is not None:
        found["teacher_bits_per_byte"] = _judged(load(run.artifact), load(teacher), recipe.seed)
    write_json(folder / RESULT, found)
    return found


def found_before(folder: Path) -> dict[str, Any] | None:
    """The figures of a finished run; None where there is none."""
    return read_json(folder / RESULT) if (folder / RESULT).exists() else None


def _beyond(model: Model, data: Path, context: int, extensions: tuple[str, ...]) -> dict[str, float]:
    """Bits per byte of the tokens whose place in a window lies beyond the trained context, by the way of extension."""
    documents = sample(Manifest.read(data).validation_documents(), EXTENSION_BYTES)
    found = {}
    for kind in extensions:
        longer = at_context(model, context, "rope" if kind == "none" else kind)
        found[kind] = by_position(longer, documents, context, name=kind).mean(first=model.context)
    return found


def _judged(student: Model, teacher: Model, seed: int) -> float:
    """Bits per byte of the student's own texts as its teacher sees them: low where all it writes is likely."""
    texts = [
        "".join(student.generate("", tokens=TEXT_TOKENS, temperature=1.0, seed=seed * TEXTS + index)).encode()
        for index in range(TEXTS)
    ]
    return teacher.score([text for text in texts if text]).bits_per_byte
