"""The composition root: a recipe holds every stage's settings, a run folder holds every stage's result.

`text -> manifest -> checkpoint -> artifact -> score -> summary`. Each stage reads what the one before it wrote and is
skipped where its result already stands, so a run that was stopped goes on when the same command is given again.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field

from fairway.compress.fit import compress_model
from fairway.compress.plan import CompressConfig
from fairway.core import device as machine
from fairway.core.budget import Budget, Ledger
from fairway.core.config import Config, override, read_yaml
from fairway.core.errors import ConfigError
from fairway.core.log import Event, Listener, silent
from fairway.core.probe import gemm_ceiling
from fairway.core.probe import machine as describe_machine
from fairway.core.storage import LOCK, MANIFEST, locked, read_json, sha256, write_json, write_text
from fairway.data.batches import Batches
from fairway.data.manifest import DataConfig, Manifest, prepare
from fairway.data.parts import Tokenizer
from fairway.evaluate.bpb import EvaluateConfig
from fairway.evaluate.fresh import score_in_fresh_process
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.weights import fill
from fairway.optim.mup import Parametrisation, parametrise
from fairway.optim.widths import at_width
from fairway.serve.load import load
from fairway.train import llama_folder
from fairway.train.checkpoint import CHECKPOINTS, Checkpoint, latest_checkpoint
from fairway.train.distributed import ALONE
from fairway.train.loop import Loop, TrainConfig
from fairway.train.meter import Meter
from fairway.train.parts import Hook
from fairway.train.profile import Profile, Stopwatch
from fairway.train.provenance import accept_changes, facts_of
from fairway.train.teacher import DistillConfig, Teaching, budget_without, require_same_tokens
from fairway.train.upcycling import begin_as_dense
from fairway.train.validation import Validation


class SampleConfig(Config):
    """The text a finished run writes."""

    prompt: str = ""
    tokens: int = Field(default=200, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)


class Recipe(Config):
    """Everything that decides a run."""

    name: str = Field(default="default", pattern=r"[A-Za-z0-9_.-]{1,64}")
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    compress: CompressConfig = CompressConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    sample: SampleConfig = SampleConfig()
    budget: Budget = Budget()
    distill: DistillConfig | None = None
    """Learning from a teacher; none if not given."""


def load_recipe(path: Path | None, assignments: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file, or the defaults, with `section.field=value` assignments applied."""
    data = read_yaml(path) if path is not None else {}
    return Recipe.read(override(data, assignments), origin=str(path) if path else "recipe")


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    run: str
    artifact: str
    bits_per_byte: float
    bytes: int
    bytes_cap: int
    seconds_train: float
    seconds_total: float
    parameters: int
    steps: int
    tokens: int
    peak_memory_bytes: int
    fingerprint: str
    machine: dict[str, Any]
    teacher_seconds_train: float | None = None
    """Training time of the teacher, where there is one and it is known."""
    scratch_bits_per_byte: float | None = None
    """Of the same model trained without the teacher, for its own and the teacher's time."""
    scratch_seconds_train: float | None = None


