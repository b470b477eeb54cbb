"""SparseGPT and Wanda on a Llama of the package `transformers`, in place.

Block after block: the calibration text's hidden states go through a block once to collect `X X^T` of each linear map,
the maps are pruned (and with SparseGPT, those that stay make up for it), and the states go on through the pruned
block. Embeddings and head are left alone. Frantar & Alistarh 2023, Sun et al. 2023. Shape key: B batch, T time,
D width, C inputs of a map.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from fairway.compress.parts import Statistics

Prune = Callable[[Tensor, Statistics], Tensor]
"""Takes a weight (R, C) in float32 and its statistics; gives the pruned weight."""


@torch.no_grad()
def prune_llama(model: LlamaForCausalLM, calibration: Sequence[Tensor], prune: Prune) -> dict[str, float]:
    """Prunes every linear map of every block; returns the share of zeros of each by its weight's name.

    `calibration`: token ids (B, T).
    """
    training = model.training
    model.eval()
    states = [_entering(model, tokens_BT) for tokens_BT in calibration]
    zeros: dict[str, float] = {}
    for index, block in enumerate(model.model.layers):
        maps = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        grams = {name: torch.zeros(m.in_features, m.in_features, dtype=torch.float64) for name, m in maps.items()}
        counts = dict.fromkeys(maps, 0)
        with ExitStack() as stack:
            for name, module in maps.items():
                handle = module.register_forward_pre_hook(_adding(name, grams, counts))
                stack.callback(handle.remove)
            for state_BTD, others in states:
                block(state_BTD, **others)
        for name, module in maps.items():
            pruned_RC = prune(module.weight.float(), Statistics(counts[name], grams[name]))
            module.weight.copy_(pruned_RC)
            zeros[f"model.layers.{index}.{name}.weight"] = float((module.weight == 0).float().mean())
        states = [(_hidden(block(state_BTD, **others)), others) for state_BTD, others in states]
    model.train(training)
    return zeros


class _Reached(Exception):
    """Ends a forward at the first block."""


def _entering(model: LlamaForCausalLM, tokens_BT: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """What the first block is called with: the hidden states, and its other arguments."""
    seen: list[tuple[Tensor, dict[str, Any]]] = []

    def stop(_: nn.Module, inputs: tuple[Tensor, ...], others: dict[str, Any]) -> None:
        seen.append((inputs[0], others))
        raise _Reached

    handle = model.model.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(tokens_BT, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]


def _adding(name: str, grams: dict[str, Tensor], counts: dict[str, int]) -> Callable[..., None]:
    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x_NC = inputs[0].flatten(0, -2).float()
        grams[name] += (x_NC.T @ x_NC).double()
        counts[name] += len(x_NC)

    return add


def _hidden(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
