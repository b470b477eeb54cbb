"""How fast a model scores and writes, in tokens a second: medians of several runs on random tokens."""

import time
from dataclasses import dataclass
from statistics import median

import torch

from fairway.core.errors import ConfigError
from fairway.core.seed import generator
from fairway.serve.model import Model
from fairway.serve.scoring import NetworkPredictor, rows_at_once


@dataclass(frozen=True)
class Speed:
    """Tokens a second, and where they were measured."""

    scoring: float
    """Targets scored by plain windows of the training context, in batches."""
    decoding: float
    """Tokens of one sequence, one after another, at half the context on average."""
    first_token: float
    """Seconds from a prompt of half the context to the logits of the first token."""
    threads: int
    device: str


def measure(model: Model, *, batch: int = 32, tokens: int = 64, repeats: int = 5) -> Speed:
    """The speed of a model on this machine, after one run that is not counted."""
    if min(batch, tokens, repeats) < 1:
        raise ConfigError(f"batch={batch}, tokens={tokens}, repeats={repeats} were given; each must be at least 1.")
    policy, random = model.policy(), generator(0, "speed")
    rows = rows_at_once(policy, model.network.vocabulary, batch)
    inputs_BT = torch.randint(model.network.vocabulary, (rows, model.context), generator=random)
    prompt = inputs_BT[0, : max(1, model.context // 2)].tolist()
    predictor = NetworkPredictor(model.network, steps=model.steps)
    scoring, decoding, first = [], [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        predictor.predict(inputs_BT, 0)
        _settle(model)
        scoring.append(time.perf_counter() - start)
        start = time.perf_counter()
        session = model.session(prompt, policy)
        logits_V = session.logits()
        _settle(model)
        first.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(tokens):
            session.push(int(logits_V.argmax()))
            logits_V = session.logits()
        _settle(model)
        decoding.append(time.perf_counter() - start)
    return Speed(
        scoring=inputs_BT.numel() / median(scoring[1:]),
        decoding=tokens / median(decoding[1:]),
        first_token=median(first[1:]),
        threads=torch.get_num_threads(),
        device=str(model.network.device),
    )


def _settle(model: Model) -> None:
    """Waits for a GPU to finish what it was given."""
    if model.network.device.type == "cuda":
        torch.cuda.synchronize(model.network.device)
