"""Puts each technique of docs/adding.md to work, from a copy of the package that holds them: prints those that did.

python examples_at_work.py HOME
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.nn import functional

import fairway
from fairway.artifact.packing import signs  # pyrefly: ignore[missing-module-attribute]
from fairway.artifact.parts import coder, packing
from fairway.compress.parts import Piece, PrunerConfig, QuantizerConfig
from fairway.core.config import Slot, override
from fairway.core.errors import ArtifactError, DataError
from fairway.data.parts import SOURCES, TOKENIZERS, SourceConfig, TokenizerConfig, load_tokenizer
from fairway.loss.targets import Targets
from fairway.loss.transfer import DistillLossConfig
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.parts import Role
from fairway.optim.parts import OptimizerConfig, ScheduleConfig
from fairway.train.numerics import PrecisionConfig, RecomputeConfig

MODEL = {
    "mixer": "average",
    "ffn": "cubed",
    "norm": "peak",
    "position": "waves",
    "embedding": "amplified",
    "depth": "twice",
}


def made(*changes: str) -> LanguageModel:
    """A small model with some choices."""
    data = override({"model": {"width": 24, "context": 32}}, [f"model.{change}" for change in changes])
    return ModelConfig.read(data["model"]).build(64, seed=1).double()


def model_part(field: str, kind: str) -> None:
    """Cutting a sequence changes nothing, and a step of descent lowers the loss."""
    model = made(f"{field}.kind={kind}")
    tokens = torch.arange(24).remainder(7)[None]
    whole = model.logits(model(tokens).hidden_BTD)
    first = model(tokens[:, :9])
    second = model(tokens[:, 9:], first.state)
    parts = torch.cat((model.logits(first.hidden_BTD), model.logits(second.hidden_BTD)), dim=1)
    assert torch.allclose(whole, parts, atol=1e-9)
    assert lowers_the_loss(model)


def loss_of(model: LanguageModel) -> torch.Tensor:
    tokens = torch.arange(24).remainder(7)[None]
    return functional.cross_entropy(model.logits(model(tokens[:, :-1]).hidden_BTD)[0], tokens[0, 1:])


def lowers_the_loss(model: LanguageModel) -> bool:
    config = Slot("fairway.optim.optimizer", "sign").config("sign")()
    assert isinstance(config, OptimizerConfig)
    optimizer = config.build(model)
    before = loss_of(model)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step(1.0, 0.0)
    return bool(loss_of(model) < before)


def schedule() -> None:
    config = Slot("fairway.optim.schedule", "triangle").config("triangle")()
    assert isinstance(config, ScheduleConfig)
    factors = [config.factor(progress) for progress in (0.0, 0.15, 0.3, 0.65, 1.0)]
    assert np.allclose(factors, [0.05, 0.525, 1.0, 0.5, 0.0])


def source() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["id", "text"], ["1", "first,\nline"], ["2", "zweite Zeile"]])
        config = SOURCES.config("csv").read({"path": str(path)})
        assert isinstance(config, SourceConfig)
        assert [document.data.decode() for document in config.documents()] == ["first,\nline", "zweite Zeile"]
        wrong = SOURCES.config("csv").read({"path": str(path), "column": "txt"})
        assert isinstance(wrong, SourceConfig)
        said = ""
        try:
            list(wrong.documents())
        except DataError as error:
            said = str(error)
        assert 'Did you mean "text"?' in said


def tokenizer() -> None:
    config = TOKENIZERS.config("pair")()
    assert isinstance(config, TokenizerConfig)
    made = load_tokenizer("pair", config.train([], 0).save())
    for data in (b"", b"a", b"ab\xff", bytes(range(256))):
        assert made.decode(made.encode(data)) == data


def distill() -> None:
    """A step down the slope brings the student nearer to the teacher."""
    student = made()
    config = Slot("fairway.loss.distill", "hellinger").config("hellinger")()
    assert isinstance(config, DistillLossConfig)
    term = config.build(student, None).token_term
    assert term is not None
    source = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(4, 9, generator=source), Targets.of(torch.randn(4, 9, generator=source), 1.0)
    value, slope = term.value_and_slope(logits, targets)
    assert (term.value_and_slope(logits - 0.1 * slope, targets)[0] < value).all()


def precision() -> None:
    config = Slot("fairway.train.precision", "scaled").config("scaled")()
    assert isinstance(config, PrecisionConfig)
    plain, scaled = made(), made()
    loss_of(plain).backward()
    steps = config.build(scaled, torch.device("cpu"))
    with steps.forward():
        steps.scale(loss_of(scaled)).backward()
    steps.unscale(scaled.parameters())
    same_gradients(plain, scaled)


def recompute() -> None:
    plain, thrifty = made(), made()
    config = Slot("fairway.train.recompute", "first_half").config("first_half")()
    assert isinstance(config, RecomputeConfig)
    config.apply(thrifty)
    for model in (plain, thrifty):
        loss_of(model).backward()
    same_gradients(plain, thrifty)


def same_gradients(one: LanguageModel, other: LanguageModel) -> None:
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert first.grad is not None
        assert second.grad is not None
        assert torch.allclose(first.grad, second.grad, rtol=1e-12, atol=0)


def prune() -> None:
    config = Slot("fairway.compress.prune", "smallest").config("smallest").read({"share": 0.25})
    assert isinstance(config, PrunerConfig)
    model = made().float()
    pruned = config.build().prune(model, [])
    kept, weights = pruned.kept, dict(pruned.model.named_parameters())
    assert kept
    for name, mask in kept.items():
        assert abs(1 - mask.double().mean() - 0.25) < 0.01
        assert not weights[name][~mask].any()


def quantize() -> None:
    config = Slot("fairway.compress.quantize", "deadzone").config("deadzone")()
    assert isinstance(config, QuantizerConfig)
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    packed = config.build().quantize(Piece("w", Role.MATRIX, (8, 32), weight), -3.0)
    assert (packing(packed.kind).unpack(packed) - weight).abs().max() < 0.2


def code() -> None:
    symbols = np.array([3, -1, 2**31 - 1, 0, 0], np.int32)
    data = coder("deflate").encode(symbols)
    assert np.array_equal(coder("deflate").decode(data, 5), symbols)
    for wrong, count in ((data, 4), (data[:-1], 5), (data + b"x", 5), (b"", 5)):
        try:
            coder("deflate").decode(wrong, count)
        except ArtifactError:
            continue
        raise AssertionError(f"{wrong!r} was taken for {count} symbols")


def pack() -> None:
    weight = torch.tensor([[1.0, -3.0], [2.0, -2.0]])
    assert torch.equal(packing("signs").unpack(signs.pack(weight)), torch.tensor([[2.0, -2.0], [2.0, -2.0]]))


AT_WORK: dict[str, Callable[[], object]] = {
    "sign": lambda: lowers_the_loss(made()) or sys.exit("sign does not lower the loss"),
    "triangle": schedule,
    "hellinger": distill,
    "csv": source,
    "pair": tokenizer,
    "scaled": precision,
    "first_half": recompute,
    "smallest": prune,
    "deadzone": quantize,
    "deflate": code,
    "signs": pack,
}


def main(home: str) -> None:
    assert fairway.__file__ is not None
    assert fairway.__file__.startswith(home), fairway.__file__
    for field, kind in MODEL.items():
        model_part(field, kind)
        print(kind)
    for kind, work in AT_WORK.items():
        work()
        print(kind)


if __name__ == "__main__":
    main(sys.argv[1])
