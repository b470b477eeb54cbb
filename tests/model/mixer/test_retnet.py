"""Retention against its quadratic form, written out for one sequence."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fairway.model.mixer.retnet import Config


def test_outputs_are_those_of_the_quadratic_form_with_complex_rotation(moved: Any, x_TD: Tensor) -> None:
    mixer = moved(Config(heads=2))
    time, width = x_TD.shape
    step = torch.arange(time, dtype=torch.float64)
    frequency = 10_000.0 ** -torch.linspace(0, 1, 4, dtype=torch.float64)
    turn = torch.polar(torch.ones(time, 4, dtype=torch.float64), step[:, None] * frequency)
    heads = []
    for head in range(2):
        q, k = (x_TD @ part.weight[8 * head : 8 * head + 8].T for part in (mixer.query, mixer.key))
        q, k = torch.complex(q[:, :4], q[:, 4:]) * turn, torch.complex(k[:, :4], k[:, 4:]) * turn
        gamma = 1 - 2.0 ** (-5 - head)
        decay = torch.where(step[:, None] >= step, gamma ** (step[:, None] - step), 0.0)
        weights = (q @ k.conj().T).real / 8**0.5 * decay
        value = x_TD @ mixer.value.weight[width * head : width * head + width].T
        out = weights @ value
        heads.append((out - out.mean(1, keepdim=True)) / (out.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt())
    gated = torch.cat(heads, 1) * functional.silu(x_TD @ mixer.gate.weight.T)
    torch.testing.assert_close(mixer(x_TD[None])[0][0], gated @ mixer.output.weight.T, rtol=1e-10, atol=1e-10)


def test_positions_far_away_change_nothing(moved: Any, x_TD: Tensor) -> None:
    mixer = moved(Config())
    memory, seen = mixer.empty_state(1)
    near, far = mixer(x_TD[None], (memory, seen))[0], mixer(x_TD[None], (memory, seen + 1_000_000))[0]
    torch.testing.assert_close(near, far, rtol=1e-8, atol=1e-8)
