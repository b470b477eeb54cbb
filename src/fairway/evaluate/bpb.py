"""Bits per byte of an artifact: the evaluator owns the text, counts the nats, and gives no score unless
every gate passes.

`bits_per_byte = nats / (ln 2 * bytes)` with nats summed in float64 over every token of every document and
over the boundary that ends each, and bytes counted in the raw text. Windows: `fairway.serve.window`.
"""

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fairway.core.budget import Bytes
from fairway.core.config import Config
from fairway.core.errors import EvaluationError
from fairway.core.log import Event, Listener, silent
from fairway.data.parts import Tokenizer
from fairway.data.spool import digest_of
from fairway.evaluate.gates import (
    NO_FACTS,
    Facts,
    GateResult,
    Normalisation,
    Tolerance,
    artifact_is_the_one,
    causality,
    coverage,
    one_pass,
    refuse_failures,
    text_gates,
)
from fairway.serve.model import Model
from fairway.serve.scoring import (
    Documents,
    NetworkPredictor,
    Predictor,
    Tally,
    TextScore,
    mode_name,
    score_sequences,
    sequences_of,
)
from fairway.serve.window import Batch, Policy

Precision = Literal["fp32", "fp64", "bf16"]

TOLERANCES = {
    "fp64": Tolerance(same_shape=1e-9, largest=1e-8, mean=1e-9),
    "fp32": Tolerance(same_shape=1e-3, largest=1e-2, mean=1e-4),
    "bf16": Tolerance(same_shape=0.2, largest=1.0, mean=2e-2),
}


