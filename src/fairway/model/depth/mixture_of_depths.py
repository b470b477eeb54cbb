"""Mixture of depths: some blocks are applied to a chosen share of the tokens only.

`r = w . x`; in training S is the C tokens of a sequence with the largest r, in their order, and `x_i = x_i + g(r_i)
(block(X_S)_i - x_i)` for i in S; other tokens pass by. That choice sees the whole sequence. Outside training a
token is chosen by itself alone: if its r is positive, r being trained by a cross-entropy to be so for the C
largest, or if a small network reading x without gradient says so. Inside the block a token keeps its original
position; its state holds chosen tokens only. Raposo et al. 2024.

The control, `route: random`, differs in the choice alone: of every stretch of `1 / capacity` tokens of a document
one is taken, by a hash of the stretch, the layer and `draw`, in training as outside it; g(r_i) stays.
Shape key: B batch, T time, D width, C chosen, M chosen of all sequences, N tokens of all sequences.
"""

from fractions import Fraction
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Source
from fairway.model import ragged
from fairway.model.linear import Linear
from fairway.model.parts import (
    NO_CONTEXT,
    Aux,
    Context,
    Depth,
    DepthConfig,
    Part,
    Role,
    State,
    Stateful,
    joined,
)
from fairway.model.stack import MakeBlock, run_blocks, state_bytes, stateful

SOURCE = Source("Raposo et al.", 2024, "arXiv:2404.02258")


class Config(DepthConfig):
    """Settings of a mixture of depths."""

    capacity: float = Field(default=0.125, gt=0, le=1)
    """Share of the tokens that a routed block takes."""
    route: Literal["learned", "random"] = "learned"
    """What chooses tokens: the router, or as a control the position alone."""
    draw: int = Field(default=0, ge=0)
    """Another number gives other random positions."""
    interval: int = Field(default=2, ge=1)
    """Every so many blocks one is routed, the last of each group."""
    gate: Literal["raw", "sigmoid", "twice_sigmoid"] = "raw"
    """What r is turned into before it weighs a block's output."""
    decide: Literal["router", "predictor"] = "router"
    """What chooses tokens outside training: the sign of r, or a network of its own."""
    weight: float = Field(default=0.01, gt=0)
    """Weight of the cross-entropy that trains the choice."""
    predictor_width: int = Field(default=32, ge=1)
    """Hidden width of the predictor."""

    @model_validator(mode="after")
    def _some_block_is_routed(self) -> "Config":
        if self.interval > self.layers:
            raise ValueError(f"interval {self.interval} routes none of {self.layers} layers; at most {self.layers}")
        return self

    @model_validator(mode="after")
    def _a_random_route_decides_nothing(self) -> "Config":
        if self.route == "random" and self.decide == "predictor":
            raise ValueError("a random route is known beforehand and leaves nothing to predict; decide: router works")
        return self

    def build(self, make_block: MakeBlock, width: int) -> Depth:
        blocks = [make_block(layer, self.layers) for layer in range(self.layers)]
        last = self.interval - 1
        return MixtureOfDepths(
            [Routed(b, width, self, layer) if layer % self.interval == last else b for layer, b in enumerate(blocks)]
        )


