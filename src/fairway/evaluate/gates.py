"""The gates: what must hold before a score is shown. Each reproduces a known way of getting a score wrong.

A gate gives a `GateResult`: passed, failed, or not applicable because what it compares with was not given
(`passed=None`); its detail says which, with figures. `refuse_failures` raises. Shape key: B batch, T time, V
vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairway.artifact.format import read, restore
from fairway.core import storage
from fairway.core.errors import EvaluationError, FairwayError
from fairway.core.seed import numpy_generator
from fairway.data.manifest import Manifest
from fairway.data.parts import Tokenizer
from fairway.data.spool import digest_of
from fairway.ops.log_softmax.native import total_probability
from fairway.serve.model import Model
from fairway.serve.scoring import Predictor, Tally, rows_at_once
from fairway.serve.window import Batch, Policy, batches

NORMALISATION_TOLERANCE = 1e-4


@dataclass(frozen=True)
class GateResult:
    """One gate's verdict."""

    name: str
    passed: bool | None
    """None: not applicable."""
    detail: str


@dataclass(frozen=True)
class Facts:
    """What the manifest of the data and the log of the run say; None where it is not known."""

    training: frozenset[bytes] | None = None
    """Digests of the training documents."""
    validation: frozenset[bytes] | None = None
    """Digests of the validation documents."""
    validation_bytes: int | None = None
    shared_runs: float | None = None
    """Share of the validation text's runs of 50 bytes that stand in the training text too."""
    artifact: str | None = None
    """SHA-256 of the artifact as the run's log has it."""


NO_FACTS = Facts()


@dataclass(frozen=True)
class Tolerance:
    """How far predictions may differ, in nats, for rounding alone."""

    same_shape: float
    """Between two computations of the same shape."""
    largest: float
    """Between a batch and a lone prefix, at any position."""
    mean: float
    """The same, averaged: what a leak could gain a token."""


def facts_of(manifest: Manifest, artifact: str | None = None) -> Facts:
    """The facts in a manifest, and the artifact's SHA-256 from the run's log."""
    digests = {
        split: frozenset(bytes(row) for row in manifest.index(split)["digest"]) for split in ("train", "validation")
    }
    return Facts(
        training=digests["train"],
        validation=digests["validation"],
        validation_bytes=manifest.validation.bytes,
        shared_runs=manifest.shared_runs,
        artifact=artifact,
    )


def refuse_failures(gates: Iterable[GateResult]) -> None:
    """Raises `EvaluationError` naming every gate that failed."""
    failed = [f"{gate.name}: {gate.detail}" for gate in gates if gate.passed is False]
    if failed:
        raise EvaluationError(f"No score is given, because a gate failed. {' '.join(failed)}")


def text_gates(
    tokenizer: Tokenizer,
    texts: Sequence[bytes],
    tokens: Sequence[np.ndarray],
    facts: Facts,
    *,
    complete: bool,
) -> list[GateResult]:
    """The gates that need no prediction."""
    return [
        same_text(texts, facts, complete),
        disjoint(texts, facts),
        round_trip(tokenizer, texts, tokens),
        byte_count(tokenizer, texts, tokens),
    ]


def same_text(texts: Sequence[bytes], facts: Facts, complete: bool) -> GateResult:
    """The documents are those of the manifest: none foreign, none twice, none left out unsaid."""
    name = "text as hashed"
    if facts.validation is None:
        return GateResult(name, None, "No manifest was given for this text.")
    digests = [digest_of(text) for text in texts]
    foreign = sum(digest not in facts.validation for digest in digests)
    if foreign:
        return GateResult(name, False, f"{foreign} of {len(texts)} documents are not in the manifest's validation set.")
    if len(set(digests)) != len(digests):
        return GateResult(name, False, f"{len(digests) - len(set(digests))} documents were given more than once.")
    size = sum(map(len, texts))
    if complete and (len(digests) != len(facts.validation) or size != facts.validation_bytes):
        return GateResult(
            name,
            False,
            f"{len(digests)} documents of {size} bytes were given; the manifest has {len(facts.validation)} "
            f"of {facts.validation_bytes} bytes.",
        )
    share = "all" if complete else "a sample"
    return GateResult(name, True, f"{len(digests)} documents, {share} of the manifest's {len(facts.validation)}.")


def disjoint(texts: Sequence[bytes], facts: Facts) -> GateResult:
    """No document that is scored was trained on."""
    name = "train and validation disjoint"
    if facts.training is None:
        return GateResult(name, None, "No manifest was given, so what the model was trained on is not known.")
    known = [text for text in texts if digest_of(text) in facts.training]
    if known:
        share = sum(map(len, known)) / max(1, sum(map(len, texts)))
        return GateResult(
            name, False, f"{len(known)} of {len(texts)} documents ({share:.0%} of the bytes) were trained on."
        )
    near = "" if facts.shared_runs is None else f" {facts.shared_runs:.1%} of its runs of 50 bytes stand in it too."
    return GateResult(
        name, True, f"None of {len(texts)} documents is among {len(facts.training)} training documents.{near}"
    )


