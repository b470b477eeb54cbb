"""A folder as `transformers` writes it: a small Llama with random weights and a byte-level tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 260


def written(folder: Path, *, tied: bool = True, **changes: Any) -> Any:
    """A small Llama with random weights and a byte-level tokenizer, in a folder."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()
    theirs.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["the cat and the dog and the rest " * 9],
        trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return theirs
