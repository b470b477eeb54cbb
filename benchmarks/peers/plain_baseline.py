"""Parameter golf's public baseline in plain PyTorch: RMSNorm, RoPE, shared keys, squared ReLU, tied head."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Layer(nn.Module):
    """Pre-norm attention with grouped queries, and a feed-forward."""

    def __init__(self, width: int, heads: int, groups: int, ratio: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * groups * self.size, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, ratio * width, bias=False), nn.Linear(ratio * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, width = x.shape
        normed = functional.rms_norm(x, (width,))
        q = self.query(normed).view(batch, time, self.heads, self.size).transpose(1, 2)
        k, v = self.key_value(normed).view(batch, time, 2 * self.groups, self.size).transpose(1, 2).chunk(2, dim=1)
        q, k = (_turned(functional.rms_norm(part, (self.size,)), cos, sin) for part in (q, k))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.groups)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(functional.relu(self.up(functional.rms_norm(x, (width,)))).square())


class PlainBaseline(nn.Module):
    """`loss(tokens_BT, targets_BT)` in nats per token."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, groups: int, ratio: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads, groups, ratio) for _ in range(layers))
        self.size = width // heads
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        pair = torch.arange(self.size // 2, device=tokens.device)
        angle = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * 10_000.0 ** (-2 * pair / self.size)
        x = functional.rms_norm(self.tokens(tokens), (self.tokens.weight.shape[1],))
        for layer in self.layers:
            x = layer(x, angle.cos(), angle.sin())
        logits = functional.linear(functional.rms_norm(x, (x.shape[-1],)), self.tokens.weight).float()
        return functional.cross_entropy((30.0 * torch.tanh(logits / 30.0)).flatten(0, 1), targets.flatten())


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
