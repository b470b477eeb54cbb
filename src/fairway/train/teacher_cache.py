"""A teacher's likeliest next tokens on disk, so that a large teacher runs once for many students.

One file for each micro-batch of each step: a SHA-256, then, deflated, the K likeliest tokens of every position and
their log-probabilities in float16. A batch is a pure function of (manifest, seed, step), so a later run with the same
ones finds what an earlier run left; each file names the tokens it belongs to, and is refused for others. Shape key: N
tokens, K likeliest.
"""

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairway.core.errors import ConfigError, StorageError
from fairway.core.storage import read_json, write_bytes, write_json
from fairway.loss.targets import Targets
from fairway.model.lm import LanguageModel

_HEADER = struct.Struct("<II32s")
_DIGEST = 32
_FACTS = "teacher.json"
_LARGEST = 1 << 31


class TeacherCache:
    """Targets by step and micro-batch, of one teacher at one temperature."""

    def __init__(self, folder: Path, facts: dict[str, Any], vocabulary: int) -> None:
        """Opens or begins a cache; raises `ConfigError` where the folder holds another teacher's."""
        self.folder, self.vocabulary = folder, vocabulary
        path = folder / _FACTS
        if not path.exists():
            write_json(path, facts)
        elif (found := read_json(path)) != facts:
            changed = sorted(name for name in {*found, *facts} if found.get(name) != facts.get(name))
            raise ConfigError(
                f"{folder} holds the predictions of another teacher or setting ({', '.join(changed)} differ); "
                "another distill.cache would work."
            )

    def read(self, step: int, part: int, tokens_BT: Tensor) -> Targets | None:
        """What was stored for these tokens; None where nothing was. Raises `StorageError` where it is damaged."""
        path = self._path(step, part)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from None
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            raise StorageError(
                f"{path} is damaged: its SHA-256 is not the one it names. Delete it to have it made again."
            )
        plain = zlib.decompressobj().decompress(data[_DIGEST:], _LARGEST)
        count, likeliest, digest = _HEADER.unpack_from(plain)
        if digest != _digest(tokens_BT):
            raise StorageError(
                f"{path} belongs to other text than step {step} of this run; a distill.cache of its own would work."
            )
        size = count * likeliest
        if size == 0 or len(plain) != _HEADER.size + 6 * size or count != tokens_BT[:, 1:].numel():
            raise StorageError(
                f"{path} holds {len(plain):,} bytes, which are not those of {count:,} times {likeliest:,} predictions. "
                "Delete it to have it made again."
            )
        index = np.frombuffer(plain, "<u4", size, _HEADER.size).reshape(count, likeliest)
        if int(index.max()) >= self.vocabulary:
            raise StorageError(
                f"{path} names token {int(index.max()):,} of a vocabulary of {self.vocabulary:,}. "
                "Delete it to have it made again."
            )
        log_p = np.frombuffer(plain, "<f2", size, _HEADER.size + 4 * size).reshape(count, likeliest)
        found = torch.from_numpy(log_p.astype(np.float32)), torch.from_numpy(index.astype(np.int64))
        return Targets.of_likeliest(*(tensor.to(tokens_BT.device) for tensor in found))

    def write(self, step: int, part: int, tokens_BT: Tensor, targets: Targets) -> Targets:
        """Stores targets and gives them back as a later `read` will."""
        assert targets.index_NK is not None
        index = targets.index_NK.cpu().numpy().astype("<u4")
        log_p = targets.log_p_NM[:, : index.shape[1]].float().cpu().numpy().astype("<f2")
        plain = _HEADER.pack(*index.shape, _digest(tokens_BT)) + index.tobytes() + log_p.tobytes()
        packed = zlib.compress(plain, 1)
        write_bytes(self._path(step, part), hashlib.sha256(packed).digest() + packed)
        stored = self.read(step, part, tokens_BT)
        assert stored is not None
        return stored

    def _path(self, step: int, part: int) -> Path:
        return self.folder / f"{step // 1000:05d}" / f"step-{step:08d}-{part:03d}"


def fingerprint(model: LanguageModel) -> str:
    """SHA-256 over a model's settings and weights."""
    whole = hashlib.sha256(model.config.fingerprint().encode())
    for name, weight in model.named_parameters():
        whole.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return whole.hexdigest()


def _digest(tokens_BT: Tensor) -> bytes:
    return hashlib.sha256(tokens_BT.cpu().numpy().astype("<i8").tobytes()).digest()
