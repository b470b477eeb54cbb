"""The contracts of a model's parts: what a mixer, feed-forward, norm, position, embedding, depth and head promise.

Every module that owns parameters is a `Part`. It names the role of each of its own parameters, fills them, and counts
its work. Optimizer groups, muP, weight decay and compression read roles; nobody reads parameter names.

The law of state holds for every part that takes one: splitting a sequence at any points and carrying the state
gives the same outputs as the whole sequence at once. A state is a flat tuple of tensors whose first dimension is
the batch; `None` stands for the empty state. Position comes from the state, never from a module attribute.

Shape key: B batch, T time, D width, H heads, K head width, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Technique
from fairway.core.seed import generator
from fairway.model.values import Aux, Context, Role
from fairway.ops.rotate.native import rotate

State = tuple[Tensor, ...]
Angles = tuple[Tensor, Tensor]


NO_AUX = Aux()
NO_CONTEXT = Context()


class Part(nn.Module, ABC):
    """A module that owns parameters and answers for them."""

    def roles(self) -> dict[str, Role]:
        """The role of each parameter owned directly by this module (children answer for theirs)."""
        return {}

    def pieces(self) -> dict[str, tuple[int, ...]]:
        """Rows of each matrix inside a parameter that fuses several along its rows; others are one matrix."""
        return {}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        """Fills the parameters owned directly by this module."""
        assert not self.roles(), f"{type(self).__name__} owns parameters and must fill them"

    def settle(self) -> None:
        """Called after every module has filled its parameters, for those that begin as a copy of another's."""

    def flops(self, context: int) -> float:
        """Forward FLOPs per token, averaged over a sequence of `context` tokens; a multiply-add counts two."""
        return sum(part.flops(context) for part in direct_parts(self))

    def idle_parameters(self) -> int:
        """Parameters owned directly by this module that one token does not use, as those of experts not chosen."""
        return 0

    def looks_ahead(self) -> bool:
        """Whether its outputs in training depend on later tokens, so that a loss in training is none of prediction."""
        return False

    def needs_whole_sequences(self) -> bool:
        """Whether training must give it whole sequences, as its outputs, losses or statistics are of all their tokens.

        The law of state holds for the outputs of all others in training too, and they return an empty `Aux`.
        """
        return self.looks_ahead()

    def after_step(self, statistics: dict[str, Tensor]) -> None:
        """Called once after each optimizer step with this module's own statistics, averaged over the step."""


class Stateful(Part):
    """A part that carries state along the sequence."""

    @abstractmethod
    def empty_state(self, batch: int) -> State:
        """The state before the first token; each tensor's first dimension is the batch."""

    def state_bytes(self, context: int) -> int:  # noqa: ARG002
        """Bytes of the decoding state of one sequence after `context` tokens."""
        return sum(tensor.nbytes for tensor in self.empty_state(1))


