"""One run of a claim, through the same `Run` that users call, and the figures that its comparisons need."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fairway.core.device import keep_freed_memory, use_threads
from fairway.core.log import silent
from fairway.core.storage import read_journal, read_json, write_json
from fairway.data.manifest import Manifest
from fairway.data.parts import Tokenizer
from fairway.evaluate.bpb import sample
from fairway.evaluate.by_position import by_position
from fairway.run import Recipe, Run
from fairway.serve.extend import at_context
from fairway.serve.load import load
from fairway.serve.model import Model

RESULT = "result.json"
EXTENSION_BYTES = 100_000
TEXTS, TEXT_TOKENS, RUN = 16, 128, 4
WRITTEN = ("teacher_bits_per_byte", "repetition", "sameness")
"""What is measured of the texts that students write, where there is a teacher."""


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
        found |= _written(load(run.artifact), load(teacher), recipe.seed, Manifest.read(data))
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


def _written(student: Model, teacher: Model, seed: int, data: Manifest) -> dict[str, Any]:
    """Of the student's own texts: bits per byte as its teacher sees them, low where all it writes is likely, and how
    often they repeat themselves; the latter of the corpus too, since too little is as far from it as too much."""
    texts = [
        "".join(student.generate("", tokens=TEXT_TOKENS, temperature=1.0, seed=seed * TEXTS + index)).encode()
        for index in range(TEXTS)
    ]
    texts = [text for text in texts if text]
    corpus = [ids[:TEXT_TOKENS] for ids in _cut(student.tokenizer, data.validation_documents()[:TEXTS])]
    own = list(_cut(student.tokenizer, texts))
    return {
        "teacher_bits_per_byte": teacher.score(texts).bits_per_byte,
        "repetition": repetition(own),
        "sameness": sameness(own),
        "of_the_corpus": {"repetition": repetition(corpus), "sameness": sameness(corpus)},
    }


def repetition(texts: Sequence[Sequence[int]]) -> float:
    """Share of the runs of four tokens that stood in their text before, as the mean over texts; Welleck et al. 2019
    (arXiv:1908.04319)."""
    shares = [1 - len(set(runs)) / len(runs) for text in texts if (runs := list(_runs(text)))]
    return statistics.fmean(shares) if shares else 0.0


def sameness(texts: Sequence[Sequence[int]]) -> float:
    """Share of the runs of four tokens that stood in any of the texts before: 1 less their distinct share; Li et al.
    2016 (arXiv:1510.03055)."""
    runs = [run for text in texts for run in _runs(text)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _runs(text: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return (tuple(text[start : start + RUN]) for start in range(len(text) - RUN + 1))


def _cut(tokenizer: Tokenizer, texts: Sequence[bytes]) -> Iterator[list[int]]:
    return (tokenizer.encode(text).tolist() for text in texts)
