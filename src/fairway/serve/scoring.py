"""Nats of text under a predictor, counted here and nowhere else: float64 sums, integer counts.

A predictor gets token prefixes and gives normalised log-probabilities of what follows each; the target is
looked up here, so a predictor never sees what it is asked for. `bits_per_byte = nats / (ln 2 * bytes)`,
bytes counted in the text. Shape key: B batch, T time, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fairway.data.parts import Tokenizer
from fairway.model.lm import LanguageModel
from fairway.serve.coded import CodedProducts
from fairway.serve.window import Batch, Policy, batches

Nats = np.ndarray[Any, np.dtype[np.float64]]
Documents = Literal["reset", "concatenated"]

_LOGITS_AT_ONCE = 1 << 23


class Predictor(Protocol):
    """Anything that predicts the next token from those before it."""

    vocabulary: int

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        """Natural-log probabilities of the token after each position from `first` on: (B, T - first, V).

        Row b at position t may depend on `inputs_BT[b, : t + 1]` alone.
        """
        ...


class NetworkPredictor:
    """A language model as a predictor: `log softmax` of its logits, in float32 at least."""

    def __init__(
        self,
        network: LanguageModel,
        autocast: torch.dtype | None = None,
        steps: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`steps`: by parameter, what each of its rows is a whole multiple of, as `Model` has them."""
        self.network = network
        self.vocabulary = network.vocabulary
        self.autocast = autocast
        self._products = CodedProducts(network, steps or {})

    @torch.inference_mode()
    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        device = self.network.device
        products = self._products if self.autocast is None else nullcontext()
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None), products:
            hidden_BTD = self.network(inputs_BT.to(device), first=first).hidden_BTD
            return self.network.log_probabilities(hidden_BTD)


@dataclass(frozen=True)
class TextScore:
    """How well text was predicted."""

    nats: float
    tokens: int
    """Targets scored: every token of every document, and the boundary that ends each."""
    bytes: int
    documents: int
    mode: str
    """`plain` where no target is seen twice as context of another window, else `sliding`."""
    window: int
    stride: int

    @property
    def bits_per_byte(self) -> float:
        """`nats / (ln 2 * bytes)`; 0 for no bytes at all."""
        return self.nats / math.log(2) / self.bytes if self.bytes else 0.0


Observer = Callable[[Batch, Tensor], None]
"""Told of each batch and its log-probabilities for the positions from `Batch.first` on."""


def _ignore(part: Batch, log_p_BTV: Tensor) -> None:
    """Observes nothing."""


def sequences_of(tokens: Sequence[np.ndarray], boundary: int, documents: Documents) -> list[np.ndarray]:
    """Token sequences to score: each document between two boundaries, or all of them in one stream.

    The boundary in front is given; the one behind is predicted, because where a text ends must be told too.
    """
    edge = np.array([boundary], np.int64)
    if documents == "reset":
        return [np.concatenate((edge, np.asarray(ids, np.int64), edge)) for ids in tokens]
    parts = [part for ids in tokens for part in (np.asarray(ids, np.int64), edge)]
    return [np.concatenate((edge, *parts))] if parts else []


class Tally:
    """Nats of every target of every sequence, and how often each was scored."""

    def __init__(self, sequences: Sequence[np.ndarray]) -> None:
        self.sequences = list(sequences)
        self.nats: list[Nats] = [np.zeros(len(sequence) - 1) for sequence in sequences]
        self.counts = [np.zeros(len(sequence) - 1, np.int64) for sequence in sequences]

    @property
    def tokens(self) -> int:
        """Targets there are."""
        return sum(len(part) for part in self.nats)

    def total(self) -> float:
        """All nats, summed without rounding."""
        return math.fsum(float(value) for part in self.nats for value in part)

    def add(self, part: Batch, log_p_BTV: Tensor) -> None:
        """Looks the targets of a batch up in its log-probabilities and files their nats."""
        values = self.read(part, log_p_BTV)
        for row, (index, window) in enumerate(part.rows):
            self.nats[index][window.first : window.stop] += values[row, : window.stop - window.first]
            self.counts[index][window.first : window.stop] += 1

    def read(self, part: Batch, log_p_BTV: Tensor) -> Nats:
        """Nats of the targets of a batch, one row for each of its rows; zero behind a row's end."""
        targets = np.zeros(log_p_BTV.shape[:2], np.int64)
        scored = np.zeros(log_p_BTV.shape[:2], bool)
        for row, (index, window) in enumerate(part.rows):
            length = window.stop - window.first
            targets[row, :length] = self.sequences[index][window.first + 1 : window.stop + 1]
            scored[row, :length] = True
        chosen = log_p_BTV.gather(-1, torch.from_numpy(targets).to(log_p_BTV.device)[..., None])[..., 0]
        return np.where(scored, -chosen.double().cpu().numpy(), 0.0)


def rows_at_once(policy: Policy, vocabulary: int, batch: int) -> int:
    """Rows of a batch, at most `batch`, whose log-probabilities stay within 32 MB."""
    return max(1, min(batch, _LOGITS_AT_ONCE // (policy.length * vocabulary)))


def score_sequences(
    predictor: Predictor,
    sequences: Sequence[np.ndarray],
    policy: Policy,
    batch: int = 32,
    observe: Observer = _ignore,
) -> Tally:
    """Nats of every target of every sequence."""
    tally = Tally(sequences)
    for part in batches(sequences, policy, rows_at_once(policy, predictor.vocabulary, batch)):
        log_p_BTV = predictor.predict(part.inputs_BT, part.first)
        tally.add(part, log_p_BTV)
        observe(part, log_p_BTV)
    return tally


def score_documents(
    predictor: Predictor,
    tokenizer: Tokenizer,
    documents: Sequence[bytes],
    policy: Policy,
    mode: Documents = "reset",
) -> TextScore:
    """The score of documents, without gates."""
    tokens = tokenizer.encode_all(list(documents))
    tally = score_sequences(predictor, sequences_of(tokens, tokenizer.boundary, mode), policy)
    return TextScore(
        nats=tally.total(),
        tokens=tally.tokens,
        bytes=sum(len(document) for document in documents),
        documents=len(documents),
        mode=mode_name(policy),
        window=policy.length,
        stride=policy.stride,
    )


def mode_name(policy: Policy) -> str:
    """`plain` or `sliding`."""
    return "plain" if policy.stride == policy.length else "sliding"
