"""Score-first adaptation: a model may learn from text, but only from text whose score is already final.

The text is scored chunk by chunk, left to right. A chunk's nats are written into a chain of hashes before
the learner is handed that chunk; the next chunk is scored with the changed weights. Weights start from the
artifact. Plain gradient descent with momentum, on all weights or on low-rank additions to the matrices, `W +
scale B A` (Hu et al. 2021, arXiv:2106.09685); per document or running on. Shape key: B batch, T time, V
vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from fairway.core.budget import Ledger
from fairway.core.config import Config
from fairway.core.errors import EvaluationError
from fairway.core.log import Event, Listener, silent
from fairway.core.seed import generator, numpy_generator
from fairway.data.parts import Tokenizer
from fairway.evaluate.bpb import TOLERANCES, ArtifactGate, EvaluateConfig, Score, artifact_gate, measured, prepared
from fairway.evaluate.chain import Link, check_chain, extended
from fairway.evaluate.gates import (
    NO_FACTS,
    Facts,
    GateResult,
    Normalisation,
    Tolerance,
    causality_verdict,
    coverage,
    gain_over_prefix,
    refuse_failures,
)
from fairway.model.lm import LanguageModel
from fairway.model.parts import Part, Role
from fairway.serve.model import Model
from fairway.serve.scoring import NetworkPredictor, Tally, rows_at_once
from fairway.serve.window import Batch, Policy, Window, packed


class AdaptConfig(Config):
    """Settings of adaptation."""

    method: Literal["full", "lora"] = "lora"
    scope: Literal["document", "running"] = "running"
    """`document`: every document starts from the artifact; `running`: what was learned is kept."""
    chunk: int | None = Field(default=None, ge=1)
    """Targets scored before each update; the window if not given."""
    learning_rate: float = Field(default=0.02, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    steps: int = Field(default=1, ge=1)
    """Updates on each chunk."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of a gradient."""
    rank: int = Field(default=8, ge=1)
    scale: float = Field(default=1.0, gt=0)
    seed: int = 0


class Learner(Protocol):
    """A predictor that may learn from what has been scored."""

    vocabulary: int

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        """As `Predictor.predict`; must not change what it will predict."""
        ...

    def learn(self, chunk: "ScoredChunk") -> None:
        """Learns from a chunk whose score is final."""
        ...

    def reset(self) -> None:
        """Forgets everything learned."""
        ...


@dataclass(frozen=True)
class ScoredChunk:
    """Text that may be learned from: inputs, targets, and the link that made its score final."""

    batches: tuple[tuple[Tensor, Tensor], ...]
    """Inputs (B, T), and targets (B, T) with -1 where nothing may be learned."""
    link: Link


