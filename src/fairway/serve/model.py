"""A trained model as people use it: logits, scores, text and compression, all from one artifact."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairway.core.errors import ConfigError
from fairway.data.parts import Tokenizer
from fairway.model.lm import LanguageModel
from fairway.ops.decode_step.native import Compiled
from fairway.serve import codec
from fairway.serve.codec import Coder, Precision
from fairway.serve.engine import Decoding, Session
from fairway.serve.generate import stream
from fairway.serve.native_session import NativeSession, compiled_step
from fairway.serve.sampler import SamplerConfig
from fairway.serve.scoring import Documents, NetworkPredictor, TextScore, score_documents
from fairway.serve.window import Policy

SEGMENT = 1 << 14
"""Bytes that `Model.compress` codes as one sequence; sequences are computed side by side."""


@dataclass(frozen=True)
class Model:
    """A network with its tokenizer; `fairway.load(path)` gives one."""

    network: LanguageModel
    tokenizer: Tokenizer
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the maker of the artifact wrote into it."""
    sha256: str = ""
    """Of the artifact file; empty for a model that comes from none."""
    path: Path | None = None
    steps: Mapping[str, Tensor] = field(default_factory=dict)
    """By parameter, what each of its rows is a whole multiple of, for decoding on integers; where it is no longer so,
    floats serve."""

    @property
    def context(self) -> int:
        """Tokens of a training sequence, and the window of scoring and generation."""
        return self.network.config.context

    def policy(self, stride: int | None = None, window: int | None = None) -> Policy:
        """Windows of the training context that move by half of it, unless told otherwise."""
        length = window or self.context
        return Policy(length, max(1, length // 2) if stride is None else stride)

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Logits after each token of one sequence, (T, V), or of several of equal length, (B, T, V)."""
        ids = tokens.cpu() if isinstance(tokens, Tensor) else tokens
        tokens_BT = torch.as_tensor(np.asarray(ids).astype(np.int64), device=self.network.device)
        if tokens_BT.numel() == 0 or not 0 <= int(tokens_BT.min()) <= int(tokens_BT.max()) < self.network.vocabulary:
            raise ConfigError(f"Token ids from 0 to {self.network.vocabulary - 1} are needed, and at least one.")
        single = tokens_BT.ndim == 1
        logits_BTV = self.network.logits(self.network(tokens_BT[None] if single else tokens_BT).hidden_BTD)
        return logits_BTV[0] if single else logits_BTV

    def score(
        self,
        text: bytes | str | Sequence[bytes],
        *,
        stride: int | None = None,
        documents: Documents = "reset",
    ) -> TextScore:
        """Bits per byte of a text, or of several documents, by sliding windows; `evaluate` adds the gates."""
        parts = [_bytes(text)] if isinstance(text, (bytes, str)) else list(text)
        predictor = NetworkPredictor(self.network, steps=self.steps)
        return score_documents(predictor, self.tokenizer, parts, self.policy(stride), documents)

    def generate(
        self,
        prompt: bytes | str = "",
        *,
        tokens: int = 200,
        sampler: SamplerConfig | None = None,
        stop: Sequence[str] = (),
        stride: int | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Text that goes on from a prompt, piece by piece as it is made; the prompt itself is not repeated.

        Ends after `tokens` tokens, before the first of the `stop` strings, or where the model ends the
        document. Settings of the sampler (temperature, top_k, top_p, min_p, seed) may be given by name.
        """
        if sampler is not None and sampling:
            raise ConfigError(f"Give either a sampler or {', '.join(sorted(sampling))}, not both.")
        if tokens < 0:
            raise ConfigError(f"{tokens} tokens were asked for; 0 or more would work.")
        config = sampler or SamplerConfig.read(sampling, origin="sampling")
        policy = self.policy(stride)
        return stream(lambda ids: self.session(ids, policy), self.tokenizer, _bytes(prompt), tokens, config, stop)

    def session(self, tokens: Sequence[int], policy: Policy | None = None) -> Decoding:
        """A sequence to be continued token by token, by the native step where the model has one.

        Its logits are those of `logits`, up to the rounding of float32.
        """
        policy = policy or self.policy()
        weights = tuple((id(one), one._version) for one in self.network.parameters())
        if (policy.length, weights) not in self._compiled:
            self._compiled.clear()
            self._compiled[policy.length, weights] = compiled_step(self.network, policy.length, self.steps)
        compiled = self._compiled[policy.length, weights]
        return Session(self.network, policy, tokens) if compiled is None else NativeSession(compiled, policy, tokens)

    def compress(self, data: bytes, *, precision: Precision = "fp64") -> bytes:
        """Any bytes in as few as the model can; `decompress` gives them back.

        `fp32` is faster, but only a machine that rounds like this one can read it.
        """
        segments = [data[start : start + SEGMENT] for start in range(0, len(data), SEGMENT)]
        return codec.compress(self.coder(precision), segments).data

    def decompress(self, data: bytes) -> bytes:
        """What `compress` was given; raises `DataError` for anything else than its output by this model."""
        return b"".join(self.decompress_documents(data))

    def decompress_documents(self, data: bytes) -> list[bytes]:
        """The documents in a compressed file."""
        precision, policy = codec.settings(data)
        return codec.decompress(self.coder(precision, window=policy.length, stride=policy.stride), data)

    def coder(self, precision: Precision, *, window: int | None = None, stride: int | None = None) -> Coder:
        """The model as a compressor of documents."""
        network = self._double if precision == "fp64" else self.network
        return Coder(network, self.tokenizer, self.policy(stride, window), precision, bytes.fromhex(self.sha256))

    @cached_property
    def _compiled(self) -> dict[Any, Compiled | None]:
        """The native step for the last window length and weights that were asked for."""
        return {}

    @cached_property
    def _double(self) -> LanguageModel:
        return deepcopy(self.network).double()


def _bytes(text: bytes | str) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
