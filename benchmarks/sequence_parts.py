"""What `sequence_speed.py` measures: a layer's training step, its peak memory, decoding, and a model's training step.

`python benchmarks/sequence_parts.py '{"what": "peaks", ...}'` measures one thing in a process of its own and prints it
as JSON; that is how `alone` works.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from peers.sequence_layers import mambapy_block, peer

from fairway.core.config import Slot
from fairway.core.device import keep_freed_memory, route_float32_products
from fairway.core.seed import generator
from fairway.model.parts import NO_CONTEXT, Mixer, Site, State, initialise
from fairway.train.recomputation import in_pieces, may_be_cut
from laws.live_memory import Memory

WIDTH = 256
SLOT = Slot("fairway.model.mixer", "attention", pattern=True)
SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 4},
    "windowed attention": {"kind": "attention", "heads": 4, "window": 1_024},
}
REPEATED = 64
"""Tokens that attention reads before its keys and values are repeated."""
WARM, TIMED = 5, 100
"""Tokens decoded after each context before the clock counts, and those it counts."""

Prepared = tuple[Callable[[], None], dict[str, Any]]


def built(kind: str, width: int = WIDTH) -> Mixer:
    """A mixer with its initial weights, the output's moved off zero so that every gradient flows."""
    settings = {"kind": kind, **SETTINGS.get(kind, {})}
    mixer = SLOT.config(settings["kind"]).read(settings).build(width, Site())
    initialise(mixer, 0)
    with torch.no_grad():
        mixer.output.weight.normal_(0.0, width**-0.5, generator=generator(0, "output"))
    return mixer


def inputs(batch: int, context: int) -> Tensor:
    return torch.randn(batch, context, WIDTH, generator=generator(0, "inputs"))


def prepare_layer(kind: str, context: int, batch: int, **more: str) -> Prepared:
    """Forward and backward of a layer; `error` is the largest relative one against float64, of output and gradient."""
    mixer = built(kind)
    exact = _results(lambda x: built(kind).double()(x)[0], inputs(1, min(context, 300)).double())
    if "peer" in more:
        layer, parameters = peer(more["peer"], kind, mixer, WIDTH)
    else:
        layer, parameters = (lambda x: mixer(x)[0]), list(mixer.parameters())
    seen = _results(layer, inputs(1, min(context, 300)))
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(seen, exact, strict=True))
    x = inputs(batch, context).requires_grad_()

    def run() -> None:
        x.grad = None
        for parameter in parameters:
            parameter.grad = None
        layer(x).square().mean().backward()

    return run, {"error": error, "parameters": sum(parameter.numel() for parameter in parameters)}


def _results(layer: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.square().mean(), x)
    return [y.detach(), gradient]


class Stack(nn.Module):
    """A language model that is nothing but Mamba blocks: `x + block(norm(x))`, tied embedding."""

    def __init__(self, blocks: list[nn.Module], width: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(0.02 * torch.randn(vocabulary, width, generator=generator(0, "embedding")))
        self.blocks = nn.ModuleList(blocks)
        self.norms = nn.ParameterList([nn.Parameter(torch.ones(width)) for _ in range(len(blocks) + 1)])

    def loss(self, tokens_BT: Tensor) -> Tensor:
        """Cross-entropy of the next token in nats."""
        x = self.embedding[tokens_BT[:, :-1]]
        shape = x.shape[-1:]
        for block, norm in zip(self.blocks, self.norms, strict=False):
            y = block(functional.rms_norm(x, shape, norm, 1e-5))
            x = x + (y[0] if isinstance(y, tuple) else y)
        logits = functional.linear(functional.rms_norm(x, shape, self.norms[-1], 1e-5), self.embedding)
        return functional.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten())


