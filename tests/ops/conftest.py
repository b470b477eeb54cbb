"""Every op with random inputs of the size a test asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.seed import generator
from fairway.ops.conv import chunk as conv_chunk
from fairway.ops.conv import naive as conv_naive
from fairway.ops.delta import chunk as delta_chunk
from fairway.ops.delta import naive as delta_naive
from fairway.ops.gla import chunk as gla_chunk
from fairway.ops.gla import naive as gla_naive
from fairway.ops.linear_attention import chunk as linear_chunk
from fairway.ops.linear_attention import naive as linear_naive
from fairway.ops.retention import chunk as retention_chunk
from fairway.ops.retention import naive as retention_naive
from fairway.ops.selective_scan import chunk as scan_chunk
from fairway.ops.selective_scan import naive as scan_naive
from fairway.ops.ssd import chunk as ssd_chunk
from fairway.ops.ssd import naive as ssd_naive
from fairway.ops.ttt import chunk as ttt_chunk
from fairway.ops.ttt import naive as ttt_naive
from fairway.ops.ttt.inner import Carried
from fairway.ops.wkv4 import chunk as wkv4_chunk
from fairway.ops.wkv4 import naive as wkv4_naive

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Op:
    """One op behind one signature: `(inputs over time, weights, state, starts) -> (output, state)`."""

    sizes: Callable[["Draw", int, int], tuple[Tensors, Tensors, Tensors]]
    """`sizes(draw, batch, length)`: inputs (B, T, ...), weights, a state carried in."""
    naive: Callable[..., tuple[Tensor, Tensors]]
    chunk: Callable[..., tuple[Tensor, Tensors]]
    chunks: bool = True
    """Whether the fast form takes a chunk size."""
    documents: bool = True
    """Whether it takes document starts."""


class Draw:
    """Random tensors from one named stream."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.source = generator(0, "ops", name)
        self.dtype = dtype

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.source, dtype=torch.float64).to(self.dtype)


def _call(function: Callable[..., tuple[Tensor, Any]], count: int = 1) -> Callable[..., tuple[Tensor, Tensors]]:
    """Adapts `function(*inputs, *weights, state, starts, ...)`; the state is a tensor, or `count` of them."""

    def call(
        inputs: Tensors, weights: Tensors, state: Tensors | None, starts: Tensor | None, **more: int
    ) -> tuple[Tensor, Tensors]:
        given = state if count > 1 or state is None else state[0]
        output, after = function(*inputs, *weights, given, starts, **more)
        return output, after if isinstance(after, tuple) else (after,)

    return call


def _scan(function: Callable[..., tuple[Tensor, Tensor]], discretisation: str) -> Callable[..., tuple[Tensor, Tensors]]:
    def call(
        inputs: Tensors, weights: Tensors, state: Tensors | None, starts: Tensor | None, **more: int
    ) -> tuple[Tensor, Tensors]:
        (x, delta, B, C), (A, D) = inputs, weights
        y, after = function(x, delta, A, B, C, D, state and state[0], starts, discretisation=discretisation, **more)
        return y, (after,)

    return call


def _ssd(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensors]]:
    def call(
        inputs: Tensors, weights: Tensors, state: Tensors | None, starts: Tensor | None, **more: int
    ) -> tuple[Tensor, Tensors]:
        (x, delta, B, C), (A, D) = inputs, weights
        y, after = function(x, delta, A, B, C, D, state and state[0], starts, **more)
        return y, (after,)

    return call


def _ttt(
    function: Callable[..., tuple[Tensor, Carried]], place: int, plain: bool = False
) -> Callable[..., tuple[Tensor, Tensors]]:
    def call(inputs: Tensors, weights: Tensors, state: Tensors, starts: Tensor | None) -> tuple[Tensor, Tensors]:
        assert starts is None
        half = len(state) // 2
        y, after = function(*inputs, *weights, Carried(state[:half], state[half:], place), plain=plain)
        assert after.place == (place + inputs[0].shape[1]) % len(weights[0])
        return y, (*after.weights, *after.sums)

    return call


def _qkv(draw: Draw, batch: int, length: int) -> tuple[Tensors, Tensor]:
    q, k, v = draw(batch, length, 3, 6), draw(batch, length, 3, 6), draw(batch, length, 3, 5)
    return (q, k, v), draw(batch, 3, 6, 5)


