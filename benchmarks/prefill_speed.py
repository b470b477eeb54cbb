"""Reading prompts on the CPU: tokens a second until the logits of the first new token, one prompt after another.

`python benchmarks/prefill_speed.py [--artifact runs/default/model.fwy] [--threads 1] [--rounds 7] [--prompts 64]`.
Prompts fill the artifact's context. `fairway` opens a session as `fairway generate` does, which leaves it ready to
decode; its peer is the forward pass of a plain PyTorch GPT of the same shape with random weights, which computes the
logits of the last token alone and keeps nothing. Before a contender is timed, the nats of the token behind each prompt
are set beside its own in float64; where they lie further apart than `artifact_race.ERROR`, its rate is not shown.
"""

import argparse
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import pairs
from artifact_race import commands, options, set_up, show
from peers.plain_gpt import PlainGpt
from scoring_speed import documents, sequences

import fairway
from fairway.model.mixer import attention
from fairway.serve.model import Model

OURS = ("fairway fp32",)

NextLogits = Callable[[list[int]], Tensor]
"""Logits of the token behind a prompt, (V,)."""


def prompts_of(model: Model, count: int) -> list[list[int]]:
    """Text in pieces of one context and the token behind it."""
    stream = sequences(model, documents(model, count * model.context + 1))[0]
    starts = range(0, count * model.context, model.context)
    return [stream[start : start + model.context + 1].tolist() for start in starts]


def nats(next_logits: NextLogits, prompts: list[list[int]]) -> float:
    """Of the tokens behind the prompts, together."""
    with torch.inference_mode():
        return sum(-float(next_logits(ids[:-1]).double().log_softmax(-1)[ids[-1]]) for ids in prompts)


def of_network(model: Model) -> NextLogits:
    """The model's network, in its own precision and without a session."""
    return lambda ids: model.network.logits(model.network(torch.tensor([ids])).hidden_BTD[:, -1])[0]


def of_peer(network: Callable[[Tensor], Tensor], half: bool) -> NextLogits:
    def next_logits(ids: list[int]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return network(torch.tensor([ids]))[0]

    return next_logits


def both(name: str, model: Model) -> tuple[NextLogits, NextLogits]:
    """A contender and the same in float64."""
    if name in OURS:
        double = Model(deepcopy(model.network).double(), model.tokenizer)
        return lambda ids: model.session(ids).logits(), of_network(double)
    shape, mixer = model.network.config, model.network.config.mixer[0]
    assert isinstance(mixer, attention.Config)
    torch.manual_seed(0)
    gpt = PlainGpt(model.network.vocabulary, shape.width, shape.depth.layers, mixer.heads, shape.context).eval()
    forward = torch.compile(gpt.next_logits) if "compiled" in name else gpt.next_logits
    return of_peer(forward, "bf16" in name), of_peer(deepcopy(gpt).double().next_logits, half=False)


def contend(name: str, chosen: argparse.Namespace) -> None:
    """One contender's process."""
    set_up(name, OURS, chosen.threads)

    def prepare() -> tuple[Callable[[], None], dict[str, Any]]:
        model = fairway.load(chosen.artifact)
        prompts = prompts_of(model, chosen.prompts)
        ours, double = both(name, model)
        exact = nats(double, prompts)

        def run() -> None:
            nats(ours, prompts)

        tokens = sum(len(ids) - 1 for ids in prompts)
        return run, {"tokens": tokens, "error": abs(nats(ours, prompts) - exact) / exact}

    pairs.serve(prepare)


def main() -> None:
    chosen = options(__doc__, "prompts", 64).parse_args()
    if chosen.contend:
        contend(chosen.contend, chosen)
    elif found := commands(__file__, chosen, OURS, "prompts"):
        show("prefill_speed", pairs.measure(found, chosen.rounds, chosen.threads), chosen.threads, OURS)


if __name__ == "__main__":
    main()
