"""Models compute where their tensors are: on the meta device here, and the whole path on a GPU where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fairway
from fairway.core.seed import generator
from fairway.loss.next_token import NextTokenConfig, next_token
from fairway.model.lm import LanguageModel, ModelConfig

ROOT = Path(__file__).parents[2]
KINDS = (
    "attention", "mamba", "mamba2", "retnet", "rwkv4", "gla", "linear_attention", "delta", "gated_delta", "ttt_linear",
    "ttt_mlp",
)  # fmt: skip


def config(kind: str, **more: Any) -> ModelConfig:
    heads = {} if kind in ("mamba", "rwkv4") else {"heads": 2}
    return ModelConfig.read({"width": 32, "context": 128, "depth": 2, "mixer": {"kind": kind, **heads}, **more})


def loss_of(model: LanguageModel, tokens_BT: torch.Tensor, starts_BT: torch.Tensor | None) -> torch.Tensor:
    output = model(tokens_BT[:, :-1], starts_BT=starts_BT)
    parameters = [*model.embedding.parameters(), *model.head.parameters()]

    def logits(hidden_ND: torch.Tensor) -> torch.Tensor:
        return model.head.uncapped(hidden_ND, embedding=model.embedding)

    return next_token(
        logits, parameters, output.hidden_BTD.flatten(0, 1), tokens_BT[:, 1:].flatten(), NextTokenConfig(), 30.0
    ).loss  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_of_a_model_is_made_on_another_device(kind: str) -> None:
    """A tensor on the CPU among those on the meta device is an error, as it is among those on a GPU."""
    model = config(kind).skeleton(64).double()
    tokens_BT = torch.zeros(2, 129, dtype=torch.int64, device="meta")
    starts_BT = torch.zeros(2, 128, dtype=torch.bool, device="meta")
    for starts in (None, starts_BT):
        loss = loss_of(model, tokens_BT, starts)
        loss.backward()
        assert loss.is_meta
    assert all(parameter.grad is None or parameter.grad.is_meta for parameter in model.parameters())
    if not kind.startswith("ttt"):
        state = model(tokens_BT).state
        assert all(tensor.is_meta for tensor in model(tokens_BT[:, :1], state).state)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isolated", [False, True])
def test_a_model_on_a_gpu_gives_the_loss_and_gradients_of_the_cpu(kind: str, isolated: bool) -> None:
    source = generator(0, "devices")
    tokens_BT = torch.randint(0, 64, (2, 129), generator=source)
    starts_BT = (torch.rand(2, 128, generator=source) < 0.05) if isolated else None
    found = []
    for device in ("cpu", "cuda"):
        model = config(kind).build(64, seed=0, device=device)
        loss = loss_of(model, tokens_BT.to(device), None if starts_BT is None else starts_BT.to(device))
        loss.backward()
        gradients = [p.grad.cpu().double().flatten() for p in model.parameters() if p.grad is not None]
        found.append((float(loss.detach()), torch.cat(gradients)))
    (loss, gradient), (gpu_loss, gpu_gradient) = found
    assert gpu_loss == pytest.approx(loss, rel=1e-4)
    assert (gpu_gradient - gradient).norm() < 1e-3 * gradient.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["attention", "gla", "mamba", "gated_delta"])
def test_a_recipe_trains_scores_and_writes_on_a_gpu(kind: str, precision: str, tmp_path: Path) -> None:
    heads = [] if kind == "mamba" else ["model.mixer.heads=4"]
    recipe = ROOT / "recipes" / "tiny.yaml"
    choices = ["device=cuda", f"model.mixer.kind={kind}", *heads, f"train.precision.kind={precision}"]
    command = [
        sys.executable,
        "-m",
        "fairway",
        "run",
        str(recipe),
        *choices,
        "--folder",
        str(tmp_path / "run"),
        "--json",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert 0 < summary["bits_per_byte"] < 8
    path = tmp_path / "run" / "model.fwy"
    on_gpu, on_cpu = fairway.load(path, device="cuda"), fairway.load(path)
    text = b"def one(two):\n    return two\n" * 20
    assert on_gpu.score(text).bits_per_byte == pytest.approx(on_cpu.score(text).bits_per_byte, rel=1e-3)
    assert "".join(on_gpu.generate("def ", tokens=20, temperature=0))
    assert on_gpu.logits(torch.tensor([1, 2, 3], device="cuda")).is_cuda