def round_trip(tokenizer: Tokenizer, texts: Sequence[bytes], tokens: Sequence[np.ndarray]) -> GateResult:
    """`decode(encode(text)) == text`, and the boundary stands for no text."""
    name = "decode(encode(text)) == text"
    for index, (text, ids) in enumerate(zip(texts, tokens, strict=True)):
        if tokenizer.boundary in ids:
            return GateResult(name, False, f"The boundary stands inside document {index}.")
        back = tokenizer.decode(ids)
        if back != text:
            return GateResult(
                name, False, f"Document {index} of {len(text)} bytes came back as {len(back)}, or altered."
            )
    return GateResult(name, True, f"{len(texts)} documents came back unaltered.")


def byte_count(tokenizer: Tokenizer, texts: Sequence[bytes], tokens: Sequence[np.ndarray]) -> GateResult:
    """Bytes are counted in the text, and the tokenizer's own table of pieces must agree."""
    name = "bytes from the text"
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocabulary)]
    if pieces[tokenizer.boundary]:
        return GateResult(
            name, False, f"The boundary is said to hold {len(pieces[tokenizer.boundary])} bytes; it holds none."
        )
    for index, (text, ids) in enumerate(zip(texts, tokens, strict=True)):
        counted = tokenizer.text_bytes(b"".join(pieces[token] for token in ids.tolist()))
        if counted != len(text):
            return GateResult(
                name, False, f"Document {index} has {len(text)} bytes; its tokens are said to hold {counted}."
            )
    return GateResult(name, True, f"{sum(map(len, texts))} bytes; the pieces of the tokens hold as many.")


def coverage(tally: Tally, tokenizer: Tokenizer, texts: Sequence[bytes]) -> GateResult:
    """Every target was scored exactly once, and the targets spell the text: every byte exactly once."""
    name = "every byte exactly once"
    counts = np.concatenate(tally.counts)
    missed, repeated = int((counts == 0).sum()), int((counts > 1).sum())
    if missed or repeated:
        return GateResult(
            name, False, f"Of {len(counts)} targets, {missed} were left out and {repeated} scored repeatedly."
        )
    spelled = b"".join(tokenizer.decode(sequence[1:]) for sequence in tally.sequences)
    if spelled != b"".join(texts):
        return GateResult(name, False, f"The targets spell {len(spelled)} bytes; the text has {sum(map(len, texts))}.")
    return GateResult(name, True, f"{len(counts)} targets, each once, spell the text.")


