"""Gated linear attention against its equation, written out for one sequence."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fairway.model.mixer.gla import Config
from fairway.model.parts import initialise


def test_outputs_are_those_of_the_published_equation(moved: Any, x_TD: Tensor) -> None:
    mixer = moved(Config(heads=2, rank=3))
    alpha = (x_TD @ mixer.decay_down.weight.T @ mixer.decay_up.weight.T + mixer.decay_bias_X).sigmoid() ** (1 / 16)
    q, k, v = (x_TD @ part.weight.T for part in (mixer.query, mixer.key, mixer.value))
    rows = []
    state = [x_TD.new_zeros(4, 8), x_TD.new_zeros(4, 8)]
    for t in range(len(x_TD)):
        outputs = []
        for head in range(2):
            keys, values = slice(4 * head, 4 * head + 4), slice(8 * head, 8 * head + 8)
            state[head] = alpha[t, keys, None] * state[head] + torch.outer(k[t, keys], v[t, values])
            out = q[t, keys] @ state[head] / 2
            outputs.append(out / (out.square().mean() + 1e-5).sqrt() * mixer.gain_V)
        rows.append(torch.cat(outputs))
    expected = (torch.stack(rows) * functional.silu(x_TD @ mixer.gate.weight.T)) @ mixer.output.weight.T
    torch.testing.assert_close(mixer(x_TD[None])[0][0], expected, rtol=1e-10, atol=1e-10)


def test_at_the_start_half_of_the_gate_leaves_most_of_the_memory() -> None:
    mixer: Any = Config().build(64)
    initialise(mixer, 0)
    with torch.no_grad():
        mixer.decay_up.weight.zero_()
        mixer.value.weight.zero_()
    memory = torch.ones_like(mixer.empty_state(1)[0])
    _, (after,) = mixer(torch.zeros(1, 1, 64), (memory,))
    torch.testing.assert_close(after, memory * 0.5 ** (1 / 16))
