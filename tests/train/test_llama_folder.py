"""A folder that `transformers` wrote becomes the same model here; any other folder is refused with what it has."""

import json
from pathlib import Path

import pytest
import torch

from fairway.core.errors import ConfigError
from fairway.train.llama_folder import read_llama
from laws.llama import written


@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    theirs = written(tmp_path, tied=tied)
    ours, tokenizer = read_llama(tmp_path)
    tokens_BT = torch.from_numpy(tokenizer.encode(b"the cat and the dog \xff").astype("int64"))[None]
    with torch.no_grad():
        expected = theirs(tokens_BT).logits
        found = ours.logits(ours(tokens_BT).hidden_BTD)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_weights_in_several_files_are_all_read(tmp_path: Path) -> None:
    theirs = written(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours, _ = read_llama(tmp_path)
    assert torch.equal(dict(ours.named_parameters())["embedding.weight"], theirs.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("model_type", "gpt2", "'gpt2'; 'llama' would work"),
        ("hidden_act", "gelu", "'gelu'; 'silu' would work"),
        ("rope_scaling", {"rope_type": "yarn"}, "rope_scaling"),
        ("head_dim", 16, "heads of 16 features"),
        ("vocab_size", 300, "tokenizer of 260 ids and a model of 300"),
    ],
)
def test_another_architecture_is_refused_by_name(name: str, value: object, told: str, tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ConfigError, match=told):
        read_llama(tmp_path)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match=r"depth\.blocks\.2"):
        read_llama(tmp_path)