class Normalisation:
    """Watches every distribution of a pass: the probabilities of all tokens must sum to one."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.checked = 0
        self.finite = True
        self.shape: tuple[int, ...] | None = None

    def observe(self, part: Batch, log_p_BTV: Tensor) -> None:
        """Checks the scored positions of one batch."""
        total_BT = total_probability(log_p_BTV).double()
        for row, (_, window) in enumerate(part.rows):
            total_T = total_BT[row, : window.stop - window.first]
            self.finite &= bool(total_T.isfinite().all())
            self.worst = max(self.worst, float((total_T - 1).abs().nan_to_num(nan=float("inf")).max()))
            self.checked += len(total_T)

    def result(self) -> GateResult:
        """The verdict over the whole pass."""
        passed = self.finite and self.worst <= NORMALISATION_TOLERANCE
        detail = f"At {self.checked} positions the probabilities sum to 1 within {self.worst:.1e}"
        return GateResult("normalisation", passed, f"{detail}; {NORMALISATION_TOLERANCE} is allowed.")


def causality(predictor: Predictor, tally: Tally, policy: Policy, probes: int, tolerance: Tolerance) -> GateResult:
    """What was scored is what the bare prefix predicts, and later tokens leave a prediction alone."""
    random = numpy_generator(0, "causality", tally.tokens)
    places = _places(tally, policy, probes, random)
    verdict = causality_verdict([gain_over_prefix(predictor, tally, policy, place) for place in places], tolerance)
    if not verdict.passed:
        return verdict
    moved = _moved_by_the_future(predictor, tally, policy, random)
    if not moved <= tolerance.same_shape:
        return GateResult("causality", False, f"Changing later tokens moves an earlier log-probability by {moved:.2g}.")
    return GateResult("causality", True, f"{verdict.detail} Later tokens move earlier predictions by {moved:.1e}.")


def causality_verdict(gains: Sequence[float], tolerance: Tolerance) -> GateResult:
    """Whether recorded scores agree with those from lone prefixes; `gains` are the differences in nats."""
    mean, largest = float(np.mean(gains)), float(np.max(np.abs(gains)))
    if mean <= tolerance.mean and largest <= tolerance.largest:
        return GateResult("causality", True, f"{len(gains)} lone prefixes agree within {largest:.1e} nats.")
    return GateResult(
        "causality",
        False,
        f"At {len(gains)} positions the score is {mean:.2g} nats a token better (at most {largest:.2g} off) than "
        "what the prefix alone predicts: something behind a position, or beside its row, was seen.",
    )


def one_pass(predictor: Predictor, tally: Tally, policy: Policy, batch: int, tolerance: Tolerance) -> GateResult:
    """Asked again after the pass, a predictor says the same: it learned nothing from the text."""
    name = "one pass"
    worst = 0.0
    asked = 0
    for index, part in enumerate(batches(tally.sequences, policy, rows_at_once(policy, predictor.vocabulary, batch))):
        if index > 1:
            break
        again = tally.read(part, predictor.predict(part.inputs_BT, part.first))
        for row, (sequence, window) in enumerate(part.rows):
            before = tally.nats[sequence][window.first : window.stop]
            worst = max(worst, float(np.abs(again[row, : len(before)] - before).max()))
            asked += len(before)
    detail = f"{asked} targets asked for again changed by at most {worst:.1e} nats."
    return GateResult(name, worst <= tolerance.same_shape, detail)


def artifact_is_the_one(model: Model, facts: Facts) -> GateResult:
    """The file is the one in the log, and the weights in memory are those in the file."""
    name = "artifact as hashed"
    if model.path is None:
        if facts.artifact is not None:
            return GateResult(name, False, "The log names an artifact; the model at hand comes from no file.")
        return GateResult(name, None, "The model comes from no artifact file.")
    found = storage.sha256(model.path)
    for what, expected in (("when it was loaded", model.sha256), ("in the log", facts.artifact)):
        if expected is not None and found != expected:
            return GateResult(
                name, False, f"{model.path} has SHA-256 {found[:16]}...; {what} it was {expected[:16]}..."
            )
    return _weights_are_the_files(model, model.path, found)


def _weights_are_the_files(model: Model, path: Path, found: str) -> GateResult:
    try:
        weights = restore(read(path))
    except FairwayError as error:
        return GateResult("artifact as hashed", False, str(error))
    held = model.network.state_dict()
    differing = sorted(key for key, value in weights.items() if not torch.equal(held[key].cpu().to(value.dtype), value))
    if differing:
        detail = f"{len(differing)} tensors in memory are not those of {path}, such as {differing[0]}."
        return GateResult("artifact as hashed", False, detail)
    return GateResult("artifact as hashed", True, f"{path.name} {found[:16]}..., {len(weights)} tensors compared.")


def _places(tally: Tally, policy: Policy, probes: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Sequences and targets to probe: edges of windows in the longest sequence, and random ones."""
    longest = int(np.argmax([len(part) for part in tally.nats]))
    last = len(tally.nats[longest]) - 1
    edges = [0, policy.length - 1, policy.length, policy.length + policy.stride - 1, last - 1, last]
    places = [(longest, edge) for edge in dict.fromkeys(edges) if 0 <= edge <= last][:probes]
    ends = np.cumsum([len(part) for part in tally.nats])
    for flat in random.integers(0, ends[-1], max(0, probes - len(places))).tolist():
        sequence = int(np.searchsorted(ends, flat, side="right"))
        places.append((sequence, flat - (int(ends[sequence - 1]) if sequence else 0)))
    return places


def gain_over_prefix(predictor: Predictor, tally: Tally, policy: Policy, place: tuple[int, int]) -> float:
    """Nats by which the recorded score of a target is better than the prediction from its prefix alone."""
    sequence, target = place
    window = policy.window(target)
    tokens = tally.sequences[sequence]
    inputs_BT = torch.from_numpy(tokens[None, window.start : target + 1].copy())
    log_p_V = predictor.predict(inputs_BT, target - window.start)[0, -1]
    return float(-log_p_V[int(tokens[target + 1])].double()) - float(tally.nats[sequence][target])


def _moved_by_the_future(predictor: Predictor, tally: Tally, policy: Policy, random: np.random.Generator) -> float:
    """Largest change of a log-probability when every token behind its position is replaced."""
    part = next(batches(tally.sequences, policy, rows_at_once(policy, predictor.vocabulary, 16)))
    rows, time = part.inputs_BT.shape
    cut_B = torch.from_numpy(random.integers(0, time, rows))
    other_BT = torch.from_numpy(random.integers(0, predictor.vocabulary, (rows, time)))
    after_BT = torch.arange(time) > cut_B[:, None]
    before = predictor.predict(part.inputs_BT, 0)
    after = predictor.predict(torch.where(after_BT, other_BT, part.inputs_BT), 0)
    moved_BT = torch.where(after == before, 0.0, (after - before).abs()).amax(-1).cpu()
    return float(moved_BT.masked_fill(after_BT, 0.0).max())