@dataclass(frozen=True)
class AdaptedScore(Score):
    """A score with score-first adaptation."""

    chain: tuple[Link, ...]
    seconds_adapt: float

    def plain(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return {**super().plain(), "chain": [vars(link) for link in self.chain]}


def evaluate_adapted(
    model: Model,
    documents: Sequence[bytes],
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    adapt: AdaptConfig = AdaptConfig(),  # noqa: B008
    *,
    facts: Facts = NO_FACTS,
    ledger: Ledger | None = None,
    listener: Listener = silent,
) -> AdaptedScore:
    """The score of a model that learns from each chunk once it is scored; `ledger` gets the phase `adapt`."""
    gate = artifact_gate(model, facts)
    learner = NetworkLearner(model.network, adapt, double=config.precision == "fp64")
    policy = config.policy(model.context)
    return judge_learner(
        learner,
        model.tokenizer,
        documents,
        policy,
        config,
        adapt,
        facts=facts,
        ledger=ledger,
        listener=listener,
        before=gate,
    )


def judge_learner(
    learner: Learner,
    tokenizer: Tokenizer,
    documents: Sequence[bytes],
    policy: Policy,
    config: EvaluateConfig,
    adapt: AdaptConfig,
    *,
    facts: Facts = NO_FACTS,
    ledger: Ledger | None = None,
    listener: Listener = silent,
    before: ArtifactGate | None = None,
) -> AdaptedScore:
    """The score of any learner. It is handed a chunk only after the chunk's link is in the chain."""
    if config.precision == "bf16":
        raise EvaluationError("Adaptation learns in fp32 or fp64; precision=bf16 was asked for.")
    start = time.monotonic()
    ledger = ledger or Ledger()
    text = prepared(tokenizer, documents, config, facts, before)
    referee = _Referee(learner, Tally(text.sequences), policy, config, TOLERANCES[config.precision])
    before_adapting = ledger.seconds.get("adapt", 0.0)
    chunks = list(_chunks(text.sequences, policy, adapt.chunk or policy.length))
    for done, (index, windows) in enumerate(chunks, start=1):
        if adapt.scope == "document" and windows[0].first == 0:
            learner.reset()
        with ledger.phase("evaluate"):
            chunk = referee.score(index, windows)
        with ledger.phase("adapt"):
            learner.learn(chunk)
        listener(Event("evaluate", done / len(chunks)))
    gates = [*text.gates, coverage(referee.tally, tokenizer, text.texts), *referee.verdicts()]
    refuse_failures(gates)
    spent = ledger.seconds["adapt"] - before_adapting
    facts_of_score = measured(text, referee.tally, policy, config, gates, start)
    return AdaptedScore(**facts_of_score, chain=tuple(referee.chain), seconds_adapt=spent)


class NetworkLearner:
    """A copy of a network that learns by gradient descent with momentum."""

    def __init__(self, network: LanguageModel, config: AdaptConfig, *, double: bool = False) -> None:
        self.config = config
        self.vocabulary = network.vocabulary
        self.network = deepcopy(network)
        self.network.requires_grad_(config.method == "full")
        if config.method == "lora":
            _add_low_rank(self.network, config)
        if double:
            self.network.double()
        self._weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        self._origin = [weight.detach().clone() for weight in self._weights]
        self._predictor = NetworkPredictor(self.network)
        self.reset()

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        return self._predictor.predict(inputs_BT, first)

    def reset(self) -> None:
        with torch.no_grad():
            for weight, origin in zip(self._weights, self._origin, strict=True):
                weight.copy_(origin)
        config = self.config
        self._optimizer = torch.optim.SGD(self._weights, lr=config.learning_rate, momentum=config.momentum)

    def learn(self, chunk: ScoredChunk) -> None:
        device = self.network.device
        for _ in range(self.config.steps):
            self._optimizer.zero_grad(set_to_none=True)
            for inputs_BT, targets_BT in chunk.batches:
                logits_BTV = self.network.logits(self.network(inputs_BT.to(device)).hidden_BTD)
                nats = functional.cross_entropy(
                    logits_BTV.flatten(0, 1),
                    targets_BT.to(device).flatten(),
                    ignore_index=-1,
                    reduction="sum",
                )
                (nats / chunk.link.targets).backward()
            nn.utils.clip_grad_norm_(self._weights, self.config.clip)
            self._optimizer.step()


class _Referee:
    """Scores chunks, makes each score final, and watches the learner while it does."""

    def __init__(
        self, learner: Learner, tally: Tally, policy: Policy, config: EvaluateConfig, tolerance: Tolerance
    ) -> None:
        self.learner = learner
        self.tally = tally
        self.policy = policy
        self.tolerance = tolerance
        self.chain: list[Link] = []
        self._rows = rows_at_once(policy, learner.vocabulary, config.batch)
        self._normalisation = Normalisation()
        self._random = numpy_generator(0, "adapt", tally.tokens)
        self._share = min(1.0, config.probes / max(1, tally.tokens // policy.length))
        self._gains: list[float] = []
        self._changed = 0.0

    def score(self, index: int, windows: Sequence[Window]) -> ScoredChunk:
        """Scores one chunk and adds its link."""
        parts = list(packed([(index, window) for window in windows], self.tally.sequences, self.policy, self._rows))
        for part in parts:
            log_p_BTV = self.learner.predict(part.inputs_BT, part.first)
            self.tally.add(part, log_p_BTV)
            self._normalisation.observe(part, log_p_BTV)
        if not self.chain or self._random.random() < self._share:
            self._probe(index, windows, parts[0])
        first, stop = windows[0].first, windows[-1].stop
        tokens = self.tally.sequences[index][first + 1 : stop + 1]
        link = extended(self.chain, index, first, tokens, self.tally.nats[index][first:stop])
        self.chain.append(link)
        return ScoredChunk(tuple((part.inputs_BT, _targets(self.tally, part)) for part in parts), link)

    def verdicts(self) -> list[GateResult]:
        """What the referee saw."""
        passed = self._changed <= self.tolerance.same_shape
        asked = len(self._gains)
        again = f"{asked} batches asked for again before learning changed by at most {self._changed:.1e} nats."
        return [
            self._normalisation.result(),
            causality_verdict(self._gains, self.tolerance),
            GateResult("one pass", passed, again),
            check_chain(self.chain, self.tally),
        ]

    def _probe(self, index: int, windows: Sequence[Window], part: Batch) -> None:
        again = self.tally.read(part, self.learner.predict(part.inputs_BT, part.first))
        for row, (sequence, window) in enumerate(part.rows):
            recorded = self.tally.nats[sequence][window.first : window.stop]
            self._changed = max(self._changed, float(np.abs(again[row, : len(recorded)] - recorded).max()))
        target = int(self._random.integers(windows[0].first, windows[-1].stop))
        self._gains.append(gain_over_prefix(self.learner, self.tally, self.policy, (index, target)))


class _LowRank(nn.Module):
    """`W + scale B A` with B (outputs, rank) zero at first and A (rank, inputs) random."""

    def __init__(self, weight: Tensor, config: AdaptConfig, name: str) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.scale = config.scale
        start = torch.randn(config.rank, inputs, generator=generator(config.seed, "lora", name)) / inputs**0.5
        self.down = nn.Parameter(start.to(weight))
        self.up = nn.Parameter(weight.new_zeros(outputs, config.rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def _add_low_rank(network: LanguageModel, config: AdaptConfig) -> None:
    """Gives every matrix of the network a low-rank addition, found by its role."""
    for prefix, module in list(network.named_modules()):
        roles = module.roles() if isinstance(module, Part) else {}
        for name, role in roles.items():
            weight = getattr(module, name)
            if role == Role.MATRIX and weight.ndim == 2:
                parametrize.register_parametrization(
                    module, name, _LowRank(weight.detach(), config, f"{prefix}.{name}")
                )


def _chunks(sequences: Sequence[np.ndarray], policy: Policy, size: int) -> Iterator[tuple[int, list[Window]]]:
    """Neighbouring windows of one sequence with at least `size` targets together, but for its last ones."""
    for index, sequence in enumerate(sequences):
        chunk: list[Window] = []
        for window in policy.windows(len(sequence) - 1):
            chunk.append(window)
            if window.stop - chunk[0].first >= size:
                yield index, chunk
                chunk = []
        if chunk:
            yield index, chunk


def _targets(tally: Tally, part: Batch) -> Tensor:
    """The targets of a batch in their places, and -1 where a row has none of its own."""
    targets_BT = torch.full(part.inputs_BT.shape, -1)
    for row, (index, window) in enumerate(part.rows):
        scored = torch.from_numpy(tally.sequences[index][window.first + 1 : window.stop + 1])
        targets_BT[row, part.first : part.first + len(scored)] = scored
    return targets_BT