class EvaluateConfig(Config):
    """Settings of a score."""

    mode: Literal["sliding", "plain"] = "sliding"
    stride: int | None = Field(default=None, ge=1)
    """Tokens by which a sliding window moves; half the window if not given."""
    window: int | None = Field(default=None, ge=1)
    """Tokens the model may see; its training context if not given."""
    documents: Documents = "reset"
    """`reset`: each document is predicted from its own text alone; `concatenated`: as one stream."""
    batch: int = Field(default=32, ge=1)
    """Windows computed together."""
    max_bytes: Bytes | None = None
    """Score a sample of whole documents of at most this many bytes together (at least one document)."""
    precision: Precision = "fp32"
    probes: int = Field(default=32, ge=1)
    """Positions at which causality is checked."""

    def policy(self, context: int) -> Policy:
        """The windows for a model of this training context."""
        window = self.window or context
        return Policy(window, window if self.mode == "plain" else self.stride or max(1, window // 2))


@dataclass(frozen=True)
class Score(TextScore):
    """A score, how it was taken, and the gates that it passed."""

    gates: tuple[GateResult, ...]
    seconds: float
    precision: str
    documents_mode: str
    artifact: str
    """SHA-256 of the artifact file; empty where there is none."""

    def plain(self) -> dict[str, Any]:
        """Everything as JSON-able values, `bits_per_byte` included."""
        facts = {name: value for name, value in vars(self).items() if name != "gates"}
        return {"bits_per_byte": self.bits_per_byte, **facts, "gates": [vars(gate) for gate in self.gates]}


def evaluate(
    model: Model,
    documents: Sequence[bytes],
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    *,
    facts: Facts = NO_FACTS,
    listener: Listener = silent,
) -> Score:
    """The score of a model on whole documents; raises `EvaluationError` naming every gate that failed.

    `facts` is what the manifest of the data and the log of the run say: see `gates.facts_of`.
    """
    gate = artifact_gate(model, facts)
    predictor = predictor_of(model, config.precision)
    policy = config.policy(model.context)
    return judge(predictor, model.tokenizer, documents, policy, config, facts=facts, listener=listener, before=gate)


def judge(
    predictor: Predictor,
    tokenizer: Tokenizer,
    documents: Sequence[bytes],
    policy: Policy,
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    *,
    facts: Facts = NO_FACTS,
    listener: Listener = silent,
    before: "ArtifactGate | None" = None,
) -> Score:
    """The score of any predictor, behind the same gates as an artifact."""
    start = time.monotonic()
    text = prepared(tokenizer, documents, config, facts, before)
    normalisation, watch = (
        Normalisation(),
        _Watch(listener, sum(len(sequence) - 1 for sequence in text.sequences)),
    )

    def observe(part: Batch, log_p_BTV: Tensor) -> None:
        normalisation.observe(part, log_p_BTV)
        watch.tick(part)

    tally = score_sequences(predictor, text.sequences, policy, config.batch, observe)
    tolerance = TOLERANCES[config.precision]
    gates = [*text.gates, coverage(tally, tokenizer, text.texts), normalisation.result()]
    refuse_failures(gates)
    gates += [
        causality(predictor, tally, policy, config.probes, tolerance),
        one_pass(predictor, tally, policy, config.batch, tolerance),
    ]
    refuse_failures(gates)
    return Score(**measured(text, tally, policy, config, gates, start))


@dataclass(frozen=True)
class ArtifactGate:
    """The verdict on an artifact, and its SHA-256."""

    result: GateResult
    sha256: str


@dataclass(frozen=True)
class Prepared:
    """Text ready to be scored: whole documents, their token sequences, and the gates passed so far."""

    texts: list[bytes]
    sequences: list[np.ndarray]
    gates: list[GateResult]
    artifact: str


def artifact_gate(model: Model, facts: Facts) -> ArtifactGate:
    """The artifact's verdict; raises `EvaluationError` where it fails."""
    result = artifact_is_the_one(model, facts)
    refuse_failures([result])
    return ArtifactGate(result, model.sha256)


def prepared(
    tokenizer: Tokenizer,
    documents: Sequence[bytes],
    config: EvaluateConfig,
    facts: Facts,
    before: ArtifactGate | None,
) -> Prepared:
    """The text behind the gates that need no prediction; raises `EvaluationError` where one fails."""
    texts = sample(documents, config.max_bytes)
    if not sum(map(len, texts)):
        raise EvaluationError(f"There is nothing to score: {len(texts)} documents of 0 bytes were given.")
    tokens = tokenizer.encode_all(texts)
    gates = [before.result] if before is not None else []
    gates += text_gates(tokenizer, texts, tokens, facts, complete=len(texts) == len(documents))
    refuse_failures(gates)
    sequences = sequences_of(tokens, tokenizer.boundary, config.documents)
    return Prepared(texts, sequences, gates, before.sha256 if before is not None else "")


def measured(
    text: Prepared, tally: Tally, policy: Policy, config: EvaluateConfig, gates: Sequence[GateResult], start: float
) -> dict[str, Any]:
    """The fields of a `Score` of text whose nats were counted since `start` by the monotonic clock."""
    return {
        "nats": tally.total(),
        "tokens": tally.tokens,
        "bytes": sum(map(len, text.texts)),
        "documents": len(text.texts),
        "mode": mode_name(policy),
        "window": policy.length,
        "stride": policy.stride,
        "gates": tuple(gates),
        "seconds": time.monotonic() - start,
        "precision": config.precision,
        "documents_mode": config.documents,
        "artifact": text.artifact,
    }


def predictor_of(model: Model, precision: Precision) -> NetworkPredictor:
    """The model's network as a predictor in a precision."""
    if precision == "fp64":
        return NetworkPredictor(deepcopy(model.network).double())
    return NetworkPredictor(model.network, torch.bfloat16 if precision == "bf16" else None, model.steps)


def sample(documents: Sequence[bytes], max_bytes: int | None) -> list[bytes]:
    """The documents, or those with the smallest digests that fit: whole ones, in their own order."""
    if max_bytes is None or sum(map(len, documents)) <= max_bytes:
        return list(documents)
    order = sorted(range(len(documents)), key=lambda index: digest_of(documents[index]))
    kept: list[int] = []
    for index in order:
        if not kept or sum(len(documents[other]) for other in kept) + len(documents[index]) <= max_bytes:
            kept.append(index)
    return [documents[index] for index in sorted(kept)]


class _Watch:
    """Tells a listener how far the scoring is."""

    def __init__(self, listener: Listener, targets: int) -> None:
        self.listener = listener
        self.targets = targets
        self.done = 0
        self.start = time.monotonic()

    def tick(self, part: Batch) -> None:
        self.done += sum(window.stop - window.first for _, window in part.rows)
        rate = self.done / max(1e-9, time.monotonic() - self.start)
        self.listener(Event("evaluate", min(1.0, self.done / self.targets), {"tokens/s": rate}))
