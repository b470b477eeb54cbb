"""Sequence layers of other libraries with the weights of a Fairway mixer copied into them.

transformers' Mamba, Mamba-2 and RWKV-4 by their PyTorch paths, and `mambapy`. Ops alone, put into Fairway's own layer
in place of Fairway's op: the gated delta rule of Qwen3-Next in chunks, and flash-linear-attention's naive functions of
gated linear attention (token by token), retention (quadratic) and the gated delta rule (in chunks), read from the
files of `fla` alone, because importing the package asks for Triton.
"""

import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from fairway.model.mixer import delta as delta_mixer
from fairway.model.mixer import gla as gla_mixer
from fairway.model.mixer import retnet as retnet_mixer
from fairway.model.parts import Mixer
from laws.fla import naive

PEERS = {
    "mamba": ("transformers", "mambapy"),
    "mamba2": ("transformers",),
    "rwkv4": ("transformers",),
    "retnet": ("fla naive",),
    "gla": ("fla naive",),
    "gated_delta": ("qwen3-next", "fla naive"),
}
PACKAGES = {"mambapy": "mambapy", "fla naive": "fla"}
"""What must be installed, beside transformers."""

Layer = Callable[[Tensor], Tensor]


def peer(name: str, kind: str, ours: Mixer, width: int) -> tuple[Layer, list[Tensor]]:
    """What `ours` computes, by another library: a function of x (B, T, D), and its parameters."""
    if name in ("qwen3-next", "fla naive"):
        use_qwen_rule() if name == "qwen3-next" else use_naive_op(kind)
        return lambda x: ours(x)[0], list(ours.parameters())
    module = {"mamba": _mamba, "mamba2": _mamba2, "rwkv4": _rwkv4}[kind](ours, width, name)

    def layer(x: Tensor) -> Tensor:
        y = module(x)
        return y[0] if isinstance(y, tuple) else y

    return layer, list(module.parameters())


def qwen_rule() -> Callable[..., tuple[Tensor, Any]]:
    """The gated delta rule as Qwen3-Next computes it without its CUDA kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.models.qwen3_next import modeling_qwen3_next as theirs
    return inspect.unwrap(theirs.torch_chunk_gated_delta_rule)  # the wrapper takes Triton's where `fla` is installed


def use_qwen_rule() -> None:
    """From now on Fairway's delta layers compute their op as Qwen3-Next does."""
    rule = qwen_rule()

    def delta(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Any = None, *_: Any
    ) -> tuple[Tensor, Any]:
        scaled = q * q.shape[-1] ** 0.5
        return rule(scaled, k, v, log_decay, beta, chunk_size=64, initial_state=state, output_final_state=True)

    delta_mixer.delta = delta


def use_naive_op(kind: str) -> None:
    """From now on Fairway's layers of this kind compute their op by flash-linear-attention's naive function."""

    def gla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *_: Any) -> tuple[Tensor, Any]:
        scaled = q * q.shape[-1] ** 0.5
        return naive("gla").naive_recurrent_gla(scaled, k, v, log_decay, output_final_state=True)

    def retention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Any]:
        scaled, k, v = (x.transpose(1, 2) for x in (q * q.shape[-1] ** 0.5, k, v))
        return naive("retention").naive_retention(scaled, k, v).transpose(1, 2), None

    def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, *_: Any) -> tuple[Tensor, Any]:
        rule = naive("gated_delta_rule").naive_chunk_gated_delta_rule
        return rule(q, k, v, log_decay, beta, scale=1.0, output_final_state=True)

    module, name, op = {
        "gla": (gla_mixer, "gla", gla),
        "retnet": (retnet_mixer, "retention", retention),
        "gated_delta": (delta_mixer, "delta", delta),
    }[kind]
    setattr(module, name, op)


def installed(kind: str) -> list[str]:
    """The peers of a kind of layer that are at hand."""
    found = [name for name in PEERS.get(kind, ()) if importlib.util.find_spec(PACKAGES.get(name, "transformers"))]
    if missing := set(PEERS.get(kind, ())) - set(found):
        print(f"  {kind}: not installed and left out: {', '.join(sorted(missing))}")
    return found


def mamba_values(ours: Any) -> dict[str, Tensor]:
    """A Mamba mixer's weights under the names that the published code gives them."""
    return {
        "A_log": ours.A_log_EN,
        "D": ours.skip_E,
        "conv1d.weight": ours.conv_EK,
        "conv1d.bias": ours.conv_bias_E,
        "in_proj.weight": ours.input.weight,
        "x_proj.weight": ours.select.weight,
        "dt_proj.weight": ours.step_ER,
        "dt_proj.bias": ours.step_bias_E,
        "out_proj.weight": ours.output.weight,
    }


def copied(theirs: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """Their module with our values; every one of its parameters is named."""
    own = dict(theirs.named_parameters())
    assert set(own) == set(values), set(own) ^ set(values)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value.reshape(own[name].shape))
    return theirs


def mambapy_block(ours: Mixer, width: int) -> nn.Module:
    """One block of `mambapy` with its parallel scan."""
    from mambapy.mamba import MambaBlock, MambaConfig

    return copied(MambaBlock(MambaConfig(d_model=width, n_layers=1)), mamba_values(ours))


def _mamba(ours: Mixer, width: int, name: str) -> nn.Module:
    if name == "mambapy":
        return mambapy_block(ours, width)
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    config = MambaConfig(hidden_size=width, state_size=16, expand=2, num_hidden_layers=1)
    return copied(MambaMixer(config, 0), mamba_values(ours))


def _mamba2(ours: Any, width: int, name: str) -> nn.Module:  # noqa: ARG001
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    config = Mamba2Config(
        hidden_size=width, num_heads=ours.config.heads, head_dim=ours.inner // ours.config.heads,
        state_size=ours.config.states, n_groups=ours.config.groups, expand=2, chunk_size=64, num_hidden_layers=1,
    )  # fmt: skip
    values = {
        "A_log": ours.A_log_H,
        "D": ours.skip_H,
        "dt_bias": ours.step_bias_H,
        "conv1d.weight": ours.conv_FK,
        "conv1d.bias": ours.conv_bias_F,
        "in_proj.weight": ours.input.weight,
        "norm.weight": ours.gain_E,
        "out_proj.weight": ours.output.weight,
    }
    return copied(Mamba2Mixer(config, 0), values)


def _rwkv4(ours: Any, width: int, name: str) -> nn.Module:  # noqa: ARG001
    from transformers.models.rwkv.modeling_rwkv import RwkvConfig, RwkvSelfAttention

    values = {
        "time_decay": ours.w_raw_D,
        "time_first": ours.bonus_D,
        "time_mix_key": ours.share_key_D,
        "time_mix_value": ours.share_value_D,
        "time_mix_receptance": ours.share_receptance_D,
        "key.weight": ours.key.weight,
        "value.weight": ours.value.weight,
        "receptance.weight": ours.receptance.weight,
        "output.weight": ours.output.weight,
    }
    config = RwkvConfig(hidden_size=width, num_hidden_layers=1, attention_hidden_size=width)
    return copied(RwkvSelfAttention(config, 0), values)
