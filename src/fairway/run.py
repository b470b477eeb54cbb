"""The composition root: a recipe holds every stage's settings, a run folder holds every stage's result.

`text -> manifest -> checkpoint -> artifact -> score -> summary`. Each stage reads what the one before it wrote and is skipped where
its result already stands, so a run that was stopped goes on when the same command is given again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
from fairway.evaluate.bpb import EvaluateConfig
from fairway.evaluate.fresh import score_in_fresh_process
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.serve.load import load
from fairway.train.checkpoint import CHECKPOINTS, Checkpoint, latest_checkpoint
from fairway.train.loop import Loop, TrainConfig
from fairway.train.meter import Meter
from fairway.train.parts import Hook
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


class Run:
    """A recipe and the folder its results lie in."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.artifact = folder / "model.fwy"
        self.data = folder / "data"
        self.fit, self.score = folder / "fit.json", folder / "score.json"
        ledger = folder / "ledger.json"
        self.ledger = Ledger(read_json(ledger) if ledger.exists() else None)
        self._manifest: Manifest | None = None

    @classmethod
    def create(cls, recipe: Recipe, folder: Path) -> "Run":
        """A run in a folder that holds the same recipe, or nothing but a recipe."""
        stored = folder / "recipe.yaml"
        if stored.exists() and any(path.name not in (stored.name, LOCK) for path in folder.iterdir()):
            old = Recipe.read(read_yaml(stored), origin=str(stored))
            if old != recipe:
                raise ConfigError(
                    f"{folder} holds another run ({differences(old, recipe)}); name another folder, or delete this one."
                )
        else:
            write_text(stored, yaml.safe_dump(recipe.plain(), sort_keys=False))
        return cls(recipe, folder)

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
                self.train(listener)
                self.compress(listener)
                score = self.evaluate(listener)
                self.write_sample(listener)
            finally:
                write_json(self.folder / "ledger.json", self.ledger.entries())
            return self._summarise(score)

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
        """Shards to checkpoints, from the newest one on."""
        machine.keep_freed_memory()
        machine.use_threads()
        manifest = self.prepare(listener)
        with self.ledger.phase("load"):
            loop = self.training(manifest)
        with self.ledger.phase("train"):
            loop.run(listener)

    def training(self, manifest: Manifest, hooks: Sequence[Hook] = ()) -> Loop:
        """The loop that trains this recipe's model on a manifest."""
        recipe = self.recipe
        model = recipe.model.build(manifest.tokenizer.vocabulary, recipe.seed, machine.select(recipe.device))
        facts = {"recipe": recipe.fingerprint(), "data": manifest.fingerprint, "threads": torch.get_num_threads()}
        bytes_per_token = manifest.train.bytes / manifest.train.tokens
        meter = Meter(bytes_per_token, model.flops(recipe.model.context), _matrix_peak(model.device, recipe.train.precision.kind))
        watching = Validation(manifest, meter, recipe.model.context, recipe.train.validation)
        batches = Batches(manifest, recipe.seed)
        return Loop(
            model, batches, recipe.train, recipe.budget, recipe.seed, self.folder, facts, meter, (watching, *hooks)
        )

    def trained(self, listener: Listener) -> tuple[LanguageModel, Checkpoint]:
        """The model with the weights to keep, averaged where the recipe averages, and the checkpoint they come from."""
        checkpoint = latest_checkpoint(self.folder / CHECKPOINTS, listener)
        if checkpoint is None:
            raise ConfigError(f"{self.folder} holds no checkpoint; train first: fairway train {self.folder}")
        model = self.recipe.model.skeleton(self.prepare(listener).tokenizer.vocabulary).to_empty(device="cpu")
        model.load_state_dict({**checkpoint.groups["model"], **checkpoint.groups["average"]})
        return model, checkpoint

    def compress(self, listener: Listener) -> None:
        """The trained weights to an artifact that fits the cap."""
        manifest = self.prepare(listener)
        with self.ledger.phase("compress"):
            model, checkpoint = self.trained(listener)
            if self._compressed(checkpoint):
                return
            notes = {"recipe": self.recipe.fingerprint(), "seconds_train": round(checkpoint.facts["elapsed"], 3)}
            tokenizer = manifest.tokenizer
            calibration = self._calibration(manifest)
            config, cap = self.recipe.compress, self.recipe.budget.bytes
            saved = tokenizer.save()
            fit = compress_model(model, tokenizer.kind, saved, config, cap, self.artifact, notes, calibration, listener)
            facts = {name: value for name, value in vars(fit).items() if name != "report"}
            write_json(self.fit, {**facts, "step": checkpoint.step, "sha256": sha256(self.artifact)})

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

    def _calibration(self, manifest: Manifest) -> list[torch.Tensor]:
        """Training text, never validation text, for techniques that look at activations."""
        batches = Batches(manifest, self.recipe.seed)
        sequences, context = self.recipe.compress.calibration_sequences, self.recipe.model.context
        return list(batches.at(0, sequences, context).tokens_BT[:, :-1].split(16))

    def _summarise(self, score: dict[str, Any]) -> Summary:
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
            tokens=checkpoint.step * self.recipe.train.batch * self.recipe.model.context,
            peak_memory_bytes=machine.peak_memory(),
            fingerprint=self.recipe.fingerprint(),
            machine=describe_machine(),
        )
        write_json(self.folder / "summary.json", vars(summary))
        return summary


def differences(old: Config, new: Config) -> str:
    """The settings in which two configs differ, as `model.width 128 -> 192`."""
    before, after = dict(_flat(old.plain())), dict(_flat(new.plain()))
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name)} -> {after.get(name)}" for name in changed[:6])


def _matrix_peak(device: torch.device, precision: str) -> float:
    """FLOP/s that matrix products reach in the precision of training."""
    half = precision != "fp32" and machine.fast_bfloat16(device.type)
    return gemm_ceiling(torch.bfloat16 if half else torch.float32, device, seconds=0.1)


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(path, value)]
    return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}" if path else key)]

