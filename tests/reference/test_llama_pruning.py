"""SparseGPT and Wanda in place on a Llama of transformers."""

import copy

import pytest
import torch
from torch import Tensor

from fairway.compress.parts import Statistics
from fairway.compress.prune import sparsegpt, wanda

transformers = pytest.importorskip("transformers")
adapter = pytest.importorskip("fairway.compress.adapter")


def llama() -> "transformers.LlamaForCausalLM":
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config)


def text() -> list[Tensor]:
    return list(torch.randint(0, 60, (16, 24), generator=torch.Generator().manual_seed(3)).split(6))


def by_wanda(weight_RC: Tensor, statistics: Statistics) -> Tensor:
    config = wanda.Config.model_validate({"kind": "wanda", "sparsity": 0.5})
    return weight_RC * wanda.Wanda(config).keep(weight_RC, statistics.squares_C)


def by_sparsegpt(weight_RC: Tensor, statistics: Statistics) -> Tensor:
    config = sparsegpt.Config.model_validate({"kind": "sparsegpt", "sparsity": 0.5})
    return sparsegpt.SparseGpt(config).solve(weight_RC, statistics.hessian_CC).weight_RC


def seen_by(model: "transformers.LlamaForCausalLM", path: str) -> Tensor:
    found: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, x: found.append(x[0].flatten(0, -2)))
    with torch.no_grad():
        for tokens_BT in text():
            model(tokens_BT)
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("prune", [by_wanda, by_sparsegpt])
def test_half_of_every_linear_map_goes_and_nothing_else_changes(prune) -> None:
    subject = llama()
    before = copy.deepcopy(subject.state_dict())
    zeros = adapter.prune_llama(subject, text(), prune)
    assert len(zeros) == 14
    assert all(share == pytest.approx(0.5, abs=0.01) for share in zeros.values())
    for name, value in subject.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in zeros)


def test_each_block_is_fitted_to_what_the_pruned_blocks_before_it_give() -> None:
    subject = llama()
    original = subject.model.layers[1].self_attn.q_proj.weight.detach().clone()
    adapter.prune_llama(subject, text(), by_wanda)
    x_NC = seen_by(subject, "model.layers.1.self_attn.q_proj")
    expected = by_wanda(original, Statistics(len(x_NC), (x_NC.T @ x_NC).double()))
    kept = expected != 0
    assert ((subject.model.layers[1].self_attn.q_proj.weight != 0) == kept).float().mean() > 0.999


def test_reconstruction_beats_leaving_the_rest_alone() -> None:
    dense, left = llama(), {}
    for prune in (by_wanda, by_sparsegpt):
        subject = llama()
        adapter.prune_llama(subject, text(), prune)
        with torch.no_grad():
            left[prune] = sum(float((subject(t).logits - dense(t).logits).square().sum()) for t in text())
    assert left[by_sparsegpt] < left[by_wanda]