class Run:
    """A recipe and the folder its results lie in."""

    def __init__(self, recipe: Recipe, folder: Path, data: Path | None = None) -> None:
        """`data`: the prepared folder of another run of the same data, if it is to be shared."""
        self.recipe, self.folder = recipe, folder
        self.artifact = folder / "model.fwy"
        self.data = data or folder / "data"
        self.fit, self.score = folder / "fit.json", folder / "score.json"
        ledger = folder / "ledger.json"
        self.ledger = Ledger(read_json(ledger) if ledger.exists() else None)
        self.allow_changes = False
        """Go on from a checkpoint of another recipe, text or code, with the change on record."""
        self.team = ALONE
        self.profiled = False
        """Whether training measures where its time goes, into `profile`."""
        self.profile: Profile | None = None
        self._manifest: Manifest | None = None

    @classmethod
    def create(cls, recipe: Recipe, folder: Path, *, allow_changes: bool = False) -> "Run":
        """A run in a folder that holds the same recipe, or nothing but a recipe, or, where allowed, another recipe."""
        stored = folder / "recipe.yaml"
        if stored.exists() and any(path.name not in (stored.name, LOCK) for path in folder.iterdir()):
            old = Recipe.read(read_yaml(stored), origin=str(stored))
            if old != recipe and not allow_changes:
                raise ConfigError(
                    f"{folder} holds another run ({differences(old, recipe)}); name another folder, delete this one, "
                    "or go on with the change on record by --allow-changes."
                )
        else:
            old = None
        if old != recipe:
            write_text(stored, yaml.safe_dump(recipe.plain(), sort_keys=False))
        run = cls(recipe, folder)
        run.allow_changes = allow_changes
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run whose recipe a folder holds."""
        if not (folder / "recipe.yaml").exists():
            raise ConfigError(f"{folder} is not a run folder: it holds no recipe.yaml.")
        return cls(Recipe.read(read_yaml(folder / "recipe.yaml"), origin=str(folder / "recipe.yaml")), folder)

    def execute(self, listener: Listener) -> Summary:
        """All stages, each skipped where its result already stands."""
        with locked(self.folder, "start a run"):
            try:
                self._train(listener)
                self.compress(listener)
                score = self.evaluate(listener)
                self.write_sample(listener)
                scratch = self.train_from_scratch(listener)
            finally:
                write_json(self.folder / "ledger.json", self.ledger.entries())
            return self._summarise(score, scratch)

    def prepare(self, listener: Listener) -> Manifest:
        """Text to checked token shards."""
        if self._manifest is None:
            with self.ledger.phase("prepare"):
                self._manifest = self._prepared(listener)
        return self._manifest

    def _prepared(self, listener: Listener) -> Manifest:
        if (self.data / MANIFEST).exists():
            manifest = Manifest.read(self.data)
            if manifest.fingerprint == self.recipe.data.fingerprint():
                return manifest
        return prepare(self.recipe.data, self.data, lambda done, what: listener(Event("prepare", done, message=what)))

    def train(self, listener: Listener) -> None:
        """Shards to checkpoints, from the newest one on; every rank of the team must call this."""
        with locked(self.folder, "train") if self.team.first else nullcontext():
            self._train(listener)

    def _train(self, listener: Listener) -> None:
        machine.keep_freed_memory()
        machine.route_float32_products()
        machine.use_threads()
        with self.team.first_goes_ahead():
            manifest = self.prepare(listener)
            if self.team.first:
                self.train_teacher(listener)
        with self.ledger.phase("load"):
            loop = self.training(manifest)
            if self.team.first and self.allow_changes and accept_changes(self.folder, loop.facts, listener):
                self.fit.unlink(missing_ok=True)
                self.score.unlink(missing_ok=True)
            self.team.barrier()
        loop.stopwatch = Stopwatch(loop.model.device if self.profiled else None)
        with self.ledger.phase("train"):
            loop.run(listener)
        if self.profiled:
            self.profile = loop.stopwatch.result()

    def training(self, manifest: Manifest, hooks: Sequence[Hook] = ()) -> Loop:
        """The loop that trains this recipe's model on a manifest."""
        recipe = self.recipe
        vocabulary, device = manifest.tokenizer.vocabulary, machine.select(recipe.device)
        grown = self._grown(vocabulary)
        model = (grown or recipe.model).build(vocabulary, recipe.seed, device)
        if recipe.train.upcycle is not None:
            begin_as_dense(model, Path(recipe.train.upcycle), manifest.tokenizer_record.sha256)
        facts = facts_of(dict(_flat(recipe.plain())), manifest, self.folder)
        bytes_per_token = manifest.train.bytes / manifest.train.tokens
        meter = Meter(
            bytes_per_token, model.flops(recipe.model.context), _matrix_peak(model.device, recipe.train.precision.kind)
        )
        watching = Validation(manifest, meter, recipe.model.context, recipe.train.validation)
        compressing = (*recipe.compress.prune.hooks(recipe.seed), *recipe.compress.quantize.hooks())
        hooks = (watching, *self._teaching(manifest, model), *compressing, *hooks)
        batches = Batches(manifest, recipe.seed)
        scales = grown.scales if grown else None
        settings = (recipe.train, recipe.budget, recipe.seed, self.folder, facts, meter)
        return Loop(model, batches, *settings, hooks, self.team, scales)

    def _grown(self, vocabulary: int) -> Parametrisation | None:
        """The model in muP, where the learning rates were tuned at another width."""
        model, train = self.recipe.model, self.recipe.train
        if train.tuned_width is None:
            return None
        return parametrise(model, at_width(model, train.tuned_width), vocabulary, train.optimizer)

    def trained(self, listener: Listener) -> tuple[LanguageModel, Checkpoint]:
        """The model with the weights to keep, averaged where the recipe averages, and the checkpoint they come from."""
        checkpoint = latest_checkpoint(self.folder / CHECKPOINTS, listener)
        if checkpoint is None:
            raise ConfigError(f"{self.folder} holds no checkpoint; train first: fairway train {self.folder}")
        vocabulary = self.prepare(listener).tokenizer.vocabulary
        grown = self._grown(vocabulary)
        model = (grown.config if grown else self.recipe.model).skeleton(vocabulary).to_empty(device="cpu")
        fill(model, {**checkpoint.groups["model"], **checkpoint.groups["average"]})
        return model, checkpoint

    def compress(self, listener: Listener) -> dict[str, Any]:
        """The trained weights to an artifact that fits the cap; returns its bytes, the cap and the bytes predicted."""
        manifest = self.prepare(listener)
        with self.ledger.phase("compress"):
            model, checkpoint = self.trained(listener)
            if self._compressed(checkpoint):
                return read_json(self.fit)
            notes = {"recipe": self.recipe.fingerprint(), "seconds_train": round(checkpoint.facts["elapsed"], 3)}
            tokenizer, calibration = manifest.tokenizer, [ids_BT[:, :-1] for ids_BT in self.calibration(manifest)]
            config, cap, saved = self.recipe.compress, self.recipe.budget.bytes, tokenizer.save()
            fit = compress_model(model, tokenizer.kind, saved, config, cap, self.artifact, notes, calibration, listener)
            facts = {name: value for name, value in vars(fit).items() if name != "report"}
            facts |= {"step": checkpoint.step, "sha256": sha256(self.artifact)}
            write_json(self.fit, facts)
            return facts

    def _compressed(self, checkpoint: Checkpoint) -> bool:
        """Whether the artifact was made from this very checkpoint."""
        if not (self.fit.exists() and self.artifact.exists()):
            return False
        fit = read_json(self.fit)
        return fit["step"] == checkpoint.step and fit["sha256"] == sha256(self.artifact)

    def evaluate(self, listener: Listener) -> dict[str, Any]:
        """The artifact's score, by a fresh process that sees nothing but the artifact and the validation text."""
        if self.score.exists() and self.artifact.exists():
            score = read_json(self.score)
            if score["artifact"] == sha256(self.artifact):
                return score
        with self.ledger.phase("evaluate"):
            score = score_in_fresh_process(self.artifact, self.data, self.recipe.evaluate, listener)
            write_json(self.score, score)
            return score

    def write_sample(self, listener: Listener) -> str:
        """A text written by the artifact."""
        with self.ledger.phase("sample"):
            sample = self.recipe.sample
            settings = {"temperature": sample.temperature, "top_p": sample.top_p, "seed": self.recipe.seed}
            pieces = load(self.artifact).generate(sample.prompt, tokens=sample.tokens, **settings)
            text = sample.prompt + "".join(pieces)
            write_text(self.folder / "sample.txt", text)
            listener(Event("sample", 1.0))
            return text

    def train_teacher(self, listener: Listener) -> None:
        """Trains the teacher where the recipe describes one that does not exist yet."""
        teacher = self._teacher_run()
        if teacher is not None:
            with self.ledger.phase("teacher"):
                teacher.train(_as_part(listener, "teacher"))

    def train_from_scratch(self, listener: Listener) -> Summary | None:
        """The honest comparison: the same model without a teacher, trained for its own and the teacher's time.

        Where steps and not seconds are the budget, the teacher's time counts as the steps with as many FLOPs.
        """
        distill, budget = self.recipe.distill, self.recipe.budget
        if distill is None or not distill.baseline:
            return None
        teacher, _, seconds = self._teacher(self.prepare(listener))
        student = self.recipe.model.skeleton(teacher.vocabulary)
        longer = budget_without(distill, budget, student, teacher, self.recipe.train.batch, seconds or 0.0)
        recipe = self.recipe.model_copy(update={"distill": None, "budget": longer, "name": "scratch"})
        with self.ledger.phase("scratch"):
            return Run(recipe, self.folder / "scratch", self.data).execute(_as_part(listener, "scratch"))

    def _teacher_run(self) -> "Run | None":
        """The run that trains the teacher; None where there is none to train."""
        distill = self.recipe.distill
        if distill is None or distill.teacher.path is not None:
            return None
        chosen = distill.teacher
        budget = self.recipe.budget.model_copy(update={"seconds": chosen.seconds, "steps": chosen.steps})
        changes = {"distill": None, "budget": budget, "name": "teacher", "model": chosen.model, "train": chosen.train}
        return Run(self.recipe.model_copy(update=changes), self.folder / "teacher", self.data)

    def _teacher(self, manifest: Manifest) -> tuple[LanguageModel, Tokenizer, float | None]:
        """The teacher, its tokenizer, and the seconds that its training took where they are known."""
        assert self.recipe.distill is not None
        run, path = self._teacher_run(), Path(self.recipe.distill.teacher.path or "")
        if run is None and (path / llama_folder.CONFIG).exists():
            return (*llama_folder.read_llama(path), None)
        if run is None and path.is_dir():
            run = Run.open(path)
        if run is not None:
            model, checkpoint = run.trained(silent)
            tokenizer = manifest.tokenizer if run.data == self.data else run.prepare(silent).tokenizer
            return model, tokenizer, float(checkpoint.facts["elapsed"])
        if not path.is_file():
            raise ConfigError(f"There is no teacher {path}; a .fwy file, or a folder of a run or a Llama would work.")
        served = load(path)
        seconds = served.notes.get("seconds_train")
        return served.network, served.tokenizer, float(seconds) if isinstance(seconds, (int, float)) else None

    def _teaching(self, manifest: Manifest, student: LanguageModel) -> tuple[Hook, ...]:
        """What joins the teacher to the loop; nothing where there is none."""
        recipe, distill = self.recipe, self.recipe.distill
        if distill is None:
            return ()
        teacher, tokenizer, _ = self._teacher(manifest)
        require_same_tokens(tokenizer, manifest.tokenizer, distill.teacher.path or "")
        shape = [recipe.train.batch, recipe.train.micro_batch, recipe.model.context]
        batches = {"data": manifest.fingerprint, "seed": recipe.seed, "batch": shape}
        boundary = manifest.tokenizer.boundary
        return (Teaching(distill, student, teacher, recipe.train, recipe.seed, boundary, batches),)

    def calibration(self, manifest: Manifest) -> list[torch.Tensor]:
        """Training text, never validation text, for techniques that look at activations: token ids (B, T + 1)."""
        batches = Batches(manifest, self.recipe.seed)
        sequences, context = self.recipe.compress.calibration_sequences, self.recipe.model.context
        return list(batches.at(0, sequences, context).tokens_BT.split(16))

    def _summarise(self, score: dict[str, Any], scratch: Summary | None) -> Summary:
        model, checkpoint = self.trained(silent)
        summary = Summary(
            run=str(self.folder),
            artifact=str(self.artifact),
            bits_per_byte=score["bits_per_byte"],
            bytes=self.artifact.stat().st_size,
            bytes_cap=self.recipe.budget.bytes,
            seconds_train=round(checkpoint.facts["elapsed"], 3),
            seconds_total=round(self.ledger.total(), 3),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            steps=checkpoint.step,
            tokens=checkpoint.facts["tokens"],
            peak_memory_bytes=machine.peak_memory(),
            fingerprint=self.recipe.fingerprint(),
            machine=describe_machine(),
            teacher_seconds_train=self._teacher(self.prepare(silent))[2] if self.recipe.distill else None,
            scratch_bits_per_byte=scratch.bits_per_byte if scratch else None,
            scratch_seconds_train=scratch.seconds_train if scratch else None,
        )
        write_json(self.folder / "summary.json", vars(summary))
        return summary


def differences(old: Config, new: Config) -> str:
    """The settings in which two configs differ, as `model.width 128 -> 192`."""
    before, after = dict(_flat(old.plain())), dict(_flat(new.plain()))
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name)} -> {after.get(name)}" for name in changed[:6])


def _as_part(listener: Listener, name: str) -> Listener:
    """Events of a run inside a run, told apart by the names of their phases."""
    return lambda event: listener(replace(event, phase=f"{name}: {event.phase}"))


def _matrix_peak(device: torch.device, precision: str) -> float:
    """FLOP/s that matrix products reach in the precision of training."""
    half = precision != "fp32" and machine.fast_bfloat16(device.type)
    return gemm_ceiling(torch.bfloat16 if half else torch.float32, device, seconds=0.1)


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(path, value)]
    return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}" if path else key)]
