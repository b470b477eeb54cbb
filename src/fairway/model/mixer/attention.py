"""Causal multi-head attention with grouped queries, rotary positions and QK-norm.

`y = concat_h softmax(q_h k_g^T / sqrt(K)) v_g W_o` (Vaswani et al. 2017), heads h sharing key groups g (Ainslie et
al. 2023), q and k normalised per head with a learned gain on q (Henry et al. 2020), an optional window and soft
cap, and, if `exclusive`, the part of y along the token's own value removed. Its state is the keys and values seen
(the latest of them under a window), how many tokens were seen, at which of them the document began, and the
positions of the keys where these are kept before rotation. Shape key: B batch, T time, D width, H heads, G key
groups, S keys seen, K head width.
"""

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.key_cache import appended, newest
from fairway.model.linear import Linear
from fairway.model.parts import NO_CONTEXT, Angles, Context, Mixer, MixerConfig, Role, Site, State
from fairway.ops.attention.fastest import attend

SOURCE = Source("Vaswani et al.", 2017, "arXiv:1706.03762")


class Config(MixerConfig):
    """Settings of attention."""

    heads: int = Field(default=6, ge=1)
    key_groups: int | None = Field(default=None, ge=1)
    """Heads of keys and values; fewer than `heads` shares them (1: multi-query). As many as heads if not given."""
    head_width: int | None = Field(default=None, ge=1)
    """Features of each head; the model's width over `heads` if not given."""
    window: int | None = Field(default=None, ge=1)
    """Tokens a query may see, itself included; all if not given."""
    softcap: float | None = Field(default=None, gt=0)
    """Bounds scores smoothly by `c tanh(score / c)`."""
    qk_norm: bool = True
    """Normalise queries and keys, with one learned factor per head on the queries."""
    exclusive: bool = False
    """Remove from each output its component along the token's own value."""

    @model_validator(mode="after")
    def _groups_divide_heads(self) -> "Config":
        if self.key_groups is not None and self.heads % self.key_groups:
            raise ValueError(f"{self.heads} heads cannot share {self.key_groups} key groups evenly")
        return self

    def build(self, width: int, site: Site = Site()) -> Mixer:  # noqa: B008
        if self.head_width is None and width % self.heads:
            fitting = [heads for heads in range(1, width + 1) if width % heads == 0 and heads <= 64]
            raise ValueError(
                f"{self.heads} heads do not divide the width {width}; {fitting} would, or any with a head_width"
            )
        return Attention(width, self, site)

    def isolates_documents(self) -> bool:
        return True

    def value_features(self, width: int) -> int:
        return (self.key_groups or self.heads) * (self.head_width or width // self.heads)


class Attention(Mixer):
    """`forward(x_BTD, state, context) -> (y_BTD, (k_BGSK, v_BGSK, seen_B, start_B[, position_BS]))`."""

    def __init__(self, width: int, config: Config, site: Site) -> None:
        super().__init__()
        self.config = config
        self.groups = config.key_groups or config.heads
        self.head_width = config.head_width or width // config.heads
        self.query = Linear(width, config.heads * self.head_width)
        self.key = Linear(width, self.groups * self.head_width)
        self.value = Linear(width, self.groups * self.head_width)
        self.output = Linear(config.heads * self.head_width, width, gain=0.0)
        self.position = site.position.build(self.head_width, site.context, width) if site.position else None
        self.norm = site.norm.build(self.head_width, "qk") if config.qk_norm and site.norm else None
        self.gain_H = nn.Parameter(torch.empty(config.heads)) if self.norm is not None else None

    def roles(self) -> dict[str, Role]:
        return {} if self.gain_H is None else {"gain_H": Role.SCALAR}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        if self.gain_H is not None:
            self.gain_H.fill_(1.5)

    @property
    def _keeps_positions(self) -> bool:
        return self.position is not None and not self.position.rotated_keys_stay_valid

    def empty_state(self, batch: int) -> State:
        weight = self.key.weight
        keys = weight.new_zeros(batch, self.groups, 0, self.head_width)
        count = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return keys, keys, count, count, *((count.new_zeros(batch, 0),) if self._keeps_positions else ())

    def state_bytes(self, context: int) -> int:
        length = context if self.config.window is None else min(context, self.config.window - 1)
        per_key = 2 * self.groups * self.head_width * self.key.weight.itemsize
        return length * (per_key + (8 if self._keeps_positions else 0)) + 16

    def flops(self, context: int) -> float:
        window = min(context, self.config.window or context)
        seen = window - window * (window - 1) / (2 * context)
        return super().flops(context) + 4.0 * seen * self.config.heads * self.head_width

    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        batch, time, _ = x_BTD.shape
        old_k, old_v, seen_B, start_B, *old_positions = self.empty_state(batch) if state is None else state
        index_T = torch.arange(time, device=x_BTD.device)
        index_BT = index_T[None] if state is None else seen_B[:, None] + index_T
        position_BT = index_BT if context.positions_BT is None else context.positions_BT
        angles_TR = self._angles(x_BTD, position_BT)
        wanted = 0 if self._keeps_positions else context.first
        q_BHTK, k_BGTK, v_BGTK = self._projected(x_BTD, context, angles_TR, wanted)
        if self._keeps_positions:
            old_positions = [torch.cat((old_positions[0], position_BT.expand(batch, -1)), dim=1)]
        elif self.position is not None and angles_TR is None:
            q_BHTK, k_BGTK = self._rotated(q_BHTK, k_BGTK, position_BT)
        k_BGSK, v_BGSK = appended(old_k, k_BGTK), appended(old_v, v_BGTK)
        start_BT = _document_starts(start_B, index_BT, context.starts_BT)
        first_BT = self._first_visible(start_BT, index_BT, old_k.shape[2], state, context)
        if self._keeps_positions:
            y_BHTK = self._attend_turning(q_BHTK, k_BGSK, v_BGSK, old_positions[0], first_BT)
        else:
            first_BT = first_BT if first_BT is None else first_BT[:, wanted:]
            y_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, first_BT, self.config.softcap)
        if self.config.exclusive:
            y_BHTK = _without_own(y_BHTK, v_BGTK[:, :, wanted:])
        y_BTD = self.output(y_BHTK.transpose(1, 2).reshape(batch, time - wanted, -1))
        length = k_BGSK.shape[2]
        count = length if self.config.window is None else min(length, self.config.window - 1)
        start_B = start_BT[:, -1] if time else start_B
        keys, values = newest(k_BGSK, count), newest(v_BGSK, count)
        if count < length and time > 1:
            keys, values = keys.clone(), values.clone()  # views would keep the whole sequence alive
        after = keys, values, seen_B + time, start_B
        return y_BTD, (*after, *(places_BS[:, length - count :] for places_BS in old_positions))

    def _angles(self, x_BTD: Tensor, position_BT: Tensor) -> Angles | None:
        """Where several tokens are normalised and rotated: the angles, if both can be done at once."""
        if self.position is None or self.norm is None or x_BTD.shape[1] < 2:
            return None
        return self.position.angles(position_BT, torch.float64 if x_BTD.dtype == torch.float64 else torch.float32)

    def _projected(
        self, x_BTD: Tensor, context: Context, angles_TR: Angles | None = None, wanted: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries from `wanted` on, keys and values by head, normalised, and rotated if angles are given."""
        q_BTHK = self._heads(self.query(x_BTD[:, wanted:]), self.config.heads)
        k_BTGK = self._heads(self.key(x_BTD), self.groups)
        v_BTE = self.value(x_BTD)
        if context.value_BTD is not None:
            v_BTE = v_BTE + context.value_BTD[..., : v_BTE.shape[-1]].to(v_BTE.dtype)
        if self.norm is not None and angles_TR is not None:
            q_BTHK = self.norm.turned(q_BTHK, self.gain_H, (angles_TR[0][wanted:], angles_TR[1][wanted:]))
            k_BTGK = self.norm.turned(k_BTGK, None, angles_TR)
        elif self.norm is not None and self.gain_H is not None:
            q_BTHK = self.norm(q_BTHK) * self.gain_H[:, None].to(q_BTHK.dtype)
            k_BTGK = self.norm(k_BTGK)
        v_BTGK = self._heads(v_BTE, self.groups)
        return q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)

    def _rotated(self, q_BHTK: Tensor, k_BGTK: Tensor, position_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Both turned: of a single token together, which saves calls, and else apart, which saves copies."""
        assert self.position is not None
        queries, keys = q_BHTK.shape[2], k_BGTK.shape[2]
        if keys > 1:
            q_BHTK = self.position.rotate(q_BHTK, position_BT[:, keys - queries :], 0)
            return q_BHTK, self.position.rotate(k_BGTK, position_BT, 0)
        both = self.position.rotate(torch.cat((q_BHTK, k_BGTK), dim=1), position_BT, 0)
        q_BHTK, k_BGTK = both.split((self.config.heads, self.groups), dim=1)
        return q_BHTK, k_BGTK

    def _heads(self, x_BTD: Tensor, heads: int) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:2], heads, self.head_width)

    def _first_visible(
        self, start_BT: Tensor, index_BT: Tensor, cached: int, state: State | None, context: Context
    ) -> Tensor | None:
        """Index among the keys of the first one each query may see; None where that is always the first."""
        window = self.config.window
        one_document = state is None and context.starts_BT is None
        if one_document and (window is None or window >= start_BT.shape[1]):
            return None
        first_BT = start_BT if window is None else torch.maximum(start_BT, index_BT - window + 1)
        first_BT = (first_BT - index_BT[:, :1] + cached).clamp_min(0)
        decoding = first_BT.shape[1] == 1 and first_BT.device.type == "cpu"
        return None if decoding and not first_BT.any() else first_BT

    def _attend_turning(
        self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, places_BS: Tensor, first_BT: Tensor | None
    ) -> Tensor:
        """Attention where the rotation depends on the query's position: one pass for each rotation in use."""
        assert self.position is not None
        batch, _, time, _ = q_BHTK.shape
        places_BT = places_BS[:, places_BS.shape[1] - time :]
        span_BT = self.position.span(places_BT)
        assert span_BT is not None
        y_BHTK = torch.zeros_like(q_BHTK)
        for length in span_BT.unique().tolist():
            mine_BT = span_BT == length
            used_T = mine_BT.any(0).nonzero().squeeze(1)
            part = slice(int(used_T[0]), int(used_T[-1]) + 1)
            keys = k_BGSK.shape[2] - time + part.stop
            q = self.position.rotate(q_BHTK[:, :, part], places_BT[:, part], length)
            k = self.position.rotate(k_BGSK[:, :, :keys], places_BS[:, :keys], length)
            first = None if first_BT is None else first_BT.expand(batch, time)[:, part]
            y = attend(q, k, v_BGSK[:, :, :keys], first, self.config.softcap)
            mine = mine_BT[:, None, part, None]
            y_BHTK = torch.cat((y_BHTK[:, :, : part.start], y.where(mine, y_BHTK[:, :, part]),
                                y_BHTK[:, :, part.stop :]), dim=2)  # fmt: skip
        return y_BHTK


def _document_starts(start_B: Tensor, index_BT: Tensor, starts_BT: Tensor | None) -> Tensor:
    """Index of the token at which each token's document began."""
    if starts_BT is None:
        return start_B[:, None].expand(-1, index_BT.shape[1])
    return torch.where(starts_BT, index_BT, start_B[:, None]).cummax(dim=1).values


def _without_own(y_BHTK: Tensor, v_BGTK: Tensor) -> Tensor:
    v_BHTK = v_BGTK.repeat_interleave(y_BHTK.shape[1] // v_BGTK.shape[1], dim=1)
    share = (y_BHTK * v_BHTK).sum(-1, keepdim=True) / v_BHTK.square().sum(-1, keepdim=True).clamp_min(1e-12)
    return y_BHTK - share * v_BHTK
