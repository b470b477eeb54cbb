"""A Llama in the folder that `transformers` writes, as a model of this house: settings, weights and tokenizer.

Read from `config.json`, `tokenizer.json` and `model.safetensors` (or the files that `model.safetensors.index.json`
names); nothing in the folder is executed. A Llama (Touvron et al. 2023, arXiv:2302.13971) is attention with rotary
positions, SwiGLU and RMSNorm, so every technique that reads a teacher's layers can read this one too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fairway.core.errors import ConfigError, StorageError
from fairway.core.storage import read_json
from fairway.data.parts import Tokenizer, load_tokenizer
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.weights import fill

CONFIG = "config.json"
_EXPECTED: dict[str, tuple[object, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
}
_INSIDE = {
    "self_attn.q_proj": "mixer.query.weight",
    "self_attn.k_proj": "mixer.key.weight",
    "self_attn.v_proj": "mixer.value.weight",
    "self_attn.o_proj": "mixer.output.weight",
    "mlp.down_proj": "ffn.output.weight",
    "input_layernorm": "mixer_norm.gain",
    "post_attention_layernorm": "ffn_norm.gain",
}
"""Their names in a layer, and ours in a block."""


def read_llama(folder: Path) -> tuple[LanguageModel, Tokenizer]:
    """The model in float32 on the CPU, and its tokenizer; raises `ConfigError` for any other architecture."""
    theirs = _settings(folder)
    try:
        tokenizer = load_tokenizer("pretrained", (folder / "tokenizer.json").read_bytes())
    except OSError as error:
        raise ConfigError(f"{folder} has no tokenizer.json that can be read: {error.strerror or error}.") from None
    if tokenizer.vocabulary != theirs["vocab_size"]:
        raise ConfigError(
            f"{folder} has a tokenizer of {tokenizer.vocabulary:,} ids and a model of {theirs['vocab_size']:,}."
        )
    config = ModelConfig.read(_translated(theirs, folder), origin=str(folder / CONFIG))
    model = config.skeleton(tokenizer.vocabulary).to_empty(device="cpu")
    fill(model, _renamed(dict(_weights(folder)), config.depth.layers, model))
    return model.eval(), tokenizer


def _settings(folder: Path) -> Mapping[str, Any]:
    found = read_json(folder / CONFIG)
    rope = found.get("rope_parameters") or {}
    found = {**found, "rope_theta": rope.get("rope_theta", found.get("rope_theta", 10_000.0))}
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = rope
    for name, allowed in _EXPECTED.items():
        if found.get(name) not in allowed:
            raise ConfigError(f"{folder / CONFIG} has {name} {found.get(name)!r}; {allowed[0]!r} would work.")
    return found


def _translated(theirs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    width, heads, hidden = theirs["hidden_size"], theirs["num_attention_heads"], theirs["intermediate_size"]
    if theirs.get("head_dim") not in (None, width // heads) or hidden % 8:
        raise ConfigError(
            f"{folder / CONFIG} has heads of {theirs.get('head_dim')} features and {hidden} hidden features; "
            f"heads of {width // heads} and a multiple of 8 would work."
        )
    groups = theirs.get("num_key_value_heads") or heads
    return {
        "width": width,
        "context": theirs["max_position_embeddings"],
        "depth": theirs["num_hidden_layers"],
        "mixer": {"kind": "attention", "heads": heads, "key_groups": groups, "qk_norm": False},
        "ffn": {"kind": "swiglu", "ratio": 1.5 * hidden / width},
        "norm": {"kind": "rms", "eps": theirs["rms_norm_eps"]},
        "position": {"kind": "rope", "base": theirs["rope_theta"]},
        "head": {"tied": bool(theirs.get("tie_word_embeddings")), "softcap": None},
    }


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    for name in names:
        try:
            with safe_open(folder / Path(name).name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    yield key, file.get_tensor(key).float()
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{folder / name} cannot be read: {error}") from None


def _renamed(theirs: dict[str, Tensor], layers: int, model: LanguageModel) -> dict[str, Tensor]:
    """Their weights under our names; what is missing or too much is left for `fill` to name."""
    ours: dict[str, Tensor] = {}
    known = {"model.embed_tokens.weight": "embedding.weight", "model.norm.weight": "norm.gain"}
    if model.head.own is not None:
        known["lm_head.weight"] = "head.own.weight"
    else:
        theirs.pop("lm_head.weight", None)
    for layer in range(layers):
        start, block = f"model.layers.{layer}.", f"depth.blocks.{layer}."
        known |= {f"{start}{name}.weight": block + own for name, own in _INSIDE.items()}
        gate, up = (theirs.pop(f"{start}mlp.{name}_proj.weight", None) for name in ("gate", "up"))
        if gate is not None and up is not None:
            ours[f"{block}ffn.input.weight"] = torch.cat((gate, up))
    return ours | {known.get(name, name): weight for name, weight in theirs.items()}