def prepare_model(context: int, batch: int, **more: str) -> Prepared:
    """Training steps of 6 layers, width 192, vocabulary 1,024 with AdamW; `loss` is that before the first."""
    width, vocabulary = 192, 1_024
    blocks: list[nn.Module] = [built("mamba", width) for _ in range(6)]
    if more.get("peer") == "mambapy":
        blocks = [mambapy_block(block, width) for block in blocks]
    model = Stack(blocks, width, vocabulary)
    tokens = torch.randint(0, vocabulary, (batch, context + 1), generator=generator(0, "tokens"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    with torch.no_grad():
        first = float(model.loss(tokens))

    def run() -> None:
        model.loss(tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run, {"loss": first, "parameters": sum(parameter.numel() for parameter in model.parameters())}


def peaks(kind: str, contexts: list[int], pieces: list[int | None]) -> list[dict[str, float]]:
    """Most bytes of tensors alive in a training step of one layer, input and the gradients of both ends included."""
    mixer = built(kind)
    return [
        {"context": context, "piece": piece or 0, "live": _peak(mixer, context, piece)}
        for context in contexts
        for piece in pieces
    ]


def _peak(mixer: Mixer, context: int, piece: int | None) -> float:
    mixer.zero_grad()
    x, gradient = torch.zeros(1, context, WIDTH, requires_grad=True), torch.zeros(1, context, WIDTH)
    with Memory(given=True) as live:
        _by_pieces(mixer, x, piece).backward(gradient)
    return float(live.peak)


def _by_pieces(mixer: Mixer, x: Tensor, piece: int | None) -> Tensor:
    """The layer's outputs; in pieces as training computes them again, which is as a whole where the state grows."""
    if piece is None:
        return mixer(x)[0]
    if not may_be_cut(mixer, piece, x.shape[1]):
        return checkpoint(mixer, x, use_reentrant=False)[0]
    return in_pieces(mixer, x, None, NO_CONTEXT, piece)[0]


@torch.inference_mode()
def decoded(kind: str, contexts: list[int]) -> list[dict[str, float]]:
    """Median seconds of one more token after each context, bytes of the state, and the bytes that the card says.

    Contexts take turns, token by token. The state comes from reading that many tokens; attention without a window
    reads a few and repeats their keys and values.
    """
    keep_freed_memory()
    route_float32_products()
    mixer = built(kind)
    states = [_read(kind, mixer, context) for context in contexts]
    token = inputs(1, 1)
    times: list[list[float]] = [[] for _ in contexts]
    for turn in range(WARM + TIMED):
        for state, taken in zip(states, times, strict=True):
            start = time.perf_counter()
            mixer(token, state)
            if turn >= WARM:
                taken.append(time.perf_counter() - start)
    return [
        {
            "context": context, "seconds": statistics.median(taken), "bytes": sum(x.nbytes for x in state),
            "card": mixer.state_bytes(context),
        }
        for context, state, taken in zip(contexts, states, times, strict=True)
    ]  # fmt: skip


def _read(kind: str, mixer: Mixer, context: int) -> State:
    """The state after a context."""
    if kind == "attention":
        _, state = mixer(inputs(1, REPEATED))
        return tuple(_lengthened(x, REPEATED, context) for x in state)
    state = None
    for start in range(0, context, 1_024):
        _, state = mixer(inputs(1, min(1_024, context - start)), state)
    assert state is not None
    return state


def _lengthened(x: Tensor, short: int, context: int) -> Tensor:
    """A part of attention's state as after `context` tokens: keys or values repeated, the count of tokens set."""
    if x.ndim == 4:
        return x.repeat(1, 1, -(-context // short), 1)[:, :, :context].contiguous()
    return torch.where(x == short, context, x)


def alone(what: str, **job: Any) -> Any:
    """Measures one thing in a process of its own, on one thread."""
    task = json.dumps({"what": what, **job})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, task], capture_output=True, text=True, check=False, env=environment
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{task}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps({"peaks": peaks, "decoded": decoded}[given.pop("what")](**given)))