def _retention_sizes(draw: Draw, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    qkv, state = _qkv(draw, batch, length)
    return qkv, (-draw(3).abs() / 4,), (state,)


def _gla_sizes(draw: Draw, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    qkv, state = _qkv(draw, batch, length)
    return (*qkv, functional.logsigmoid(2 * draw(batch, length, 3, 6))), (), (state,)


def _delta_sizes(draw: Draw, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    (q, k, v), state = _qkv(draw, batch, length)
    k = functional.normalize(k, dim=-1)
    return (
        (q, k, v, draw(batch, length, 3).sigmoid(), functional.logsigmoid(draw(batch, length, 3))),
        (),
        (state,),
    )


def _delta_plain(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensors]]:
    def call(
        inputs: Tensors, weights: Tensors, state: Tensors | None, starts: Tensor | None, **more: int
    ) -> tuple[Tensor, Tensors]:
        assert not weights
        output, after = function(*inputs, None, state and state[0], starts, **more)
        return output, (after,)

    return call


def _delta_plain_sizes(draw: Draw, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    inputs, weights, state = _delta_sizes(draw, batch, length)
    return inputs[:4], weights, state


def _linear_sizes(draw: Draw, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    qkv, state = _qkv(draw, batch, length)
    return qkv, (), (state, draw(batch, 3, 6).abs())


def _scan_sizes(draw: Draw, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    x, delta = draw(batch, length, 6), functional.softplus(draw(batch, length, 6))
    inputs = (x, delta, draw(batch, length, 4), draw(batch, length, 4))
    return inputs, (-draw(6, 4).exp(), draw(6)), (draw(batch, 6, 4),)


def _ssd_sizes(draw: Draw, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    x, delta = draw(batch, length, 6, 5), functional.softplus(draw(batch, length, 6))
    inputs = (x, delta, draw(batch, length, 2, 4), draw(batch, length, 2, 4))
    return inputs, (-draw(6).exp(), draw(6)), (draw(batch, 6, 4, 5),)


def _wkv4_sizes(draw: Draw, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    inputs = (3 * draw(batch, length, 6), draw(batch, length, 6))
    return inputs, (draw(6).exp(), draw(6)), (draw(batch, 6), draw(batch, 6).exp(), draw(batch, 6))


def _conv_sizes(draw: Draw, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    return (draw(batch, length, 6),), (draw(6, 4), draw(6)), (draw(batch, 3, 6),)


def _ttt_sizes(draw: Draw, batch: int, length: int, hidden: int | None) -> tuple[Tensors, Tensors, Tensors]:
    qkv = tuple(draw(batch, length, 2, 4) for _ in range(3))
    inputs = (*qkv, draw(batch, length, 2).sigmoid() / 4)
    token_rate = 1 / torch.arange(1, 6, dtype=torch.float64) + 0.1 * draw(5).abs()
    weights = (token_rate.to(draw.dtype), 1 + 0.1 * draw(2, 4), 0.1 * draw(2, 4))
    shapes = [(4, 4), (1, 4)] if hidden is None else [(4, hidden), (1, hidden), (hidden, 4), (1, 4)]
    return inputs, weights, tuple(0.3 * draw(batch, 2, *shape) for shape in [*shapes, *shapes])


OPS: dict[str, Op] = {
    "selective_scan_euler": Op(
        _scan_sizes, _scan(scan_naive.selective_scan, "euler"), _scan(scan_chunk.selective_scan, "euler")
    ),
    "selective_scan_zoh": Op(
        _scan_sizes, _scan(scan_naive.selective_scan, "zoh"), _scan(scan_chunk.selective_scan, "zoh")
    ),
    "ssd": Op(_ssd_sizes, _ssd(ssd_naive.ssd), _ssd(ssd_chunk.ssd)),
    "retention": Op(_retention_sizes, _call(retention_naive.retention), _call(retention_chunk.retention)),
    "gla": Op(_gla_sizes, _call(gla_naive.gla), _call(gla_chunk.gla)),
    "linear_attention": Op(
        _linear_sizes, _call(linear_naive.linear_attention, 2), _call(linear_chunk.linear_attention, 2)
    ),
    "delta": Op(_delta_plain_sizes, _delta_plain(delta_naive.delta), _delta_plain(delta_chunk.delta)),
    "gated_delta": Op(_delta_sizes, _call(delta_naive.delta), _call(delta_chunk.delta)),
    "wkv4": Op(_wkv4_sizes, _call(wkv4_naive.wkv4, 3), _call(wkv4_chunk.wkv4, 3), chunks=False),
    "conv": Op(_conv_sizes, _call(conv_naive.causal_conv), _call(conv_chunk.causal_conv), chunks=False),
    "ttt_linear": Op(
        lambda draw, batch, length: _ttt_sizes(draw, batch, length, None),
        _ttt(ttt_naive.ttt, 2),
        _ttt(ttt_chunk.ttt, 2),
        chunks=False,
        documents=False,
    ),
    "ttt_mlp": Op(
        lambda draw, batch, length: _ttt_sizes(draw, batch, length, 8),
        _ttt(ttt_naive.ttt, 2),
        _ttt(ttt_chunk.ttt, 2),
        chunks=False,
        documents=False,
    ),
}


@pytest.fixture(params=OPS)
def op(request: pytest.FixtureRequest) -> Op:
    """Each op in turn."""
    return OPS[request.param]


@pytest.fixture
def ops() -> dict[str, Op]:
    """All ops by name."""
    return OPS


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> Draw:
    """Random float64 tensors of the test's own stream."""
    return Draw(request.node.name)
