"""A teacher beside the loop: its predictions of each batch, live or from disk, and the technique that learns from them.

The teacher takes no gradient, drops nothing out, and adds none of its own auxiliary losses. What is random depends on
the seed, the step and the micro-batch alone. Shape key: B batch, T time, N tokens, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fairway.core.budget import Budget, Seconds
from fairway.core.config import Config, Slot
from fairway.core.errors import ConfigError
from fairway.core.seed import generator
from fairway.data.batches import Batch
from fairway.data.parts import Tokenizer
from fairway.loss.next_token import FoldedTerm, Folding, Term
from fairway.loss.readout import product_dtype
from fairway.loss.targets import Predictions, Targets, TokenTerm
from fairway.loss.transfer import DistillLossConfig, Lesson
from fairway.model.lm import LanguageModel, ModelConfig, Output
from fairway.ops.cross_entropy.table import Table
from fairway.ops.likeliest.native import likeliest
from fairway.train.loop import TrainConfig
from fairway.train.parts import Hook, Trainee
from fairway.train.teacher_cache import TeacherCache, fingerprint

DISTILL = Slot("fairway.loss.distill", "soft")


class TeacherConfig(Config):
    """Which model teaches: one that exists, or one to train first on the same data."""

    path: str | None = None
    """A `.fwy` artifact, the folder of a run, or that of a Llama as `transformers` writes it, with the student's own
    tokenizer; what follows is then not used."""
    model: ModelConfig = ModelConfig(width=288)
    train: TrainConfig = TrainConfig()
    seconds: Seconds = 180.0
    """Training time of the teacher."""
    steps: int | None = Field(default=None, ge=1)
    """Train the teacher by exactly this many steps instead of by the clock."""


class DistillConfig(Config):
    """Learning from a teacher."""

    loss: Annotated[DistillLossConfig, DISTILL] = Field(default="soft", validate_default=True)
    teacher: TeacherConfig = TeacherConfig()
    top_k: int | None = Field(default=None, ge=1)
    """Teach the likeliest so many tokens and the mass of the rest; all tokens if not given."""
    cache: str | None = None
    """Folder that keeps the teacher's likeliest tokens for later runs of the same data, seed, batch; needs `top_k`."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of what a technique learns beside the student, such as FitNets' regressors."""
    baseline: bool = True
    """Train the same student without the teacher too, and give it the teacher's time on top of its own."""


def require_same_tokens(teacher: Tokenizer, student: Tokenizer, where: str) -> None:
    """Raises `ConfigError` where two models' token ids do not mean the same."""
    if teacher.kind == student.kind and teacher.save() == student.save():
        return
    if teacher.vocabulary != student.vocabulary:
        reason = f"it has {teacher.vocabulary:,} ids and the student {student.vocabulary:,}"
    else:
        ids = range(student.vocabulary)
        first = next((token for token in ids if teacher.piece(token) != student.piece(token)), None)
        reason = "they cut text differently" if first is None else f"id {first} is {teacher.piece(first)!r} to it and "
        reason += "" if first is None else f"{student.piece(first)!r} to the student"
    raise ConfigError(
        f"The teacher {where} speaks another vocabulary: {reason}. Its predictions cannot be compared token by token; "
        "a teacher trained on the same prepared data (leave out distill.teacher.path) would work."
    )


def budget_without(
    config: DistillConfig, budget: Budget, student: LanguageModel, teacher: LanguageModel, batch: int, seconds: float
) -> Budget:
    """What the student gets where it learns without its teacher: the seconds that training the teacher took, on top.

    Where steps are the budget, the steps with the FLOPs of training the teacher and of asking it at every step.
    """
    if budget.steps is None:
        return budget.model_copy(update={"seconds": budget.seconds + seconds})
    context, chosen = student.config.context, config.teacher
    asked = budget.steps * batch * context * teacher.flops(context)
    steps = 0 if chosen.path is not None else chosen.steps or 0
    trained = 3 * steps * chosen.train.batch * chosen.model.context * teacher.flops(chosen.model.context)
    more = round((asked + trained) / (3 * batch * context * student.flops(context)))
    return budget.model_copy(update={"steps": budget.steps + more})


