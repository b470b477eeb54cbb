"""What the GPU kernels of the decaying recurrences share: tiles, decays, and the states between chunks.

A sequence is cut into chunks of `CHUNK` tokens. States run from chunk to chunk, everything else is done for all
chunks at once by products of matrices. Sums are float32; operands of products are bfloat16 where the inputs are.
`total` holds the logarithms of the decays added up from the start of each chunk (B, chunks * C, H, E), E the key
width K or 1; only differences of them that are <= 0 are exponentiated. `document` counts the documents that have
begun: entry t for the tokens before token t (B, chunks * C + 1).
Shape key: B batch, T time, H value heads, G key heads, K key width, V value width, N chunks, C places of a chunk.
"""

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from fairway.ops.gpu import INTERPRETED, operands
from fairway.ops.recurrence import initial_state

# Said aloud, so that a version of Triton with another default gives the same numbers, and none warns about it.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

CHUNK = 64
PRECISION = tl.constexpr("ieee" if torch.version.hip else "tf32x3")
"""How products of float32 are taken: three passes of TF32 keep float32's accuracy on NVIDIA's tensor cores."""
ROUNDED = tl.constexpr(INTERPRETED)
"""The interpreter multiplies the bits of bfloat16 as integers, so it gets the rounded operands as float32."""


@triton.jit
def rows(pointer, row_R, rows_end, step, column_X, columns_end):
    """A tile of rows, `step` apart, as float32; zeros outside."""
    inside_RX = (row_R < rows_end)[:, None] & (column_X < columns_end)[None, :]
    return tl.load(pointer + row_R[:, None] * step + column_X[None, :], mask=inside_RX, other=0.0).to(tl.float32)


@triton.jit
def put_rows(pointer, tile_RX, row_R, rows_end, step, column_X, columns_end):
    """Stores a tile of rows, `step` apart."""
    inside_RX = (row_R < rows_end)[:, None] & (column_X < columns_end)[None, :]
    tile_RX = tile_RX.to(pointer.dtype.element_ty)
    tl.store(pointer + row_R[:, None] * step + column_X[None, :], tile_RX, mask=inside_RX)


@triton.jit
def product(a, b, KIND: tl.constexpr):
    """The product of two float32 tiles with operands of type KIND and float32 sums."""
    if ROUNDED:
        return tl.dot(a.to(KIND).to(tl.float32), b.to(KIND).to(tl.float32))
    return tl.dot(a.to(KIND), b.to(KIND), input_precision=PRECISION)


@triton.jit
def sight(document, b, n, padded, C: tl.constexpr):
    """Documents begun up to each place of a chunk, before its first place, up to its last, and where one begins."""
    document += b * (padded + 1) + n * C
    place_C = tl.arange(0, C)
    own_C = tl.load(document + 1 + place_C)
    return own_C, tl.load(document), tl.load(document + C), own_C != tl.load(document + place_C)


@triton.jit
def edges(total, document, b, n, padded, step, column_X, columns_end, C: tl.constexpr, DOCUMENTS: tl.constexpr):
    """Decays from the chunk's start to each place, from each place to its end (C, X), and through the chunk (X)."""
    total += (b * padded + n * C) * step
    total_CX = rows(total, tl.arange(0, C), C, step, column_X, columns_end)
    last_X = tl.load(total + (C - 1) * step + column_X, mask=column_X < columns_end, other=0.0)
    entering_CX, leaving_CX, whole_X = tl.exp(total_CX), tl.exp(last_X[None, :] - total_CX), tl.exp(last_X)
    if DOCUMENTS:
        own_C, before, last, _ = sight(document, b, n, padded, C)
        entering_CX = tl.where((own_C == before)[:, None], entering_CX, 0.0)
        leaving_CX = tl.where((own_C == last)[:, None], leaving_CX, 0.0)
        whole_X = tl.where(last == before, whole_X, 0.0)
    return entering_CX, leaving_CX, whole_X


