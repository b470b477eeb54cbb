"""Any two parts from different slots work together: they train, every parameter learns, and all of it can be restored.

A pair that cannot work is refused when its recipe is read, and `REFUSED` says why.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.errors import ConfigError
from fairway.model.lm import DEPTH, EMBEDDING, FFN, MIXER, NORM, POSITION, LanguageModel, ModelConfig
from fairway.model.parts import after_step
from fairway.optim.optimizer.muon import Config as Muon
from fairway.optim.parts import Optimizer
from laws import building
from laws.models import VOCABULARY, model_config, model_runner, sample_tokens, technique
from laws.state import assert_close, in_pieces

SLOTS = {"mixer": MIXER, "ffn": FFN, "norm": NORM, "position": POSITION, "embedding": EMBEDDING, "depth": DEPTH}
PAIRS = list(itertools.combinations(SLOTS, 2))
REFUSED: dict[str, Callable[[ModelConfig], bool]] = {
    "no mixer of this model reads value embeddings": lambda config: not config.mixer[0].value_features(48),
}


def train_three_steps(config: ModelConfig) -> tuple[LanguageModel, Optimizer]:
    """Three real steps on random tokens; every parameter must have learned by then."""
    model = building.built(lambda: LanguageModel(config, VOCABULARY), awake=False).train()
    optimizer = Muon(kind="muon").build(model)
    learned: set[str] = set()
    for step in range(3):
        loss, statistics = loss_of(model, sample_tokens(seed=step), step / 3)
        assert loss.isfinite(), f"the loss of step {step} is {loss}"
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
            if parameter.grad is not None and parameter.grad.any():
                learned.add(name)
        optimizer.step(0.1, step / 3)
        after_step(model, statistics)
    idle = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - learned
    assert not idle, f"{sorted(idle)} never got a gradient"
    return model, optimizer


def loss_of(model: LanguageModel, tokens_BT: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
    output = model(tokens_BT, progress=progress)
    logits_BTV = model.logits(output.hidden_BTD, progress)[:, :-1]
    nats = functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
    return nats + output.aux.loss(), output.aux.statistics


def check_restored(config: ModelConfig, model: LanguageModel, optimizer: Optimizer) -> None:
    """A new model with the stored parameters and optimizer state says the same and takes the same next step."""
    other = building.built(lambda: LanguageModel(config, VOCABULARY), seed=9, awake=False).train()
    stored = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(stored.pop(name))
    assert not stored
    again = Muon(kind="muon").build(other)
    again.load_state({name: tensor.clone() for name, tensor in optimizer.state().items()})
    for one, its in ((model, optimizer), (other, again)):
        loss, _ = loss_of(one, sample_tokens(seed=4), 1.0)
        its.zero_grad()
        loss.backward()
        its.step(0.1, 1.0)
    tokens = sample_tokens(seed=5)
    assert torch.equal(model(tokens).hidden_BTD, other(tokens).hidden_BTD)


def check_state(model: LanguageModel) -> None:
    """Outside training a cut changes nothing."""
    tokens = sample_tokens(12)
    with torch.no_grad():
        whole, _ = in_pieces(model_runner(model.eval(), tokens), [0, 12])
        pieces, _ = in_pieces(model_runner(model, tokens), [0, 5, 6, 12])
    assert_close(pieces, whole, 1e-8, "outputs cut at 5 and 6")


def verdict(parts: dict[str, str]) -> str:
    """`ok`, or `refused` where the recipe says so for a known reason."""
    settings: dict[str, Any] = {slot: technique(kind) for slot, kind in parts.items()}
    if "mixer" not in settings:
        settings["mixer"] = technique("attention", heads=3)
    config = read(settings)
    if isinstance(config, str):
        reasons = [reason for reason in REFUSED if reason in config]
        assert reasons, f"{parts} is refused for a reason that is not listed: {config}"
        unlike = model_config(**{**settings, "embedding": technique("token")})
        assert REFUSED[reasons[0]](unlike), f"{parts} is refused without cause: {config}"
        return "refused"
    model, optimizer = train_three_steps(config)
    check_restored(config, model, optimizer)
    check_state(model)
    return "ok"


def read(settings: dict[str, Any]) -> ModelConfig | str:
    """The recipe, or what is wrong with it."""
    try:
        return model_config(**settings)
    except ConfigError as error:
        return str(error)


def mixed_companies() -> list[dict[str, str]]:
    """As few models as hold every technique once, each with parts of all slots."""
    kinds = {slot: found.kinds() for slot, found in SLOTS.items()}
    kinds["embedding"] = [kind for kind in kinds["embedding"] if kind != "value"]
    count = max(len(names) for names in kinds.values())
    mixed = [
        {slot: names[(index * 7 + index // len(names)) % len(names)] for slot, names in kinds.items()}
        for index in range(count)
    ]
    return [*mixed, {**mixed[-1], "mixer": "attention", "embedding": "value"}]


@pytest.mark.parametrize("parts", mixed_companies(), ids=lambda parts: "-".join(parts.values()))
def test_every_technique_works_in_some_company(parts: dict[str, str]) -> None:
    assert verdict(parts) == "ok"


def test_the_companies_hold_every_technique() -> None:
    for slot, found in SLOTS.items():
        assert set(found.kinds()) <= {parts[slot] for parts in mixed_companies()}, slot


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda slot: slot)
def test_every_pair_of_parts_works_or_is_refused(first: str, second: str, capsys: pytest.CaptureFixture[str]) -> None:
    columns = SLOTS[second].kinds()
    lines, failures = [], []
    for kind in SLOTS[first].kinds():
        row = []
        for other in columns:
            try:
                row.append(verdict({first: kind, second: other}))
            except Exception as error:
                row.append("FAILS")
                failures.append(f"{kind} with {other}: {error}")
        lines.append(row)
    with capsys.disabled():
        print(table(first, second, SLOTS[first].kinds(), columns, lines))
    assert not failures, "\n".join(failures)


def table(first: str, second: str, rows: list[str], columns: list[str], cells: list[list[str]]) -> str:
    """The matrix of one pair of slots as text."""
    width = max(len(name) for name in rows) + 1
    head = f"\n{first} x {second}\n{'':{width}}" + " ".join(f"{name[:9]:9}" for name in columns)
    body = (f"{name:{width}}" + " ".join(f"{cell:9}" for cell in row) for name, row in zip(rows, cells, strict=True))
    return "\n".join((head, *body))
