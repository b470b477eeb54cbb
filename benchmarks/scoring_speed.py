"""Scoring text on the CPU: tokens a second of an artifact beside the forward pass of a plain PyTorch GPT.

`python benchmarks/scoring_speed.py [--artifact runs/default/model.fwy] [--threads 1] [--rounds 7] [--tokens 131072]`.
The GPT has the artifact's layers, width, heads, context and vocabulary, and random weights; all read the same tokens
in windows of the whole context, none twice, and count the nats of every target. `fairway` scores as `fairway evaluate`
does, `fairway evaluate` is all of it with its gates. Before it is timed, the nats of each contender are set beside its
own in float64, Fairway's without native kernels; where they lie further apart than `artifact_race.ERROR`, its rate is
not shown.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

import pairs
from artifact_race import commands, options, set_up, show
from peers.plain_gpt import PlainGpt

import fairway
from fairway.evaluate.bpb import EvaluateConfig, evaluate, predictor_of
from fairway.model.mixer import attention
from fairway.serve.model import Model
from fairway.serve.scoring import NetworkPredictor, score_sequences, sequences_of
from fairway.serve.window import Policy, batches

WITHOUT = "fairway fp32 without native kernels"
OURS = ("fairway fp32", "fairway bf16", "fairway evaluate fp32", "fairway evaluate bf16", WITHOUT)
BATCH = 32
MODE = "concatenated"

Prepared = tuple[Callable[[], float], float]
"""The work, which gives the nats, and these in float64."""


def documents(model: Model, tokens: int) -> list[bytes]:
    """Whole modules of the running Python's standard library, until they hold so many tokens."""
    found: list[bytes] = []
    held = 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        found.append(path.read_bytes())
        held += len(model.tokenizer.encode_all(found[-1:])[0])
        if held >= tokens:
            break
    return found


def sequences(model: Model, texts: Sequence[bytes]) -> list[np.ndarray]:
    return sequences_of(model.tokenizer.encode_all(list(texts)), model.tokenizer.boundary, MODE)


def prepare_ours(name: str, model: Model, texts: Sequence[bytes]) -> Prepared:
    half = "bf16" in name
    config = EvaluateConfig(mode="plain", documents=MODE, batch=BATCH, precision="bf16" if half else "fp32")
    policy, tokens = config.policy(model.context), sequences(model, texts)
    predictor = predictor_of(model, config.precision)
    exact = score_sequences(NetworkPredictor(deepcopy(model.network).double()), tokens, policy, BATCH).total()
    if "evaluate" in name:
        return lambda: evaluate(model, texts, config).nats, exact
    return lambda: score_sequences(predictor, tokens, policy, BATCH).total(), exact


def prepare_peer(name: str, model: Model, texts: Sequence[bytes]) -> Prepared:
    """The forward pass, log-probabilities and nats of every window; all but the last few windows are whole batches."""
    shape, mixer = model.network.config, model.network.config.mixer[0]
    assert isinstance(mixer, attention.Config)
    torch.manual_seed(0)
    network = PlainGpt(model.network.vocabulary, shape.width, shape.depth.layers, mixer.heads, shape.context).eval()
    tokens = sequences(model, texts)
    policy = Policy(shape.context, shape.context)
    parts = []
    for part in batches(tokens, policy, BATCH):
        target_BT = torch.full(part.inputs_BT.shape, -100)
        for row, (index, window) in enumerate(part.rows):
            ids = torch.from_numpy(tokens[index][window.first + 1 : window.stop + 1])
            target_BT[row, : len(ids)] = ids
        parts.append((part.inputs_BT, target_BT))

    def nats(forward: Callable[[torch.Tensor], torch.Tensor], half: bool) -> float:
        total = 0.0
        with torch.inference_mode():
            for inputs_BT, target_BT in parts:
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    logits_BTV = forward(inputs_BT)
                logits_BTV = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
                lost = functional.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten(), reduction="none")
                total += float(lost.double().sum())
        return total

    exact = nats(deepcopy(network).double(), half=False)
    forward = torch.compile(network) if name.endswith("compiled") else network
    return lambda: nats(forward, "bf16" in name), exact


def contend(name: str, chosen: argparse.Namespace) -> None:
    """One contender's process."""
    set_up(name, OURS, chosen.threads)

    def prepare() -> tuple[Callable[[], None], dict[str, Any]]:
        model = fairway.load(chosen.artifact)
        texts = documents(model, chosen.tokens)
        run, exact = (prepare_ours if name in OURS else prepare_peer)(name.split(" with ")[0], model, texts)
        facts = {"tokens": sum(len(ids) - 1 for ids in sequences(model, texts)), "error": abs(run() - exact) / exact}
        return lambda: void(run()), facts

    pairs.serve(prepare)


def void(_: float) -> None:
    """Forgets the nats of a round."""


def main() -> None:
    chosen = options(__doc__, "tokens", 131072).parse_args()
    if chosen.contend:
        contend(chosen.contend, chosen)
    elif found := commands(__file__, chosen, OURS, "tokens"):
        plain = {WITHOUT: found.pop(WITHOUT)}
        measured = pairs.measure(found, chosen.rounds, chosen.threads)
        measured |= pairs.measure(plain, chosen.rounds, chosen.threads, {"FAIRWAY_NATIVE": "0"})
        show("scoring_speed", measured, chosen.threads, OURS)


if __name__ == "__main__":
    main()