class MixtureOfDepths(Depth):
    """`forward(x_BTD, state, context) -> (x_BTD, state, aux)`; causal outside training only."""

    def __init__(self, blocks: list[Stateful]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    @property
    def parts(self) -> list[Stateful]:
        """The blocks in order."""
        return stateful(self.blocks)

    def empty_state(self, batch: int) -> State:
        return joined(block.empty_state(batch) for block in self.parts)

    def state_bytes(self, context: int) -> int:
        return state_bytes(self.parts, context)

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        return run_blocks(self.parts, x_BTD, state, context)


class Routed(Stateful):
    """A block for chosen tokens. State: tokens seen, whether a document began since the last chosen one, the block's.

    Of a random route, how many tokens were seen when the document began stands before the block's.

    The block's tensors are filled up to the longest sequence, their real sizes beside them.
    """

    def __init__(self, block: Stateful, width: int, config: Config, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.block = block
        self.router = Linear(width, 1, role=Role.ROUTER)
        self.predictor = _Predictor(width, config.predictor_width) if config.decide == "predictor" else None

    def empty_state(self, batch: int) -> State:
        seen_B = torch.zeros(batch, dtype=torch.int64, device=self.router.weight.device)
        pending_B = torch.zeros_like(seen_B, dtype=torch.bool)
        begun = (seen_B,) if self.config.route == "random" else ()
        return seen_B, pending_B, *begun, *ragged.packed(self.block.empty_state(batch))

    def state_bytes(self, context: int) -> int:
        """Bytes where exactly the share `capacity` of the tokens is chosen; the real choice depends on the text."""
        sizes = sum(8 * (tensor.ndim - 1) for tensor in self.block.empty_state(1))
        own = 17 if self.config.route == "random" else 9
        return own + sizes + self.block.state_bytes(self.chosen(context) if context else 0)

    def looks_ahead(self) -> bool:
        return self.config.capacity < 1 and self.config.route == "learned"

    def needs_whole_sequences(self) -> bool:
        return self.config.route == "learned"

    def chosen(self, length: int) -> int:
        """Tokens that a sequence of `length` sends through the block in training."""
        if self.config.route == "random":
            return int(self._drawn(torch.arange(length)).sum())
        return max(1, int(self.config.capacity * length))

    def flops(self, context: int) -> float:
        few = self.chosen(context)
        predictor = 0.0 if self.predictor is None else self.predictor.flops(context)
        return self.router.flops(context) + predictor + self.block.flops(few) * few / context

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        seen_B, pending_B, *inner = self.empty_state(len(x_BTD)) if state is None else state
        length, begun = x_BTD.shape[1], [inner.pop(0)] if self.config.route == "random" else []
        places = _Places(seen_B, pending_B, context)
        scored_BT = self._scores(x_BTD)
        guess_BT = None if self.predictor is None else self.predictor(x_BTD.detach())
        even = state is None or ragged.is_even(tuple(inner))
        if self.config.route == "random":
            index_BT, begun_BT = places.in_documents(begun[0], length)
            rows = _indices(self._drawn(index_BT - begun_BT), even=even)
            begun = [begun_BT[:, -1]] if length else begun
        else:
            rows = self._rows(scored_BT, guess_BT, even=even)
        row_M = _flat(rows, length)
        x_ND, r_N, x_MD = _Entry.apply(  # pyrefly: ignore
            x_BTD.reshape(-1, x_BTD.shape[2]), self.router.weight[0], scored_BT.flatten(), row_M
        )
        y_MD, inner_after, auxes = self._through(rows, x_MD, tuple(inner), places)
        r_BT = r_N.view_as(scored_BT)
        gate_M1 = self._gated(r_N.index_select(0, row_M))[:, None].to(y_MD.dtype)
        wide_ND = x_ND.to(torch.promote_types(x_ND.dtype, y_MD.dtype))
        y_BTD = wide_ND.index_add(0, row_M, gate_M1 * (y_MD - x_MD)).view_as(x_BTD)
        aux = Aux.of_repeats(auxes) if auxes else Aux()
        if self.training and self.config.route == "learned":
            aux = aux + self._choice_loss(r_BT if guess_BT is None else guess_BT, row_M)
        after = seen_B + length, places.pending_after(rows, length), *begun, *inner_after
        return y_BTD, after, aux

    @torch.no_grad()
    def _scores(self, x_BTD: Tensor) -> Tensor:
        """`w . x`, in float32 at least."""
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        with torch.autocast(x_BTD.device.type, enabled=False):
            return torch.matmul(x_BTD.to(dtype), self.router.weight[0].to(dtype))

    def _rows(self, r_BT: Tensor, guess_BT: Tensor | None, *, even: bool) -> list[Tensor]:
        """Indices of the chosen tokens, of all sequences at once, (B, C), or of one after the other, (1, C) each."""
        if not self.training:
            return _indices((r_BT if guess_BT is None else guess_BT) > 0, even=False)
        index_BC = r_BT.topk(self.chosen(r_BT.shape[1]), dim=1).indices.sort(dim=1).values
        return [index_BC] if even else list(index_BC.split(1))

    def _drawn(self, positions: Tensor) -> Tensor:
        """Whether the random route takes each position: one of every stretch, by whole numbers alone."""
        share = max(Fraction(self.config.capacity).limit_denominator(1_000_000), Fraction(1, 1_000_000))
        over, under = share.numerator, share.denominator
        stretch = positions * over // under
        first, after = -(-stretch * under // over), -(-(stretch + 1) * under // over)
        number = _hashed(_hashed(stretch + (self.config.draw << 8)) + self.layer)
        return positions == first + number % (after - first)

    def _through(
        self, rows: list[Tensor], x_MD: Tensor, inner: State, places: "_Places"
    ) -> tuple[Tensor, State, list[Aux]]:
        """The chosen tokens after the block, its packed state, and its auxiliary values."""
        whole = len(rows) == 1
        outputs, states, auxes = [], [], []
        for number, (index_BC, x) in enumerate(zip(rows, x_MD.split([r.numel() for r in rows]), strict=True)):
            mine = slice(None) if whole else slice(number, number + 1)
            piece = ragged.tensors(inner) if whole and ragged.is_even(inner) else ragged.row(inner, number)
            if len(x):
                x, piece, aux = self.block(x.view(*index_BC.shape, -1), piece, places.of(index_BC, mine))
                auxes.append(aux.under("block"))
            outputs.append(x.flatten(0, -2))
            states.append(piece)
        return (
            outputs[0] if whole else torch.cat(outputs),
            ragged.packed(states[0]) if whole else ragged.stacked(states),
            auxes,
        )

    def _gated(self, r_BT: Tensor) -> Tensor:
        if self.config.gate == "raw":
            return r_BT
        return torch.sigmoid(r_BT) * (2.0 if self.config.gate == "twice_sigmoid" else 1.0)

    def _choice_loss(self, guess_BT: Tensor, row_M: Tensor) -> Aux:
        target_BT = torch.zeros_like(guess_BT).flatten().index_fill(0, row_M, 1.0).view_as(guess_BT)
        loss = functional.binary_cross_entropy_with_logits(guess_BT, target_BT)
        guessed_BT = guess_BT.detach() > 0
        statistics = {
            "causal_agreement": (guessed_BT == (target_BT > 0)).to(guess_BT.dtype).mean(),
            "causal_share": guessed_BT.to(guess_BT.dtype).mean(),
        }
        return Aux({"choice": self.config.weight * loss}, statistics)


class _Entry(torch.autograd.Function):
    """The stream, its scores `r = w . x`, and the rows of the stream that the block gets.

    The stream's gradient has three parts, each of the size of the stream if taken alone; here they meet in one tensor.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, r_N: Tensor, row_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x_ND, weight_D, row_M)
        return x_ND.view_as(x_ND), r_N.view_as(r_N), x_ND.index_select(0, row_M)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_ND, weight_D, row_M = ctx.saved_tensors
        past_ND, dr_N, rows_MD = upstream
        wide = dr_N.dtype
        dx_ND = torch.addcmul(past_ND.to(wide), dr_N[:, None], weight_D.to(wide)).index_add_(0, row_M, rows_MD.to(wide))
        dweight_D = torch.matmul(dr_N, x_ND.to(wide))
        return dx_ND.to(x_ND.dtype), dweight_D.to(weight_D.dtype), None, None


class _Places:
    """Where the chosen tokens stood, and which of them are the first of their document that the block sees."""

    def __init__(self, seen_B: Tensor, pending_B: Tensor, context: Context) -> None:
        self.seen_B = seen_B
        self.pending_B = pending_B
        self.context = context
        self.document_BT = None if context.starts_BT is None else context.starts_BT.long().cumsum(1)

    def in_documents(self, begun_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Tokens seen before each of `length` tokens, and before its document, which began at `begun_B` at first."""
        index_BT = self.seen_B[:, None] + torch.arange(length, device=self.seen_B.device)
        if self.context.starts_BT is None:
            return index_BT, begun_B[:, None].expand_as(index_BT)
        return index_BT, torch.where(self.context.starts_BT, index_BT, begun_B[:, None]).cummax(1).values

    def of(self, index_BC: Tensor, mine: slice) -> Context:
        """The context of the tokens at `index_BC` of the sequences `mine`."""
        context = self.context
        if context.positions_BT is None:
            positions_BC = self.seen_B[mine, None] + index_BC
        else:
            positions_BC = context.positions_BT.expand(len(self.seen_B), -1)[mine].gather(1, index_BC)
        return context.with_(
            tokens_BT=_gathered(context.tokens_BT, index_BC, mine),
            embedded_BTD=_gathered(context.embedded_BTD, index_BC, mine),
            value_BTD=_gathered(context.value_BTD, index_BC, mine),
            positions_BT=positions_BC,
            starts_BT=self._starts(index_BC, mine),
        )

    def _starts(self, index_BC: Tensor, mine: slice) -> Tensor | None:
        if self.document_BT is None and not bool(self.pending_B.any()):
            return None
        document_BC = self._documents(index_BC, mine)
        before_BC = torch.cat((-self.pending_B[mine, None].long(), document_BC[:, :-1]), dim=1)
        return document_BC > before_BC

    def _documents(self, index_BC: Tensor, mine: slice) -> Tensor:
        if self.document_BT is None:
            return torch.zeros_like(index_BC)
        return self.document_BT[mine].gather(1, index_BC)

    def pending_after(self, rows: list[Tensor], length: int) -> Tensor:
        """Whether a document began after the last chosen token of each sequence."""
        if self.document_BT is None or not length:
            if len(rows) == 1:
                return self.pending_B & (rows[0].shape[1] == 0)
            return self.pending_B & torch.tensor([not r.shape[1] for r in rows], device=self.pending_B.device)
        result = []
        for number, index_BC in enumerate(rows):
            mine = slice(None) if len(rows) == 1 else slice(number, number + 1)
            last_B = self.document_BT[mine, -1]
            if index_BC.shape[1]:
                result.append(last_B > self._documents(index_BC[:, -1:], mine).squeeze(1))
            else:
                result.append(self.pending_B[mine] | (last_B > 0))
        return torch.cat(result)


def _hashed(number: Tensor) -> Tensor:
    """Another number of 32 bits: Mueller's mixing by shifts and products, none of which leaves 63 bits."""
    number = number & 0xFFFFFFFF
    for _ in range(2):
        number = (number ^ number >> 16) * 0x45D9F3B & 0xFFFFFFFF
    return number ^ number >> 16


def _indices(chosen_BT: Tensor, *, even: bool) -> list[Tensor]:
    """Indices of what is true: of all sequences at once if `even` and the same in each, else of one after the other."""
    if even and bool((chosen_BT == chosen_BT[:1]).all()):
        return [chosen_BT[0].nonzero().T.expand(len(chosen_BT), -1)]
    return [mine_T.nonzero().T for mine_T in chosen_BT]


def _flat(rows: list[Tensor], length: int) -> Tensor:
    """Rows of all chosen tokens where the sequences, `length` tokens each, stand below one another."""
    if len(rows) == 1:
        return _row(rows[0], length)
    return torch.cat([index_1C[0] + number * length for number, index_1C in enumerate(rows)])


def _row(index_BC: Tensor, length: int) -> Tensor:
    """Rows of the tokens at `index_BC` where all sequences of a length stand below one another."""
    first_B = torch.arange(len(index_BC), device=index_BC.device) * length
    return (index_BC + first_B[:, None]).flatten()


def _gathered(value: Tensor | None, index_BC: Tensor, mine: slice) -> Tensor | None:
    if value is None:
        return None
    value = value[mine]
    if value.ndim == 2:
        return value.gather(1, index_BC)
    return value.flatten(0, 1).index_select(0, _row(index_BC, value.shape[1])).view(*index_BC.shape, -1)


class _Predictor(Part):
    """A small network that guesses from a token alone whether it will be among the chosen."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.input = Linear(width, hidden)
        self.output = Linear(hidden, 1, role=Role.ROUTER)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Logits, (B, T)."""
        return (
            self.output(functional.gelu(self.input(x_BTD)))
            .squeeze(-1)
            .to(torch.promote_types(x_BTD.dtype, torch.float32))
        )
