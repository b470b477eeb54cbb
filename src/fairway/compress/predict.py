"""The size of an artifact before there is one, and the step that just fits a cap.

Codes of Gaussian weights rounded to multiples of `2^strength` deviations have the entropy of a Gaussian cut
into bins; for fine steps that is `2.047 - strength` bits (half the logarithm of 2 pi e, less that of the
step). The rest is counted: a step for every row, 16 bits for every number that is not quantised, the
tokenizer, the header.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from math import prod

from fairway.compress.parts import QUANTIZED
from fairway.compress.plan import CompressConfig
from fairway.model.lm import ModelConfig
from fairway.model.parts import Role, parameter_roles

_BITS_OF_A_STEP = 2.5
_HEADER = 500
_BYTES_OF_A_TENSOR = 5.0
_STREAM = 40


def predict_bytes(
    model: ModelConfig,
    vocabulary: int,
    tokenizer_bytes: int,
    strength: float,
    config: CompressConfig | None = None,
) -> int:
    """Bytes of the artifact of a model yet to be trained, if its weights will be Gaussian and quantised at
    `strength`.
    """
    config = config or CompressConfig()
    shapes = [(role, shape) for _, role, shape in parameters(model, vocabulary)]
    return round(_fixed(shapes, tokenizer_bytes) + _quantized(shapes, strength, config.embedding_finer))


def predict_strength(
    model: ModelConfig, vocabulary: int, tokenizer_bytes: int, cap: int, config: CompressConfig | None = None
) -> float:
    """The strength at which `predict_bytes` meets the cap, between the finest and the coarsest that make
    sense.
    """
    config = config or CompressConfig()
    low, high = config.finest, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        if predict_bytes(model, vocabulary, tokenizer_bytes, middle, config) > cap - config.margin:
            low = middle
        else:
            high = middle
    return high


def parameters(model: ModelConfig, vocabulary: int) -> list[tuple[str, Role, tuple[int, ...]]]:
    """Name, role and shape of every parameter of a model, each once however often it is used."""
    skeleton = model.skeleton(vocabulary)
    roles = parameter_roles(skeleton)
    return [(name, roles[name], tuple(value.shape)) for name, value in skeleton.named_parameters()]


@lru_cache(maxsize=4096)
def gaussian_bits(strength: float) -> float:
    """Entropy in bits of a standard Gaussian rounded to multiples of `2^strength`."""
    step = 2.0**strength
    if strength < -4:
        return 0.5 * math.log2(2 * math.pi * math.e) - strength
    total = 0.0
    for index in range(int(9 / step) + 2):
        mass = _tail((index - 0.5) * step) - _tail((index + 0.5) * step)
        if mass > 0:
            total -= (1 if index == 0 else 2) * mass * math.log2(mass)
    return total


def finer(role: Role, embedding_finer: float) -> float:
    """What a role adds to the strength of matrices."""
    return 0.0 if role is Role.MATRIX else -math.log2(embedding_finer)


def is_quantized(role: Role, shape: tuple[int, ...]) -> bool:
    """Whether a parameter goes through the quantiser; vectors of any role are stored as numbers."""
    return role in QUANTIZED and len(shape) >= 2


def _quantized(shapes: Iterable[tuple[Role, tuple[int, ...]]], strength: float, embedding_finer: float) -> float:
    total = 0.0
    for role, shape in shapes:
        if is_quantized(role, shape):
            bits = gaussian_bits(round(strength + finer(role, embedding_finer), 6))
            total += prod(shape) * bits + prod(shape[:-1]) * _BITS_OF_A_STEP
    return total / 8


def _fixed(shapes: Iterable[tuple[Role, tuple[int, ...]]], tokenizer_bytes: int) -> float:
    total = float(_HEADER + _STREAM + tokenizer_bytes)
    for role, shape in shapes:
        total += _BYTES_OF_A_TENSOR
        if not is_quantized(role, shape):
            total += prod(shape) * (4 if role is Role.DECAY else 2)
    return total


def _tail(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2))
