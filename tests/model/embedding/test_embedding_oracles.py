"""Embeddings against loops over tokens written out."""

import pytest
import torch
from torch.nn import functional

from fairway.core.errors import ConfigError
from fairway.model.embedding.bigram_hash import Config as Bigram
from fairway.model.embedding.factored import Config as Factored
from fairway.model.input import Smear
from fairway.model.lm import ModelConfig
from fairway.model.parts import InputSite
from fairway.ops.bigram import bigram_rows
from laws import building
from laws.mixers import sample
from laws.models import VOCABULARY, model_config, opened_model, sample_tokens, technique


def test_bigram_rows_are_those_of_whole_numbers_without_overflow() -> None:
    tokens = torch.tensor([[70_000, 65_535, 3, 3, 59_139, 0]], dtype=torch.int32)
    starts = torch.tensor([[False, False, True, False, False, False]])
    rows = bigram_rows(tokens, torch.tensor([12]), starts, 1001)
    ids, expected, before = tokens[0].tolist(), [], 12
    for t, token in enumerate(ids):
        expected.append(1000 if starts[0, t] else ((36313 * token) ^ (27191 * before)) % 1000)
        before = token
    assert rows[0].tolist() == expected
    assert bigram_rows(tokens[:, :1], torch.tensor([-1]), None, 1001).item() == 1000


def test_a_bigram_is_added_through_its_projection_and_scale() -> None:
    embedding = building.opened(lambda: Bigram(rows=32, inner=8).build(VOCABULARY, 24, InputSite()))
    tokens = sample_tokens()
    rows = bigram_rows(tokens, torch.full((2,), -1), None, 32)
    expected = embedding.base.weight[tokens] + embedding.scale * (embedding.table_NE[rows] @ embedding.up.weight.T)
    assert torch.allclose(embedding(tokens)[0], expected, atol=1e-13)


def test_a_fresh_bigram_table_adds_nothing_and_still_learns() -> None:
    embedding = building.opened(lambda: Bigram(rows=32, inner=8).build(VOCABULARY, 24, InputSite()), awake=False)
    tokens = sample_tokens()
    x, _ = embedding(tokens)
    assert torch.equal(x, embedding.base.weight[tokens])
    x.sin().sum().backward()
    assert embedding.table_NE.grad.any()


def test_a_smeared_token_is_its_mean_with_the_one_before() -> None:
    smear = building.opened(lambda: Smear(24))
    x = sample(24, 6)
    starts = torch.zeros(2, 6, dtype=torch.bool)
    starts[0, 3] = True
    gate = torch.sigmoid(smear.gate_D)
    y, state = smear(x, None, starts)
    for b in range(2):
        for t in range(6):
            before = torch.zeros(24) if t == 0 or starts[b, t] else x[b, t - 1]
            assert torch.allclose(y[b, t], (1 - gate) * x[b, t] + gate * before)
    assert torch.equal(state[0], x[:, -1])


def test_factored_tables_multiply() -> None:
    embedding = building.opened(lambda: Factored(inner=8).build(VOCABULARY, 24, InputSite()))
    tokens, x = sample_tokens(), sample(24, 4)
    table = embedding.table_VE @ embedding.up.weight.T
    assert torch.allclose(embedding(tokens)[0], table[tokens], atol=1e-13)
    assert torch.allclose(embedding.unembed(x), x @ table.T, atol=1e-13)


def test_a_head_that_shares_the_table_alone_has_its_own_network() -> None:
    embedding = building.opened(lambda: Factored(inner=8, tie="table").build(VOCABULARY, 24, InputSite()))
    x, down = sample(24, 4), embedding.down
    hidden = functional.gelu(x @ down.dense.weight.T + down.dense_bias_E)
    normalised = functional.layer_norm(hidden, (8,), down.gain_E, down.bias_E, 1e-5)
    assert torch.allclose(embedding.unembed(x), normalised @ embedding.table_VE.T, atol=1e-12)
    untied = Factored(inner=8, tie="table").build(VOCABULARY, 24, InputSite(tied=False))
    assert untied.down is None


def test_values_reach_attention_and_nothing_else() -> None:
    model = opened_model(model_config(embedding=technique("value"), depth={"kind": "plain", "layers": 1}))
    tokens = sample_tokens()
    attention = model.depth.blocks[0].mixer
    with torch.no_grad():
        before = model(tokens).hidden_BTD
        attention.value.weight.zero_()
        table = model.embedding.table_VE.clone()
        only_table = model(tokens).hidden_BTD
        model.embedding.table_VE.zero_()
        nothing = model(tokens).hidden_BTD
    assert table.shape == (VOCABULARY, 48)
    assert (before - only_table).abs().max() > 1e-6
    assert (only_table - nothing).abs().max() > 1e-6


def test_values_for_shared_key_groups_are_as_wide_as_those() -> None:
    config = model_config(embedding="value", mixer={"kind": "attention", "key_groups": 2})
    assert opened_model(config).embedding.table_VE.shape == (VOCABULARY, 16)


def test_a_value_embedding_that_no_mixer_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match="no mixer of this model reads value embeddings"):
        ModelConfig.read({"width": 48, "embedding": "value", "mixer": {"kind": "gla", "heads": 3}})
