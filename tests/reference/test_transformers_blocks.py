"""Llama, Gemma, Mixtral, DeepSeek-V2 and ALBERT of `transformers` with the same weights, and its rotary frequencies."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairway.core.config import Slot
from fairway.model.ffn.gated import Config as Gated
from fairway.model.ffn.moe import Config as Moe
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.parts import PositionConfig
from laws import building
from laws.mixers import sample
from laws.models import sample_tokens

transformers = pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.albert import modeling_albert
    from transformers.models.deepseek_v2 import modeling_deepseek_v2
    from transformers.models.gemma import modeling_gemma
    from transformers.models.llama import modeling_llama
    from transformers.models.mixtral import modeling_mixtral

POSITION = Slot("fairway.model.position", "rope")
VOCABULARY = 61


def opened(make: Any) -> Any:
    """A filled part whose insides a test may name."""
    return building.built(make)


def filled(theirs: nn.Module, values: dict[str, Tensor]) -> Any:
    """Their module in float64 with our values; biases are zero, and nothing else may be left out."""
    with torch.no_grad():
        for name, parameter in theirs.double().named_parameters():
            if name in values:
                parameter.copy_(values.pop(name))
            else:
                assert name.endswith("bias"), f"{name} has no value"
                parameter.zero_()
    assert not values, f"{sorted(values)} do not exist"
    return theirs.eval()


def llama_values(model: Any) -> dict[str, Tensor]:
    values = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.gain}
    for layer, block in enumerate(model.depth.blocks):
        gate, up = block.ffn.input.weight.chunk(2)
        named = {
            "self_attn.q_proj": block.mixer.query.weight,
            "self_attn.k_proj": block.mixer.key.weight,
            "self_attn.v_proj": block.mixer.value.weight,
            "self_attn.o_proj": block.mixer.output.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.ffn.output.weight,
            "input_layernorm": block.mixer_norm.gain,
            "post_attention_layernorm": block.ffn_norm.gain,
        }
        values |= {f"model.layers.{layer}.{name}.weight": value for name, value in named.items()}
    return values


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_model_is_llama_with_grouped_queries(tied: bool) -> None:
    config = ModelConfig.read(
        {
            "width": 48,
            "depth": 2,
            "mixer": {"kind": "attention", "heads": 6, "key_groups": 2, "qk_norm": False},
            "ffn": "swiglu",
            "norm": {"kind": "rms", "eps": 1e-6},
            "head": {"tied": tied, "softcap": None},
        }
    )
    model = opened(lambda: LanguageModel(config, VOCABULARY))
    theirs = modeling_llama.LlamaForCausalLM(
        modeling_llama.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=48, intermediate_size=128, num_hidden_layers=2, rms_norm_eps=1e-6,
            num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=tied,
        )
    )  # fmt: skip
    values = llama_values(model)
    if not tied:
        values["lm_head.weight"] = model.head.own.weight
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    tokens = sample_tokens()
    logits = filled(theirs, values)(tokens).logits
    error = (model.logits(model(tokens).hidden_BTD) - logits).abs().max()
    assert error < 1e-5 * logits.abs().max()


def test_the_tanh_form_of_geglu_is_gemmas() -> None:
    ours = opened(lambda: Gated(kind="geglu", form="tanh").build(24))
    hidden = ours.output.weight.shape[1]
    theirs = modeling_gemma.GemmaMLP(
        modeling_gemma.GemmaConfig(hidden_size=24, intermediate_size=hidden, hidden_act="gelu_pytorch_tanh")
    )
    gate, up = ours.input.weight.chunk(2)
    values = {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": ours.output.weight}
    assert torch.allclose(ours(sample(24))[0], filled(theirs, values)(sample(24)), rtol=0, atol=1e-12)


def test_a_renormalised_mixture_is_mixtrals_and_so_is_its_balance_loss() -> None:
    ours = opened(lambda: Moe(expert="swiglu", experts=8, top=2, ratio=4.0, balance=1.0).build(24))
    config = modeling_mixtral.MixtralConfig(
        hidden_size=24, intermediate_size=ours.hidden, num_local_experts=8, num_experts_per_tok=2
    )
    theirs = modeling_mixtral.MixtralSparseMoeBlock(config)
    values = {
        "gate.weight": ours.router_ED,
        "experts.gate_up_proj": ours.input_EJD,
        "experts.down_proj": ours.output_EDF,
    }
    x = sample(24)
    expected = filled(theirs, values)(x)
    y, _, aux = ours(x)
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()
    logits = x.flatten(0, 1) @ ours.router_ED.T
    loss = modeling_mixtral.load_balancing_loss_func((logits,), 8, 2)
    assert float(aux.losses["balance"].detach()) == pytest.approx(float(torch.as_tensor(loss).detach()) / 2, rel=1e-5)


def test_a_fine_mixture_with_shared_experts_is_deepseeks() -> None:
    settings = {"experts": 4, "fine": 2, "top": 2, "shared": 2, "expert": "swiglu", "renormalise": False}
    ours = opened(lambda: Moe.model_validate(settings).build(48))
    config = modeling_deepseek_v2.DeepseekV2Config(
        hidden_size=48, moe_intermediate_size=ours.hidden, n_routed_experts=6, n_shared_experts=2,
        num_experts_per_tok=2, topk_method="greedy", routed_scaling_factor=1.0, norm_topk_prob=False,
        num_attention_heads=6, num_key_value_heads=6,
    )  # fmt: skip
    theirs = modeling_deepseek_v2.DeepseekV2Moe(config)
    gate, up = ours.shared_input_JD.chunk(2)
    values = {
        "gate.weight": ours.router_ED,
        "experts.gate_up_proj": ours.input_EJD,
        "experts.down_proj": ours.output_EDF,
        "shared_experts.gate_proj.weight": gate,
        "shared_experts.up_proj.weight": up,
        "shared_experts.down_proj.weight": ours.shared_output_DF,
    }
    expected = filled(theirs, values)(sample(48))
    assert (ours(sample(48))[0] - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("groups", "inner"), [(1, 1), (2, 1), (1, 2)])
def test_shared_depth_behind_a_factored_table_is_albert(groups: int, inner: int) -> None:
    config = ModelConfig.read(
        {
            "width": 48,
            "mixer": {"kind": "attention", "heads": 6, "qk_norm": False},
            "ffn": {"kind": "gelu", "form": "tanh"},
            "norm": {"kind": "layer", "eps": 1e-12},
            "position": "none",
            "embedding": {"kind": "factored", "inner": 16},
            "block": {"placement": "post"},
            "depth": {"kind": "shared", "layers": 4, "groups": groups, "inner": inner},
        }
    )
    model = opened(lambda: LanguageModel(config, VOCABULARY))
    theirs = modeling_albert.AlbertTransformer(
        modeling_albert.AlbertConfig(
            embedding_size=16, hidden_size=48, intermediate_size=192, num_attention_heads=6, hidden_act="gelu_new",
            num_hidden_layers=4 // inner, num_hidden_groups=groups, inner_group_num=inner, layer_norm_eps=1e-12,
        )
    )  # fmt: skip
    values = {"embedding_hidden_mapping_in.weight": model.embedding.up.weight}
    owners = dict.fromkeys(id(block.mixer) for block in model.depth.blocks)
    blocks = [next(b for b in model.depth.blocks if id(b.mixer) == owner) for owner in owners]
    for number, block in enumerate(blocks):
        start = f"albert_layer_groups.{number // inner}.albert_layers.{number % inner}."
        named = {
            "attention.query.weight": block.mixer.query.weight,
            "attention.key.weight": block.mixer.key.weight,
            "attention.value.weight": block.mixer.value.weight,
            "attention.dense.weight": block.mixer.output.weight,
            "attention.LayerNorm.weight": block.mixer_norm.gain_D,
            "attention.LayerNorm.bias": block.mixer_norm.bias_D,
            "ffn.weight": block.ffn.input.weight,
            "ffn_output.weight": block.ffn.output.weight,
            "full_layer_layer_norm.weight": block.ffn_norm.gain_D,
            "full_layer_layer_norm.bias": block.ffn_norm.bias_D,
        }
        values |= {start + name: value for name, value in named.items()}
    tokens = sample_tokens(9)
    mask = torch.full((9, 9), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    expected = filled(theirs, values)(model.embedding.table_VE[tokens], attention_mask=mask).last_hidden_state
    ours, _, _ = model.depth(model.embedding(tokens)[0])
    assert torch.allclose(ours, expected, rtol=0, atol=1e-9)


ROPES: list[tuple[str, dict[str, Any], str, dict[str, Any], int]] = [
    ("position_interpolation", {"factor": 4.0}, "linear", {"factor": 4.0}, 0),
    ("dynamic_ntk", {"factor": 2.0, "step": 1}, "dynamic", {"factor": 2.0}, 64),
    ("dynamic_ntk", {"factor": 2.0, "step": 1}, "dynamic", {"factor": 2.0}, 200),
    ("yarn", {"factor": 8.0, "ramp": "index"}, "yarn", {"factor": 8.0}, 0),
    ("yarn", {"factor": 8.0, "ramp": "index", "truncate": False}, "yarn", {"factor": 8.0, "truncate": False}, 0),
    (
        "yarn",
        {"factor": 3.0, "ramp": "index", "alpha": 2.0, "beta": 16.0},
        "yarn",
        {"factor": 3.0, "beta_slow": 2.0, "beta_fast": 16.0},
        0,
    ),
    ("llama3", {"factor": 8.0}, "llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 0),
    (
        "yarn",
        {"factor": 8.0, "ramp": "index", "fraction": 0.5},
        "yarn",
        {"factor": 8.0, "partial_rotary_factor": 0.5},
        0,
    ),
]


@pytest.mark.parametrize(("kind", "settings", "name", "theirs", "length"), ROPES)
def test_frequencies_are_those_of_transformers(
    kind: str, settings: dict[str, Any], name: str, theirs: dict[str, Any], length: int
) -> None:
    trained = 64 if name == "dynamic" else 4096
    ours = POSITION.config(kind).model_validate({"kind": kind, "original": trained, **settings})
    assert isinstance(ours, PositionConfig)
    built: Any = ours.build(64, trained, 384)
    parameters = {"rope_type": name, "rope_theta": 10_000.0, "original_max_position_embeddings": trained, **theirs}
    if name == "dynamic":
        parameters.pop("original_max_position_embeddings")
    config = modeling_llama.LlamaConfig(
        hidden_size=384, num_attention_heads=6, max_position_embeddings=trained, rope_parameters=parameters
    )
    expected, magnitude = ROPE_INIT_FUNCTIONS[name](config, torch.device("cpu"), length or None)
    assert torch.allclose(torch.tensor(built.frequencies(length)), expected, rtol=2e-6, atol=0)
    assert built.magnitude == pytest.approx(magnitude)
