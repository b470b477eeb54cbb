"""The delta rule against its equation, written out for one sequence, and as a memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.config import Slot
from fairway.model.mixer import delta
from fairway.model.mixer.delta import Config
from fairway.ops.delta import fastest as op

SLOT = Slot("fairway.model.mixer", "attention")


def convolved(mixer: Any, x_TD: Tensor) -> Tensor:
    """q, k, v side by side after the convolution and SiLU, by PyTorch's own convolution."""
    joint = torch.cat([x_TD @ part.weight.T for part in (mixer.query, mixer.key, mixer.value)], 1)
    padded = functional.pad(joint.T[None], (3, 0))
    return functional.silu(functional.conv1d(padded, mixer.conv_FK[:, None], groups=joint.shape[1])[0].T)


@pytest.mark.parametrize("kind", ["delta", "gated_delta"])
def test_outputs_are_those_of_the_published_equation(moved: Any, x_TD: Tensor, kind: str) -> None:
    mixer = moved(Config.read({"kind": kind, "heads": 2}))
    q, k, v = convolved(mixer, x_TD).split(16, 1)
    beta = (x_TD @ mixer.beta.weight.T).sigmoid()
    rows, state = [], [x_TD.new_zeros(8, 8), x_TD.new_zeros(8, 8)]
    for t in range(len(x_TD)):
        outputs = []
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            query, key = q[t, part] / q[t, part].norm(), k[t, part] / k[t, part].norm()
            if kind == "gated_delta":
                step = functional.softplus(x_TD[t] @ mixer.step.weight[head] + mixer.step_bias_H[head])
                state[head] = (-mixer.A_log_H[head].exp() * step).exp() * state[head]
            erase = torch.eye(8, dtype=torch.float64) - beta[t, head] * torch.outer(key, key)
            state[head] = erase @ state[head] + beta[t, head] * torch.outer(key, v[t, part])
            out = query @ state[head] / 8**0.5
            outputs.append(out / (out.square().mean() + 1e-5).sqrt() * mixer.gain_K)
        rows.append(torch.cat(outputs))
    expected = torch.stack(rows)
    if kind == "gated_delta":
        expected = expected * functional.silu(x_TD @ mixer.gate.weight.T)
    torch.testing.assert_close(mixer(x_TD[None])[0][0], expected @ mixer.output.weight.T, rtol=1e-9, atol=1e-9)


def test_both_kinds_are_found_by_name() -> None:
    assert {"delta", "gated_delta"} <= set(SLOT.kinds())
    assert SLOT.config("gated_delta") is Config


@pytest.mark.parametrize("kind", ["delta", "gated_delta"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_queries_keys_and_values_stay_in_the_projections_dtype_and_all_else_is_float32(
    moved: Any, x_TD: Tensor, kind: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []

    def watched(*given: Any) -> tuple[Tensor, Tensor]:
        seen.extend(tensor.dtype for tensor in given[:5] if tensor is not None)
        return op.delta(*given)

    monkeypatch.setattr(delta, "delta", watched)
    mixer = moved(Config.read({"kind": kind, "heads": 2})).float()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        mixer(x_TD[None].float())
    narrow = torch.bfloat16 if half else torch.float32
    assert seen == [narrow] * 3 + [torch.float32] * (2 if kind == "gated_delta" else 1)
