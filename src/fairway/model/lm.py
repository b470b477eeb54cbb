"""The language model: embedding, blocks composed by a depth technique, final norm, head.

One `forward` serves training, calibration, evaluation, adaptation and generation.
Shape key: B batch, T time, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fairway.core.config import Config, Slot
from fairway.core.errors import ConfigError
from fairway.model.block import Block, BlockConfig
from fairway.model.head import HeadConfig
from fairway.model.input import InputScale, Smear
from fairway.model.parts import (
    Aux,
    Context,
    DepthConfig,
    EmbeddingConfig,
    FfnConfig,
    InputSite,
    MixerConfig,
    NormConfig,
    PositionConfig,
    Site,
    State,
    Stateful,
    initialise,
    joined,
    split_state,
)
from fairway.model.values import BlockRunner, Runner

MIXER = Slot("fairway.model.mixer", "attention", pattern=True)
FFN = Slot("fairway.model.ffn", "relu2")
NORM = Slot("fairway.model.norm", "rms")
POSITION = Slot("fairway.model.position", "rope")
EMBEDDING = Slot("fairway.model.embedding", "token")
DEPTH = Slot("fairway.model.depth", "plain")


class ModelConfig(Config):
    """Every choice of the architecture; the vocabulary comes from the tokenizer."""

    width: int = Field(default=192, ge=8, le=65_536)
    context: int = Field(default=256, ge=2)
    """Tokens of a training sequence, and the window that positions are made for."""
    mixer: Annotated[tuple[MixerConfig, ...], MIXER] = Field(default="attention", validate_default=True)
    """One mixer for all layers, or a list that repeats over the layers."""
    ffn: Annotated[FfnConfig, FFN] = Field(default="relu2", validate_default=True)
    norm: Annotated[NormConfig, NORM] = Field(default="rms", validate_default=True)
    position: Annotated[PositionConfig, POSITION] = Field(default="rope", validate_default=True)
    embedding: Annotated[EmbeddingConfig, EMBEDDING] = Field(default="token", validate_default=True)
    depth: Annotated[DepthConfig, DEPTH] = Field(default="plain", validate_default=True)
    block: BlockConfig = BlockConfig()
    head: HeadConfig = HeadConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelConfig":
        if self.norm.needs_embedding_scale() and self.embedding.scale == "none":
            raise ValueError(
                f"norm {self.norm.kind} does not scale its input, so an unscaled embedding would drown in the "
                "branches; embedding.scale learned, sqrt or auto would work"
            )
        with torch.device("meta"):
            LanguageModel(self, vocabulary=256)
        return self

    def input_scale(self) -> Literal["none", "sqrt", "learned"]:
        """The factor on the embedded input after `auto` is resolved."""
        if self.embedding.scale == "auto":
            drowns = self.norm.needs_embedding_scale() or self.block.placement == "sandwich"
            return "learned" if drowns else "none"
        return self.embedding.scale

    def input_site(self) -> InputSite:
        """What mixers and head ask of the embedding."""
        features = max(mixer.value_features(self.width) for mixer in self.mixer)
        return InputSite(features, self.head.tied)

    def build(self, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> "LanguageModel":
        """An initialised model; its parameters depend on the settings and the seed alone."""
        model = self.skeleton(vocabulary).to_empty(device="cpu")
        initialise(model, seed)
        return model.to(device)

    def skeleton(self, vocabulary: int) -> "LanguageModel":
        """The model without storage, on the meta device, for counting and for loading weights into."""
        if vocabulary < 2:
            raise ConfigError(f"The vocabulary has {vocabulary} ids; at least 2 are needed.")
        with torch.device("meta"):
            return LanguageModel(self, vocabulary)

    def extended(self, context: int, kind: str = "yarn", **settings: object) -> "ModelConfig":
        """The same model at a longer context: rotary positions scaled by one of the techniques for it.

        Parameters stay as they are, so weights trained at the old context can be loaded into the new model. What
        the old positions set (base, fraction, pairing, offset) is kept. Raises `ConfigError` where positions are not
        rotary, or the new context is not longer.
        """
        old = self.position.plain()
        if "interleaved" not in old or context <= self.context:
            raise ConfigError(
                f"Positions {self.position.kind} at {self.context} tokens cannot be extended to {context}; rotary "
                "positions and a longer context can."
            )
        new = {key: old[key] for key in ("base", "fraction", "interleaved", "offset")} | {"kind": kind}
        if kind != "rope":
            new["original"] = old.get("original") or self.context
        if kind not in ("rope", "dynamic_ntk"):
            new["factor"] = context / new["original"]
        return ModelConfig.read({**self.plain(), "context": context, "position": {**new, **settings}})

    def isolates_documents(self) -> bool:
        """Whether every mixer honours document borders inside a sequence."""
        return all(mixer.isolates_documents() for mixer in self.mixer)


@dataclass(frozen=True)
class Output:
    """What a forward returns."""

    hidden_BTD: Tensor
    """After the final norm; `LanguageModel.logits` turns it into logits."""
    state: State
    aux: Aux


class LanguageModel(Stateful):
    """`forward(tokens_BT, state, ...) -> Output`; `logits(hidden_BTD) -> logits_BTV`."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.runner: Runner | None = None
        self.block_runner: BlockRunner | None = None
        width, scale = config.width, config.input_scale()
        self.embedding = config.embedding.build(vocabulary, width, config.input_site())
        self.smear = Smear(width) if config.embedding.smear else None
        self.position = config.position.build_input(config.context, width)
        self.scale = None if scale == "none" else InputScale(width, learned=scale == "learned")
        self.depth = config.depth.build(self._make_block, width)
        self.norm = config.norm.build(width, "final")
        self.head = config.head.build(vocabulary, width)
        if config.head.untie_at is not None and self.embedding.output_table() is None:
            raise ValueError("the embedding reads logits through a network of its own, which cannot be untied")

    def _make_block(self, layer: int, layers: int) -> Block:
        config = self.config
        site = Site(layer, layers, config.context, config.position, config.norm)
        mixer = config.mixer[layer % len(config.mixer)]
        return Block(config.width, mixer, config.ffn, config.norm, site, config.block)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def settle(self) -> None:
        self.head.follow(self.embedding, 0.0)

    def after_step(self, statistics: dict[str, Tensor]) -> None:
        if "progress" in statistics:
            self.head.follow(self.embedding, float(statistics["progress"]))

    @property
    def _stateful(self) -> tuple[Stateful, ...]:
        return (self.embedding, *((self.smear,) if self.smear is not None else ()), self.depth)

    def empty_state(self, batch: int) -> State:
        seen_B = torch.zeros(batch, dtype=torch.int64, device=self.device)
        return seen_B, *joined(part.empty_state(batch) for part in self._stateful)

    def state_bytes(self, context: int) -> int:
        return 8 + sum(part.state_bytes(context) for part in self._stateful)

    def flops(self, context: int) -> float:
        body = self.embedding.flops(context) + self.depth.flops(context)
        unembed = self.embedding.unembed_flops() if self.head.own is None else None
        return body + (self.head.flops(context) if unembed is None else unembed)

    def forward(
        self,
        tokens_BT: Tensor,
        state: State | None = None,
        *,
        starts_BT: Tensor | None = None,
        progress: float = 1.0,
        first: int = 0,
    ) -> Output:
        """Hidden vectors for every token from `first` on, and the state after the last."""
        batch, time = tokens_BT.shape
        seen_B = torch.zeros(batch, dtype=torch.int64, device=tokens_BT.device) if state is None else state[0]
        context = Context(tokens_BT, starts_BT, progress=progress)
        if self.training and torch.is_grad_enabled():
            context = context.with_(runner=self.runner, block_runner=self.block_runner)
        before = split_state(None if state is None else state[1:], self._stateful)
        x_BTD, after_embedding = self.embedding(tokens_BT, before[0], context)
        states = [after_embedding]
        if self.smear is not None:
            x_BTD, after_smear = self.smear(x_BTD, before[1], starts_BT)
            states.append(after_smear)
        if self.position is not None:
            x_BTD = self.position.embed(x_BTD, seen_B[:, None] + torch.arange(time, device=tokens_BT.device))
        if self.scale is not None:
            x_BTD = self.scale(x_BTD)
        context = context.with_(embedded_BTD=x_BTD, value_BTD=self.embedding.values(tokens_BT))
        x_BTD, after_depth, aux = self.depth(
            x_BTD, before[-1], context.with_(first=first) if self.depth.leaves_out else context
        )
        x_BTD = x_BTD if self.depth.leaves_out else x_BTD[:, first:]
        aux = aux.under("depth")
        if self.head.config.untie_at is not None:
            aux = aux + Aux({}, {"progress": torch.tensor(progress, dtype=torch.float64)})
        return Output(self.norm(x_BTD), (seen_B + time, *joined((*states, after_depth))), aux)

    def logits(self, hidden_BTD: Tensor, progress: float = 1.0) -> Tensor:
        """Logits in float32 at least, (B, T, V). A head that unties during training must be told the progress."""
        return self.head(hidden_BTD, self.embedding, progress)

    def log_probabilities(self, hidden_BTD: Tensor) -> Tensor:
        """Natural-log probabilities of the next token in float32 at least, (B, T, V); not differentiable."""
        return self.head.log_probabilities(hidden_BTD, self.embedding)
