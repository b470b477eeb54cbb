"""Which size of vocabulary suits a text, a cap of bytes and a time: byte-pair encodings of many sizes side by side.

Byte-pair encoding is trained once, at the largest size; its first merges are the smaller ones. Each size gets the model
that `fairway plan` would choose for the budget, so that all of them fill the same bytes and the same seconds. A larger
vocabulary shows more text in the same time and leaves fewer bytes to the layers.

The prediction is `0.94 + 0.08 (N / 1e6)^-0.34 + 0.57 (V / 1e3)^-0.34 + 0.68 (D / 1e6)^-0.28` bits per byte, N the
parameters outside the token table, V the size and D the bytes of text seen. The exponents of N and D are those of
Hoffmann et al. 2022 (arXiv:2203.15556); the rest was fitted to six runs of half a minute on Python source, which it
meets within 0.03. It knows nothing of how seldom each row of a large table is trained, so it flatters sizes above those
runs' largest, the more so the shorter the training. It orders sizes roughly; `measure` trains and scores each of them.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log2, prod
from pathlib import Path
from typing import Any

from fairway.compress.predict import finer, gaussian_bits, is_quantized, parameters, predict_strength
from fairway.core.budget import show_seconds
from fairway.core.errors import BudgetError, ConfigError
from fairway.core.log import Event, Listener
from fairway.core.storage import MANIFEST
from fairway.data.manifest import DataConfig, Manifest, prepare
from fairway.data.tokenizer import bpe
from fairway.data.words import FIRST_PIECE
from fairway.model.parts import Role
from fairway.plan import estimate, fit_to_budget
from fairway.report.chart import Line, lines
from fairway.run import Recipe, Run

SIZES = (FIRST_PIECE, 512, 1024, 2048, 4096, 8192, 16384)
"""The first is the bytes and the boundary alone."""

FITTED = 4096
"""The largest size among the runs that the prediction was fitted to."""
FLOOR, OF_PARAMETERS, OF_VOCABULARY, OF_TEXT = 0.94, 0.08, 0.57, 0.68


@dataclass(frozen=True)
class Row:
    """One size of vocabulary, and the model that fills the budget with it."""

    vocabulary: int
    tokens_per_byte: float
    """On validation text."""
    width: int
    layers: int
    parameters: int
    embedding_parameters: int
    embedding_bytes: int
    """Of token tables and heads after compression, predicted."""
    tokenizer_bytes: int
    artifact_bytes: int
    """Predicted."""
    flops_per_byte: float
    """Of training, forward and backward."""
    bytes_seen: float
    """Text that training will have read, at the pace of a few trial steps."""
    seconds: float
    """Of training, by the clock or at that pace."""
    predicted: float
    """Bits per byte."""
    measured: float | None = None
    """Bits per byte of an artifact that was trained, compressed and scored."""


@dataclass(frozen=True)
class Search:
    """All sizes that fit, and the one to take."""

    rows: tuple[Row, ...]
    left_out: dict[int, str]
    """Sizes that do not fit, with the reason."""

    @property
    def best(self) -> Row:
        """The lowest measured bits per byte, or the lowest predicted where nothing was measured."""
        measured = [row for row in self.rows if row.measured is not None]
        return min(measured or self.rows, key=lambda row: row.predicted if row.measured is None else row.measured)

    @property
    def hopeful(self) -> bool:
        """Whether the size to take is larger than any that the prediction was tried on, and was not measured."""
        return self.best.measured is None and self.best.vocabulary > FITTED

    def plain(self) -> dict[str, Any]:
        """JSON-able content."""
        return {
            "hopeful": self.hopeful,
            "recommended": self.best.vocabulary,
            "rows": [vars(row) for row in self.rows],
            "left_out": {str(size): reason for size, reason in self.left_out.items()},
        }


def search(
    recipe: Recipe,
    folder: Path,
    listener: Listener,
    sizes: Sequence[int] = SIZES,
    *,
    measure: bool = False,
    fixed: Collection[str] = (),
) -> Search:
    """Compares sizes for a recipe's text and budget; with `measure`, by training each for the budget's seconds.

    Paths named in `fixed` (`model.width`) stay as the recipe has them. Writes below `folder`. Raises `ConfigError`
    where the tokenizer is not byte-pair encoding, `BudgetError` where no size fits.
    """
    if not isinstance(recipe.data.tokenizer, bpe.Config):
        raise ConfigError(
            f'Vocabularies are cut from byte-pair encoding; data.tokenizer.kind is "{recipe.data.tokenizer.kind}", '
            "and bpe would work."
        )
    largest = _prepared(_at(recipe, max(sizes)).data, folder / "data", listener, None)
    assert isinstance(largest.tokenizer, bpe.BpeTokenizer)
    found: list[tuple[Row, Recipe, bpe.BpeTokenizer]] = []
    left_out: dict[int, str] = {}
    for size in sorted(set(sizes)):
        if size > largest.tokenizer.vocabulary:
            left_out[size] = f"the text has pairs for {largest.tokenizer.vocabulary:,} ids only"
            continue
        try:
            tokenizer = bpe.cut(largest.tokenizer, size)
            sized = fit_to_budget(_at(recipe, size), fixed=["data.tokenizer.vocabulary", *fixed])
            found.append((_row(sized, tokenizer, largest, _named(listener, size)), sized, tokenizer))
        except BudgetError as error:
            left_out[size] = str(error)
    if not found:
        raise BudgetError(f"No vocabulary fits: {next(iter(left_out.values()))}")
    if not measure:
        return Search(tuple(row for row, _, _ in found), left_out)
    return Search(tuple(_all_measured(found, folder, listener)), left_out)


def plot(found: Search) -> str:
    """Bits per byte over the size of the vocabulary, as an SVG drawing that stands alone."""
    x = [log2(row.vocabulary) for row in found.rows]
    curves = [Line("predicted", x, [row.predicted for row in found.rows], dots=True)]
    measured = [(log2(row.vocabulary), row.measured) for row in found.rows if row.measured is not None]
    if measured:
        curves.append(Line("measured", [place for place, _ in measured], [bpb for _, bpb in measured], dots=True))
    marks = [
        (found.best.predicted if found.best.measured is None else found.best.measured, f"{found.best.vocabulary:,}")
    ]
    drawing = lines("Bits per byte by vocabulary", curves, "log2 of the vocabulary", "bits per byte", marks=marks)
    return drawing.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{_PIXELS}" ', 1).replace(
        ">", f"><style>{_STYLE}</style>", 1
    )


def predicted_bits(parameters: float, vocabulary: int, bytes_seen: float) -> float:
    """Bits per byte of a model by its parameters outside the token table, its vocabulary and the text it has read."""
    by_model = OF_PARAMETERS * (parameters / 1e6) ** -0.34 + OF_VOCABULARY * (vocabulary / 1e3) ** -0.34
    return FLOOR + by_model + OF_TEXT * (bytes_seen / 1e6) ** -0.28


def _row(recipe: Recipe, tokenizer: bpe.BpeTokenizer, manifest: Manifest, listener: Listener) -> Row:
    plan = estimate(recipe, listener, vocabulary=tokenizer.vocabulary)
    saved = len(tokenizer.save())
    ratio = _tokens_per_byte(tokenizer, manifest)
    tables, compressed = _tables(recipe, tokenizer.vocabulary, saved)
    seen = plan.tokens / ratio
    return Row(
        vocabulary=tokenizer.vocabulary,
        tokens_per_byte=ratio,
        width=recipe.model.width,
        layers=recipe.model.depth.layers,
        parameters=plan.total_parameters,
        embedding_parameters=tables,
        embedding_bytes=compressed,
        tokenizer_bytes=saved,
        artifact_bytes=plan.artifact_bytes,
        flops_per_byte=plan.flops_per_token * ratio,
        bytes_seen=seen,
        seconds=plan.seconds,
        predicted=predicted_bits(plan.total_parameters - tables, tokenizer.vocabulary, seen),
    )


def _all_measured(
    found: Sequence[tuple[Row, Recipe, bpe.BpeTokenizer]], folder: Path, listener: Listener
) -> Iterator[Row]:
    """The rows with what their models score; says beforehand how long that takes, and after each size how much is left.

    A size that stands finished below the folder is read, and one that was stopped goes on.
    """
    training = sum(row.seconds for row, _, _ in found)
    beside = "preparing, compressing and scoring each take a while beside it"
    listener(Event("measure", 0.0, message=f"{len(found)} sizes to train: {show_seconds(training)} in all; {beside}."))
    begun = time.monotonic()
    for done, (row, recipe, tokenizer) in enumerate(found, 1):
        measured = _measured(row, recipe, tokenizer, folder, _named(listener, row.vocabulary))
        yield measured
        left = (time.monotonic() - begun) / done * (len(found) - done)
        told = f"{row.vocabulary:,} ids: {measured.measured:.4f} bits per byte"
        more = f"; {done} of {len(found)} sizes are done, about {show_seconds(left)} left" if done < len(found) else ""
        listener(Event("measure", done / len(found), message=f"{told}{more}."))


def _measured(row: Row, recipe: Recipe, tokenizer: bpe.BpeTokenizer, folder: Path, listener: Listener) -> Row:
    named = recipe.model_copy(update={"name": str(row.vocabulary)})
    run = Run.create(named, folder / f"{row.vocabulary}-{named.fingerprint()[:8]}")
    _prepared(recipe.data, run.data, listener, tokenizer)
    return replace(row, measured=run.execute(listener).bits_per_byte)


def _named(listener: Listener, size: int) -> Listener:
    """Events of one size, told apart by the names of their phases."""
    return lambda event: listener(replace(event, phase=f"{size:,} ids: {event.phase}"))


def _prepared(config: DataConfig, folder: Path, listener: Listener, tokenizer: bpe.BpeTokenizer | None) -> Manifest:
    if (folder / MANIFEST).exists():
        manifest = Manifest.read(folder)
        if manifest.fingerprint == config.fingerprint():
            return manifest
    return prepare(config, folder, lambda done, what: listener(Event("prepare", done, message=what)), tokenizer)


def _at(recipe: Recipe, vocabulary: int) -> Recipe:
    tokenizer = recipe.data.tokenizer.model_copy(update={"vocabulary": vocabulary})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"tokenizer": tokenizer})})


def _tokens_per_byte(tokenizer: bpe.BpeTokenizer, manifest: Manifest) -> float:
    """Over whole validation documents, one boundary each included."""
    texts = manifest.validation_documents()
    return sum(len(tokenizer.encode(text)) + 1 for text in texts) / sum(map(len, texts))


def _tables(recipe: Recipe, vocabulary: int, tokenizer_bytes: int) -> tuple[int, int]:
    """Parameters of token tables and heads, and their bytes at the step that fills the cap."""
    config = recipe.compress
    strength = predict_strength(recipe.model, vocabulary, tokenizer_bytes, recipe.budget.bytes, config)
    count, bits = 0, 0.0
    for _, role, shape in parameters(recipe.model, vocabulary):
        if role in (Role.EMBEDDING, Role.HEAD) and is_quantized(role, shape):
            count += prod(shape)
            bits += prod(shape) * gaussian_bits(round(strength + finer(role, config.embedding_finer), 6))
    return count, round(bits / 8)


_PIXELS = 960
_STYLE = (
    "svg{background:#fff;font:13px sans-serif}text{fill:#333}.grid{stroke:#e5e5e5}.axis{stroke:#888}.mark{stroke:#999;"
    "stroke-dasharray:4 4}.line{fill:none;stroke-width:2}.line0{stroke:#1f6fb4}.line1{stroke:#c2571a}"
    ".fill0{fill:#1f6fb4}.fill1{fill:#c2571a}"
)