class Mixer(Stateful):
    """Mixes along time. `forward(x_BTD, state, context) -> (y_BTD, state)`; causal."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        """Outputs of the same shape, or without those before `context.first`, and the state after the last token."""


class Ffn(Stateful):
    """Mixes along the width. `forward(x_BTD, state, context) -> (y_BTD, state, aux)`; most carry no state."""

    @abstractmethod
    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        """Outputs of the same shape, the state after the last token, and auxiliary values."""

    def empty_state(self, batch: int) -> State:  # noqa: ARG002
        """No state unless a feed-forward looks back in time."""
        return ()


class Norm(Part):
    """Normalises or squashes the last dimension."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A tensor of the same shape and dtype."""

    def of_sum(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """`x + branch`, and its norm; overridden where a kernel computes both at once."""
        total = x + branch
        return total, self(total)

    def turned(self, x_BTHK: Tensor, factor_H: Tensor | None, angles_TR: Angles) -> Tensor:
        """The norm of heads, times their factors, turned; overridden where a kernel does all at once."""
        y_BTHK = self(x_BTHK)
        return rotate(y_BTHK if factor_H is None else y_BTHK * factor_H[:, None].to(y_BTHK.dtype), *angles_TR)


class Position(Part):
    """Tells where a token stands, by rotating queries and keys, by adding to the embedding, or not at all."""

    rotated_keys_stay_valid: bool = True
    """False where the rotation depends on the whole length seen: then un-rotated keys must be cached."""

    def rotate(self, x_BHTK: Tensor, positions_BT: Tensor, length: int) -> Tensor:  # noqa: ARG002
        """Queries or keys turned by their positions (int64; the first dimension may be 1).

        `length` is one that `span` named, and 0 where that is None.
        """
        return x_BHTK

    def angles(self, positions_BT: Tensor, dtype: torch.dtype) -> Angles | None:  # noqa: ARG002
        """`(cos_TR, sin_TR)` where `rotate` only turns pairs (i, i + R) by them, alike in all sequences; else None."""
        return None

    def span(self, positions_BT: Tensor) -> Tensor | None:  # noqa: ARG002
        """Where keys stay valid for some lengths only: the `length` by which a query at each position turns keys."""
        return None

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:  # noqa: ARG002
        """The embedded input with positions added."""
        return x_BTD


class Embedding(Stateful):
    """Turns tokens into vectors. `forward(tokens_BT, state, context) -> (x_BTD, state)`."""

    @abstractmethod
    def forward(
        self, tokens_BT: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State]:
        """Vectors of the model's width, and the state after the last token."""

    @abstractmethod
    def unembed(self, x_BTD: Tensor) -> Tensor:
        """Logits by the same table, for a tied head: (B, T, V)."""

    def values(self, tokens_BT: Tensor) -> Tensor | None:  # noqa: ARG002
        """A value embedding for `Context.value_BTD`; None unless this technique has one."""
        return None

    def unembed_flops(self) -> float | None:
        """FLOPs of `unembed` for one token; None where they are those of a (V, D) table."""
        return None

    def output_table(self) -> Tensor | None:
        """The matrix M, (V, D), of `unembed(x) = x M^T`; None where unembedding is not linear."""
        return None

    def empty_state(self, batch: int) -> State:  # noqa: ARG002
        """No state unless an embedding looks at earlier tokens."""
        return ()


class Depth(Stateful):
    """Composes blocks. `forward(x_BTD, state, context) -> (x_BTD, state, aux)`."""

    leaves_out: bool = False
    """Whether outputs before `Context.first` are left out; if not, `Context.first` must be 0."""

    @abstractmethod
    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        """The output of the last block, the state of all, and auxiliary values."""


class NormConfig(Technique):
    """Settings of a norm."""

    def build(self, width: int, site: str = "block") -> Norm:
        """A norm over `width` features; `site` is where it stands: mixer, ffn, final or qk."""
        raise NotImplementedError

    def needs_embedding_scale(self) -> bool:
        """Whether the embedded input must be scaled up because the norm does not do so."""
        return False


class PositionConfig(Technique):
    """Settings of a position technique."""

    def build(self, head_width: int, context: int, width: int) -> Position:
        """Positions for heads of `head_width`, models of `width`, trained at `context` tokens."""
        raise NotImplementedError

    def build_input(self, context: int, width: int) -> Position | None:  # noqa: ARG002
        """What is added to the embedded input; None where positions are told to the heads alone."""
        return None


@dataclass(frozen=True)
class Site:
    """Where a mixer or feed-forward stands: its layer, and the model's choices that it needs."""

    layer: int = 0
    layers: int = 1
    context: int = 256
    position: PositionConfig | None = None
    norm: NormConfig | None = None


class MixerConfig(Technique):
    """Settings of a mixer."""

    def build(self, width: int, site: Site = Site()) -> Mixer:
        """A mixer of `width` features for one layer."""
        raise NotImplementedError

    def isolates_documents(self) -> bool:
        """Whether `Context.starts_BT` is honoured."""
        return False

    def value_features(self, width: int) -> int:  # noqa: ARG002
        """Features of `Context.value_BTD` that the mixer adds to its values; 0 where it reads none."""
        return 0


class FfnConfig(Technique):
    """Settings of a feed-forward."""

    def build(self, width: int, site: Site = Site()) -> Ffn:
        """A feed-forward of `width` features for one layer."""
        raise NotImplementedError


@dataclass(frozen=True)
class InputSite:
    """What the rest of the model asks of its embedding."""

    value_features: int = 0
    """Features of a value embedding that the mixers read."""
    tied: bool = True
    """Whether the head uses `Embedding.unembed`."""


class EmbeddingConfig(Technique):
    """Settings of an embedding."""

    scale: Literal["auto", "none", "sqrt", "learned"] = "auto"
    """Factor on the embedded input: sqrt(width), or a learned scalar that begins there. `auto` learns one where the
    branches would drown an unscaled input: under DyT, Derf and their kin, and in sandwich blocks."""
    smear: bool = False
    """Mix each embedded token with the one before it by a learned gate per feature."""

    def build(self, vocabulary: int, width: int, site: InputSite = InputSite()) -> Embedding:
        """An embedding of `vocabulary` ids into `width` features; scale and smear are left to the model."""
        raise NotImplementedError


class DepthConfig(Technique):
    """Settings of a depth technique."""

    layers: int = Field(default=6, ge=1)
    """Applications of a block from input to output."""

    def build(self, make_block: "Callable[[int, int], Stateful]", width: int) -> Depth:
        """Composes blocks made by `make_block(layer, layers)`.

        Each is a `forward(x, state, context) -> (x, state, aux)`, in a model a `fairway.model.block.Block`.
        """
        raise NotImplementedError

    @classmethod
    def shorthand(cls, value: object) -> dict[str, object] | None:
        """`depth: 6` stands for six plain layers."""
        return {"layers": value} if isinstance(value, int) and not isinstance(value, bool) else None


def direct_parts(module: nn.Module) -> Iterator[Part]:
    """The nearest parts below a module, looking through plain containers; each once."""
    seen: set[int] = set()
    for child in module.children():
        for part in [child] if isinstance(child, Part) else direct_parts(child):
            if id(part) not in seen:
                seen.add(id(part))
                yield part


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter by its name; each parameter once, whatever shares it.

    Asserts that every parameter has an owner that names its role.
    """
    roles: dict[str, Role] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        named = module.roles() if isinstance(module, Part) else {}
        assert set(own) <= set(named), f"{prefix or 'model'}: no role for {sorted(set(own) - set(named))}"
        for name, parameter in own.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                roles[f"{prefix}.{name}" if prefix else name] = named[name]
    return roles


def parameter_pieces(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Rows of the matrices fused into a parameter, by its name, for those parameters that fuse several."""
    named = ((prefix, module) for prefix, module in model.named_modules() if isinstance(module, Part))
    return {
        f"{prefix}.{name}" if prefix else name: rows
        for prefix, module in named
        for name, rows in module.pieces().items()
    }


def initialise(model: nn.Module, seed: int) -> None:
    """Fills every parameter; what a module gets depends on the seed and its name alone."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Part):
                module.init_weights(generator(seed, "init", name))
        for module in model.modules():
            if isinstance(module, Part):
                module.settle()


def active_parameters(model: Part) -> int:
    """Parameters that one token uses; all of them but those of experts not chosen. Each counts once."""
    idle = sum(module.idle_parameters() for module in model.modules() if isinstance(module, Part))
    return sum(parameter.numel() for parameter in model.parameters()) - idle


def after_step(model: nn.Module, statistics: dict[str, Tensor]) -> None:
    """Hands each module the statistics that a step reported under its names, averaged where it has several."""
    found: dict[nn.Module, list[Aux]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Part):
            start = f"{prefix}." if prefix else ""
            own = {key[len(start) :]: value for key, value in statistics.items() if key.startswith(start)}
            found.setdefault(module, []).append(Aux({}, {key: value for key, value in own.items() if "." not in key}))
    for module, reported in found.items():
        assert isinstance(module, Part)
        module.after_step(Aux.of_repeats(reported).statistics)


def split_state(state: State | None, parts: Sequence[Stateful]) -> list[State | None]:
    """A flat state cut into one piece for each part."""
    if state is None:
        return [None] * len(parts)
    pieces: list[State | None] = []
    start = 0
    for part in parts:
        count = len(part.empty_state(1))
        pieces.append(state[start : start + count])
        start += count
    assert start == len(state)
    return pieces


def joined(states: Iterable[State]) -> State:
    """The states of several parts as one flat state."""
    return tuple(tensor for state in states for tensor in state)


def widened(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product of `x` would run in: autocast's where it is on, else that of `x`."""
    kind = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype
