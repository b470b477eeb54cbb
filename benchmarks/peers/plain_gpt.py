"""A GPT as a user of PyTorch would write it: LayerNorm, learned positions, GELU, torch's attention, tied head."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Layer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(width, dim=-1)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class PlainGpt(nn.Module):
    """`forward(tokens_BT) -> logits_BTV`; `loss(tokens_BT, targets_BT)` in nats per token."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                deviation = 0.02 / (2 * layers) ** 0.5 if name.endswith(("proj.weight", "down.weight")) else 0.02
                nn.init.normal_(parameter, std=deviation)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.linear(self.norm(self.stream(tokens)), self.tokens.weight)

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Logits after the last token alone, (B, V)."""
        return functional.linear(self.norm(self.stream(tokens)[:, -1]), self.tokens.weight)

    def stream(self, tokens: Tensor) -> Tensor:
        """The residual stream behind the last layer."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return x

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self(tokens).flatten(0, 1), targets.flatten())
