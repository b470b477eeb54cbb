"""Mixture of depths: some blocks are applied to a chosen share of the tokens only.

`r = w . x`; in training S is the C tokens of a sequence with the largest r, in their order, and `x_i = x_i + g(r_i)
(block(X_S)_i - x_i)` for i in S; other tokens pass by. That choice sees the whole sequence. Outside training a
token is chosen by itself alone: if its r is positive, r being trained by a cross-entropy to be so for the C
largest, or if a small network reading x without gradient says so. Inside the block a token keeps its original
position; its state holds chosen tokens only. Raposo et al. 2024. Shape key: B batch, T time, D width, C chosen.
"""

from typing import Literal

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

    def build(self, make_block: MakeBlock, width: int) -> Depth:
        blocks = [make_block(layer, self.layers) for layer in range(self.layers)]
        last = self.interval - 1
        return MixtureOfDepths(
            [Routed(b, width, self) if layer % self.interval == last else b for layer, b in enumerate(blocks)]
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

    The block's tensors are filled up to the longest sequence, their real sizes beside them.
    """

    def __init__(self, block: Stateful, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.block = block
        self.router = Linear(width, 1, role=Role.ROUTER)
        self.predictor = _Predictor(width, config.predictor_width) if config.decide == "predictor" else None

    def empty_state(self, batch: int) -> State:
        seen_B = torch.zeros(batch, dtype=torch.int64, device=self.router.weight.device)
        return seen_B, torch.zeros_like(seen_B, dtype=torch.bool), *ragged.packed(self.block.empty_state(batch))

    def state_bytes(self, context: int) -> int:
        """Bytes where exactly the share `capacity` of the tokens is chosen; the real choice depends on the text."""
        sizes = sum(8 * (tensor.ndim - 1) for tensor in self.block.empty_state(1))
        return 9 + sizes + self.block.state_bytes(self.chosen(context) if context else 0)

    def looks_ahead(self) -> bool:
        return self.config.capacity < 1

    def needs_whole_sequences(self) -> bool:
        return True

    def chosen(self, length: int) -> int:
        """Tokens that a sequence may send through the block in training."""
        return max(1, int(self.config.capacity * length))

    def flops(self, context: int) -> float:
        few = self.chosen(context)
        predictor = 0.0 if self.predictor is None else self.predictor.flops(context)
        return self.router.flops(context) + predictor + self.block.flops(few) * few / context

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        seen_B, pending_B, *inner = self.empty_state(len(x_BTD)) if state is None else state
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        with torch.autocast(x_BTD.device.type, enabled=False):
            r_BT = functional.linear(x_BTD.to(dtype), self.router.weight.to(dtype)).squeeze(-1)
        guess_BT = r_BT if self.predictor is None else self.predictor(x_BTD.detach())
        places = _Places(seen_B, pending_B, context)
        if self.training:
            index_BC = r_BT.topk(self.chosen(x_BTD.shape[1]), dim=1).indices.sort(dim=1).values
            rows = [index_BC] if state is None or ragged.is_even(tuple(inner)) else list(index_BC.split(1))
        else:
            rows = [mine_T.nonzero().T for mine_T in guess_BT > 0]
        y_BTD, inner_after, auxes = self._apply_to(rows, x_BTD, self._gated(r_BT), tuple(inner), places)
        aux = Aux.of_repeats(auxes) if auxes else Aux()
        if self.training:
            aux = aux + self._choice_loss(guess_BT, rows)
        after = seen_B + x_BTD.shape[1], places.pending_after(rows, x_BTD.shape[1]), *inner_after
        return y_BTD, after, aux

    def _apply_to(
        self, rows: list[Tensor], x_BTD: Tensor, weight_BT: Tensor, inner: State, places: "_Places"
    ) -> tuple[Tensor, State, list[Aux]]:
        """Tokens after what the block adds to the chosen ones, its packed state, and its auxiliary values.

        `rows` holds the chosen indices of all sequences, (B, C), or of one sequence after the other, (1, C) each.
        """
        whole = len(rows) == 1
        outputs, states, auxes = [], [], []
        for number, index_BC in enumerate(rows):
            mine = slice(None) if whole else slice(number, number + 1)
            piece = ragged.tensors(inner) if whole and ragged.is_even(inner) else ragged.row(inner, number)
            x = x_BTD[mine]
            if index_BC.shape[1]:
                row_N = _row(index_BC, x.shape[1])
                x_BCD = x.flatten(0, 1).index_select(0, row_N).view(*index_BC.shape, -1)
                y_BCD, piece, aux = self.block(x_BCD, piece, places.of(index_BC, mine))
                change_BCD = weight_BT[mine].gather(1, index_BC)[..., None].to(y_BCD.dtype) * (y_BCD - x_BCD)
                wide_ND = x.to(torch.promote_types(x.dtype, y_BCD.dtype)).flatten(0, 1)
                x = wide_ND.index_add(0, row_N, change_BCD.flatten(0, 1)).view_as(x)
                auxes.append(aux.under("block"))
            outputs.append(x)
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

    def _choice_loss(self, guess_BT: Tensor, rows: list[Tensor]) -> Aux:
        index_BC = torch.cat(rows)
        target_BT = torch.zeros_like(guess_BT).scatter(1, index_BC, 1.0)
        loss = functional.binary_cross_entropy_with_logits(guess_BT, target_BT)
        agreement = ((guess_BT > 0) == (target_BT > 0)).to(guess_BT.dtype).mean()
        statistics = {"causal_agreement": agreement, "causal_share": (guess_BT > 0).to(guess_BT.dtype).mean()}
        return Aux({"choice": self.config.weight * loss}, {k: v.detach() for k, v in statistics.items()})


class _Places:
    """Where the chosen tokens stood, and which of them are the first of their document that the block sees."""

    def __init__(self, seen_B: Tensor, pending_B: Tensor, context: Context) -> None:
        self.seen_B = seen_B
        self.pending_B = pending_B
        self.context = context
        self.document_BT = None if context.starts_BT is None else context.starts_BT.long().cumsum(1)

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
    return value.gather(1, index_BC[..., None].expand(-1, -1, value.shape[2]))


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
