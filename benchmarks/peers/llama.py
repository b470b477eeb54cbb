"""The Llama of transformers as a user would train it: its own forward, cross-entropy over float32 logits."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM


class Llama(nn.Module):
    """`loss(tokens_BT, targets_BT)` in nats per token; the hidden width is 8/3 of the width, as its authors have it."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=8 * round(width / 3), num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=context, tie_word_embeddings=True, use_cache=False,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.model(tokens).logits.to(torch.float32)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