class Teaching(Hook):
    """Adds what a technique makes of the teacher to the student's loss."""

    def __init__(
        self,
        config: DistillConfig,
        student: LanguageModel,
        teacher: LanguageModel,
        train: TrainConfig,
        seed: int,
        boundary: int,
        batches: dict[str, Any],
    ) -> None:
        """`batches`: all that the text of a step's micro-batches depends on, which marks a cache of predictions."""
        if teacher.config.context < student.config.context:
            raise ConfigError(
                f"The teacher was made for {teacher.config.context} tokens, the student for {student.config.context}; "
                f"model.context={teacher.config.context} or a teacher with a longer context would work."
            )
        if train.compile and config.loss.reads_layers():
            raise ConfigError(
                f"distill.loss.kind={config.loss.kind} looks inside the models; train.compile=false would work."
            )
        if train.isolate_documents and not teacher.config.isolates_documents():
            raise ConfigError(
                "The teacher's mixers cannot hide earlier documents; train.isolate_documents=false would work."
            )
        _check_cache(config, teacher.vocabulary)
        self.config, self.isolate = config, train.isolate_documents
        self.teacher = teacher.eval().requires_grad_(False).to(student.device)
        self.seed, self.boundary = seed, boundary
        self.distiller = config.loss.build(student, self.teacher)
        learned = self.distiller.learned
        alone = self.distiller.token_term is None or config.cache is not None
        self.ranks = "one" if alone else "replicas"
        self.optimizer = torch.optim.AdamW(learned.parameters(), config.learning_rate) if learned is not None else None
        self.cache = None
        if config.cache is not None:
            temperature = getattr(config.loss, "temperature", 1.0)
            facts = {"teacher": fingerprint(teacher), "top_k": config.top_k, "temperature": temperature}
            self.cache = TeacherCache(Path(config.cache), {**facts, **batches}, teacher.vocabulary)
        self._step, self._part = -1, -1
        self._total, self._tokens = 0.0, 0

    def next_token_weight(self, loop: Trainee) -> float:
        return self.distiller.next_token_weight(loop.progress)

    def term(self, loop: Trainee, batch: Batch) -> Term | None:
        self._enter(loop.step, batch)
        token_term = self.distiller.token_term
        if token_term is None:
            return None
        top_k = self.config.top_k
        if top_k is None or top_k >= self.teacher.vocabulary:
            return _Whole(token_term, self._live(batch), self._count)
        return _Likeliest(token_term, self._predictions(loop.step, batch, top_k, token_term.temperature), self._count)

    def loss(self, loop: Trainee, batch: Batch, output: Output) -> dict[str, Tensor]:
        assert isinstance(loop.model, LanguageModel)
        source = generator(self.seed, "distill", self._step, self._part)
        starts_BT = batch.starts_BT if self.isolate else None
        lesson = Lesson(
            batch.tokens_BT, starts_BT, loop.model, output, self.teacher, loop.progress, source, self.boundary
        )
        loss = self.distiller.loss(lesson)
        if loss is None:
            return {}
        self._total += float(loss.detach()) * batch.tokens_BT[:, 1:].numel()
        return {"distill": loss}

    def gradients(self, loop: Trainee) -> bool:  # noqa: ARG002
        if self.optimizer is not None:
            self.optimizer.step()
        return False

    def stepped(self, loop: Trainee) -> dict[str, float]:  # noqa: ARG002
        return {"distill/loss": self._total / max(1, self._tokens)}

    def finish(self, loop: Trainee) -> None:  # noqa: ARG002
        self.distiller.finish()

    def state(self) -> dict[str, Tensor]:
        if self.optimizer is None or self.distiller.learned is None:
            return {}
        moments = {
            f"adam.{index}.{name}": value
            for index, entry in self.optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        return {**{f"learned.{name}": value for name, value in self.distiller.learned.state_dict().items()}, **moments}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self.optimizer is None or self.distiller.learned is None:
            assert not state
            return
        own = {name.removeprefix("learned."): value for name, value in state.items() if name.startswith("learned.")}
        self.distiller.learned.load_state_dict(own)
        whole = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("adam."):
                _, index, key = name.split(".", 2)
                moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**whole, "state": moments})

    def _count(self, value_N: Tensor) -> None:
        self._total += float(value_N.sum())

    def _enter(self, step: int, batch: Batch) -> None:
        """Counts micro-batches; a new step begins with clean gradients and figures."""
        if step != self._step:
            self._step, self._part, self._total, self._tokens = step, -1, 0.0, 0
            if self.optimizer is not None:
                self.optimizer.zero_grad()
        self._part += 1
        self._tokens += batch.tokens_BT[:, 1:].numel()

    def _predictions(self, step: int, batch: Batch, top_k: int, temperature: float) -> Predictions:
        if self.cache is None:
            return _LiveTop(self._live(batch), top_k)
        stored = self.cache.read(step, self._part, batch.tokens_BT)
        if stored is None:
            pieces = list(_LiveTop(self._live(batch), top_k).pieces(temperature))
            log_p_NM = torch.cat([piece.log_p_NM for piece in pieces])
            index_NK = torch.cat([piece.index_NK for piece in pieces if piece.index_NK is not None])
            stored = self.cache.write(step, self._part, batch.tokens_BT, Targets(log_p_NM, index_NK))
        return _Stored(stored)

    @torch.no_grad()
    def _live(self, batch: Batch) -> "_Live":
        starts_BT = batch.starts_BT[:, :-1] if self.isolate else None
        return _Live(self.teacher, self.teacher(batch.tokens_BT[:, :-1], starts_BT=starts_BT).hidden_BTD.flatten(0, 1))