@triton.jit
def later(by_end_X, document, b, n, padded, C: tl.constexpr, DOCUMENTS: tl.constexpr):
    """What sums gradients by the totals over the later places of the same document (C, C); and for each place the
    gradient by the state after the chunk times that state, where the place reaches the end (C, X). Where a document
    begins, the decay multiplies nothing and has none."""
    place_C = tl.arange(0, C)
    later_CC = place_C[None, :] >= place_C[:, None]
    reaches_C = place_C >= 0
    if DOCUMENTS:
        own_C, _, last, begins_C = sight(document, b, n, padded, C)
        later_CC = later_CC & (own_C[:, None] == own_C[None, :]) & (begins_C == 0)[:, None]
        reaches_C = (own_C == last) & (begins_C == 0)
    return later_CC.to(tl.float32), tl.where(reaches_C[:, None], by_end_X[None, :], 0.0)


@triton.jit
def states_kernel(
    k, v, total, document, state, states, last, length, padded, chunks,
    heads: tl.constexpr, groups: tl.constexpr, K: tl.constexpr, V: tl.constexpr, E: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """The state before every chunk and after the last (B, H, N + 1, K, V), and the last one in full precision."""
    at = tl.program_id(0)
    b, h = (at // heads).to(tl.int64), at % heads
    column_K, column_V = tl.program_id(1) * BK + tl.arange(0, BK), tl.program_id(2) * BV + tl.arange(0, BV)
    k += (b * length * groups + h // (heads // groups)) * K
    v += (b * length * heads + h) * V
    states += at.to(tl.int64) * (chunks + 1) * K * V
    decay_K = column_K if E > 1 else column_K * 0
    S_KV = rows(state + at.to(tl.int64) * K * V, column_K, K, V, column_V, V)
    for n in range(chunks):
        put_rows(states + n * K * V, S_KV, column_K, K, V, column_V, V)
        _, leaving_CK, whole_K = edges(total + h * E, document, b, n, padded, heads * E, decay_K, E, C, DOCUMENTS)
        time_C = n * C + tl.arange(0, C)
        k_CK = rows(k, time_C, length, groups * K, column_K, K)
        v_CV = rows(v, time_C, length, heads * V, column_V, V)
        S_KV = S_KV * whole_K[:, None] + product(tl.trans(k_CK * leaving_CK), v_CV, KIND)
    put_rows(states + chunks * K * V, S_KV, column_K, K, V, column_V, V)
    put_rows(last + at.to(tl.int64) * K * V, S_KV, column_K, K, V, column_V, V)


@triton.jit
def flows_kernel(
    q, by_y, total, document, by_last, flows, by_state, length, padded, chunks,
    heads: tl.constexpr, groups: tl.constexpr, K: tl.constexpr, V: tl.constexpr, E: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Gradients by the state after every chunk (B, H, N, K, V) and by the carried state, from the last chunk on."""
    at = tl.program_id(0)
    b, h = (at // heads).to(tl.int64), at % heads
    column_K, column_V = tl.program_id(1) * BK + tl.arange(0, BK), tl.program_id(2) * BV + tl.arange(0, BV)
    q += (b * length * groups + h // (heads // groups)) * K
    by_y += (b * length * heads + h) * V
    flows += at.to(tl.int64) * chunks * K * V
    decay_K = column_K if E > 1 else column_K * 0
    flow_KV = rows(by_last + at.to(tl.int64) * K * V, column_K, K, V, column_V, V)
    for i in range(chunks):
        n = chunks - 1 - i
        put_rows(flows + n * K * V, flow_KV, column_K, K, V, column_V, V)
        entering_CK, _, whole_K = edges(total + h * E, document, b, n, padded, heads * E, decay_K, E, C, DOCUMENTS)
        time_C = n * C + tl.arange(0, C)
        q_CK = rows(q, time_C, length, groups * K, column_K, K)
        by_y_CV = rows(by_y, time_C, length, heads * V, column_V, V)
        flow_KV = flow_KV * whole_K[:, None] + product(tl.trans(q_CK * entering_CK), by_y_CV, KIND)
    put_rows(by_state + at.to(tl.int64) * K * V, flow_KV, column_K, K, V, column_V, V)


@dataclass(frozen=True)
class Cut:
    """A sequence cut into chunks: what every launch needs to know."""

    total: Tensor
    document: Tensor | None
    chunks: int

    @classmethod
    def of(cls, log_decay_BTHE: Tensor, starts_BT: Tensor | None) -> "Cut":
        """Adds the logarithms of the decays up within each chunk, and counts the documents."""
        missing = -log_decay_BTHE.shape[1] % CHUNK
        padded = functional.pad(log_decay_BTHE, (0, 0, 0, 0, 0, missing))
        total = padded.unflatten(1, (-1, CHUNK)).cumsum(2, dtype=torch.float32).flatten(1, 2)
        document = None
        if starts_BT is not None:
            document = functional.pad(starts_BT.int(), (1, missing)).cumsum(1, dtype=torch.int32)
        return cls(total, document, total.shape[1] // CHUNK)

    @property
    def padded(self) -> int:
        """Tokens with those that fill up the last chunk."""
        return self.chunks * CHUNK


def prepared(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of a kernel: q, k and v of one type that products take, decays and carried state in float32."""
    log_decay = log_decay.float().contiguous()
    (batch, _, heads, values), width = v.shape, q.shape[3]
    state = initial_state(state, log_decay, batch, heads, width, values).float().contiguous()
    v, q, k = operands(v, q, k)
    return q, k, v, log_decay, state


def block(width: int, most: int) -> int:
    """The power of 2 that covers a width, between 16, the least that a product takes, and `most`."""
    return min(most, max(16, triton.next_power_of_2(width)))


def kind(tensor: Tensor) -> tl.dtype:
    """The type of a product's operands: bfloat16 for bfloat16, float32 for all others."""
    return tl.bfloat16 if tensor.dtype == torch.bfloat16 else tl.float32


def stages(tensor: Tensor) -> int:
    """Tiles of a loop in flight: two of bfloat16, one of float32, so that 99 KB of shared memory are enough."""
    return 2 if tensor.dtype == torch.bfloat16 else 1


def run_states(k: Tensor, v: Tensor, state: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """The states between chunks (B, H, N + 1, K, V), in the type of the keys, and the last in float32."""
    (batch, length, groups, width), (heads, values) = k.shape, v.shape[2:]
    states = k.new_empty(batch, heads, cut.chunks + 1, width, values)
    last = torch.empty_like(state)
    BK, BV = block(width, 64), block(values, 32)
    states_kernel[(batch * heads, triton.cdiv(width, BK), triton.cdiv(values, BV))](
        k, v, cut.total, cut.document, state, states, last, length, cut.padded, cut.chunks,
        heads, groups, width, values, cut.total.shape[3], CHUNK, BK, BV, kind(k), cut.document is not None,
        num_stages=stages(k),
    )  # fmt: skip
    return states, last


def run_flows(q: Tensor, by_y: Tensor, by_last: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """Gradients by the states after each chunk (B, H, N, K, V), and by the carried state."""
    (batch, length, groups, width), (heads, values) = q.shape, by_y.shape[2:]
    flows = q.new_empty(batch, heads, cut.chunks, width, values)
    by_state = torch.empty_like(by_last)
    BK, BV = block(width, 64), block(values, 32)
    flows_kernel[(batch * heads, triton.cdiv(width, BK), triton.cdiv(values, BV))](
        q, by_y, cut.total, cut.document, by_last, flows, by_state, length, cut.padded, cut.chunks,
        heads, groups, width, values, cut.total.shape[3], CHUNK, BK, BV, kind(q), cut.document is not None,
        num_stages=stages(q),
    )  # fmt: skip
    return flows, by_state
