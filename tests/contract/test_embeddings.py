"""Every embedding keeps the law of state, never looks across a document's start, and can be read back by a tied
head."""

import pytest
import torch

from fairway.core.config import Slot
from fairway.model.parts import NO_CONTEXT, Embedding, EmbeddingConfig, InputSite
from laws import building
from laws.models import VOCABULARY, built_model, embedding_runner, model_config, model_runner, sample_tokens, technique
from laws.state import assert_close, check_causal, check_split, check_split_gradients, in_pieces

SLOT = Slot("fairway.model.embedding", "token")
NESTED = [
    technique("bigram_hash", base=technique("factored")),
    technique("value", base=technique("bigram_hash", base=technique("value"))),
    technique("factored", tie="table"),
]


def make(settings: dict) -> Embedding:
    config = SLOT.config(settings["kind"]).model_validate(settings)
    assert isinstance(config, EmbeddingConfig)
    return config.build(VOCABULARY, 24, InputSite(value_features=24))


ALL = [*(technique(kind) for kind in SLOT.kinds()), *NESTED]
NAMED = pytest.mark.parametrize("settings", ALL, ids=[f"{s['kind']}{i}" for i, s in enumerate(ALL)])


@NAMED
def test_every_embedding_has_its_card(settings: dict) -> None:
    building.check_card(lambda: make(settings))


@NAMED
def test_every_embedding_keeps_the_law_of_state(settings: dict) -> None:
    embedding, tokens = building.built(lambda: make(settings)), sample_tokens()
    run = embedding_runner(embedding, tokens, NO_CONTEXT)
    check_split(embedding, run, tokens.shape[1], 2)
    check_split_gradients(embedding, run, tokens.shape[1], None)
    check_causal(lambda value: embedding(value)[0], tokens)


@NAMED
def test_every_parameter_of_an_embedding_learns(settings: dict) -> None:
    embedding, tokens = building.built(lambda: make(settings)), sample_tokens(60)
    x, _ = embedding(tokens)
    values = embedding.values(tokens)
    loss = embedding.unembed(x + 0.1).square().sum() + (0.0 if values is None else values.sum())
    building.check_gradients(embedding, loss)


@NAMED
def test_the_output_table_is_what_unembedding_multiplies_by(settings: dict) -> None:
    embedding = building.built(lambda: make(settings))
    table = embedding.output_table()
    x = torch.randn(2, 3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if table is None:
        assert settings.get("tie") == "table"
    else:
        assert_close(embedding.unembed(x), x @ table.T, 1e-12, "logits")


@pytest.mark.parametrize("smear", [False, True])
@NAMED
def test_a_document_is_embedded_as_if_it_were_alone(settings: dict, smear: bool) -> None:
    model = built_model(model_config(embedding={**settings, "smear": smear}, position="none"))
    tokens, border = sample_tokens(), 8
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, border] = True
    alone = model(tokens[:, border:]).hidden_BTD
    for borders in ([0, 17], [0, border, 17], [0, border - 1, border + 1, 17]):
        together, _ = in_pieces(model_runner(model, tokens, starts), borders)
        assert_close(together[:, border:], alone, 1e-9, f"a document after another, cut at {borders[1:-1]}")
    check_split(model, model_runner(model, tokens, starts), 17, 2)
    mixed, _ = in_pieces(model_runner(model, tokens), [0, 17])
    assert (mixed[:, border:] - alone).abs().max() > 1e-6


def test_a_forgotten_last_token_is_noticed() -> None:
    embedding, tokens = building.built(lambda: make(technique("bigram_hash"))), sample_tokens()
    run = embedding_runner(embedding, tokens, NO_CONTEXT)
    with pytest.raises(AssertionError, match="cut at"):
        check_split(embedding, lambda piece, state: run(piece, None), 17, 2)  # noqa: ARG005