class _Live:
    """Logits before the soft cap from the teacher's hidden vectors, so that none of a whole batch exist."""

    def __init__(self, teacher: LanguageModel, hidden_ND: Tensor) -> None:
        self.teacher, self.hidden_ND = teacher, hidden_ND
        self.softcap = teacher.head.config.softcap
        table = teacher.head.table(teacher.embedding)
        # Copied once into the dtype of the product rather than for every piece.
        self.table = table and Table(table.weight_VD.detach().to(product_dtype(hidden_ND)), table.scale)

    @torch.no_grad()
    def logits(self, span: slice) -> Tensor:
        hidden_ND = self.hidden_ND[span]
        return self.table(hidden_ND) if self.table else self.teacher.head.uncapped(hidden_ND, self.teacher.embedding)


@dataclass(frozen=True)
class _Whole:
    """A term of the teacher's whole distributions."""

    term: TokenTerm
    live: _Live
    count: Callable[[Tensor], None]
    """Is told the term at every token."""

    def __call__(self, z_NV: Tensor, span: slice, softcap: float | None) -> tuple[Tensor, Tensor]:
        value_N, slope_NV = self.term.whole(z_NV, softcap, self.live.logits(span), self.live.softcap)
        self.count(value_N)
        return value_N, slope_NV


@dataclass(frozen=True)
class _Likeliest(FoldedTerm):
    """A term of the teacher's likeliest tokens and the mass of the rest."""

    term: TokenTerm
    predictions: Predictions
    count: Callable[[Tensor], None]
    """Is told the term at every token."""

    def fold(self, span: slice) -> Folding:
        targets = self.predictions.targets(span, self.term.temperature)
        assert targets.index_NK is not None

        def value_and_slope(log_s_NM: Tensor) -> tuple[Tensor, Tensor]:
            value_N, slope_NM = self.term.folded(log_s_NM, targets)
            self.count(value_N)
            return value_N, slope_NM

        return Folding(targets.index_NK, self.term.temperature, value_and_slope)


@dataclass(frozen=True)
class _LiveTop:
    """The likeliest tokens of a teacher at work."""

    live: _Live
    top_k: int

    def targets(self, span: slice, temperature: float) -> Targets:
        return Targets.of_likeliest(*likeliest(self.live.logits(span), self.top_k, self.live.softcap, temperature))

    def pieces(self, temperature: float, size: int = 2048) -> Iterator[Targets]:
        for start in range(0, len(self.live.hidden_ND), size):
            yield self.targets(slice(start, start + size), temperature)


@dataclass(frozen=True)
class _Stored:
    """Targets read from disk, already at their temperature."""

    whole: Targets

    def targets(self, span: slice, temperature: float) -> Targets:  # noqa: ARG002
        assert self.whole.index_NK is not None
        return Targets(self.whole.log_p_NM[span], self.whole.index_NK[span])


def _check_cache(config: DistillConfig, vocabulary: int) -> None:
    if config.cache is None:
        return
    if not config.loss.reads_predictions():
        raise ConfigError(
            f"distill.loss.kind={config.loss.kind} needs the teacher itself, so distill.cache cannot serve it; "
            "leave it out, or take soft, forward_kl, reverse_kl, js or skew_kl."
        )
    if config.top_k is None or config.top_k >= vocabulary:
        raise ConfigError(
            f"distill.cache keeps the teacher's likeliest tokens, fewer than all {vocabulary:,}; "
            "distill.top_k=32 would work."
        )
