"""Proof of a score by compression: the text is really coded with the artifact, decoded in a fresh process,
and compared.

A model that predicts the text at `nats` codes it in `nats / (8 ln 2)` bytes, so the size of a file from
which the text comes back, with the artifact and nothing else, bounds the score: `size <= 1.001 * nats / (8
ln 2) + 64`. Coding and decoding each run in a process of their own (`python -m fairway.evaluate.proof`).
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairway.core import storage
from fairway.core.device import keep_freed_memory
from fairway.core.errors import EvaluationError, FairwayError
from fairway.core.log import Event, Listener, silent
from fairway.evaluate.bpb import EvaluateConfig, Score, sample
from fairway.serve import codec
from fairway.serve.load import load
from fairway.serve.model import Model

SHARE = 1.001
SLACK = 64


@dataclass(frozen=True)
class Proof:
    """What coding a text with its artifact came to."""

    bytes: int
    """Size of the compressed file."""
    score_bytes: float
    """The same by the score: `nats / (8 ln 2)`."""
    allowed: float
    """The largest size that confirms the score."""
    text_bytes: int
    documents: int
    nats: float
    """What the coding steps themselves predicted, before rounding to the coder's grid."""
    seconds_compress: float
    seconds_decompress: float
    precision: str

    @property
    def bits_per_byte(self) -> float:
        """Bits of the file for each byte of the text; at least the score's."""
        return 8 * self.bytes / self.text_bytes

    def plain(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return {"bits_per_byte": self.bits_per_byte, **vars(self)}


def prove(
    model: Model,
    documents: Sequence[bytes],
    score: Score,
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    *,
    folder: Path | None = None,
    listener: Listener = silent,
) -> Proof:
    """Confirms `score`, which `evaluate` gave for the same documents and settings.

    `folder` keeps the compressed file (`proof.fwyz`). Raises `EvaluationError` where the text does not come
    back byte for byte, or the file is larger than the score allows.
    """
    if model.path is None:
        raise EvaluationError("A proof needs the artifact file: a fresh process must be able to load it.")
    if config.documents != "reset" or config.precision == "bf16":
        raise EvaluationError(
            f"A proof codes each document by itself in fp32 or fp64; documents={config.documents} and "
            f"precision={config.precision} were asked for."
        )
    texts = sample(documents, config.max_bytes)
    with tempfile.TemporaryDirectory(prefix="fairway-proof-") as temporary:
        target = (folder or Path(temporary)) / "proof.fwyz"
        coded, decoded = _there_and_back(model, model.path, texts, config, Path(temporary), target, listener)
        size = target.stat().st_size
    by_score = score.nats / math.log(2) / 8
    proof = Proof(
        bytes=size,
        score_bytes=by_score,
        allowed=SHARE * by_score + SLACK,
        text_bytes=sum(map(len, texts)),
        documents=len(texts),
        nats=coded["nats"],
        seconds_compress=coded["seconds"],
        seconds_decompress=decoded["seconds"],
        precision=config.precision,
    )
    if proof.text_bytes != score.bytes or proof.bytes > proof.allowed:
        raise EvaluationError(
            f"The proof failed: {proof.text_bytes} bytes were compressed to {proof.bytes}; "
            f"the score of {score.bytes} bytes says {by_score:.0f}, and allows {proof.allowed:.0f}."
        )
    return proof


def _there_and_back(
    model: Model,
    artifact: Path,
    texts: list[bytes],
    config: EvaluateConfig,
    work: Path,
    target: Path,
    listener: Listener,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of compressing and of decompressing, after the text came back unaltered."""
    policy = config.policy(model.context)
    _write_documents(work / "text", texts)
    settings = [config.precision, str(policy.length), str(policy.stride)]
    listener(Event("prove", 0.0, message="Compressing the text."))
    coded = _in_a_fresh_process("compress", artifact, work / "text", target, *settings)
    listener(Event("prove", 0.5, message="Decompressing it in a fresh process."))
    decoded = _in_a_fresh_process("decompress", artifact, target, work / "back")
    if _read_documents(work / "back") != texts:
        raise EvaluationError("The proof failed: the decompressed text is not the text that was compressed.")
    listener(Event("prove", 1.0))
    return coded, decoded


def _in_a_fresh_process(verb: str, *arguments: Path | str) -> dict[str, Any]:
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-m", "fairway.evaluate.proof", threads, verb, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EvaluationError(f"The proof failed: the process that should {verb} the text said: {reason[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _write_documents(path: Path, documents: Sequence[bytes]) -> None:
    storage.write_json(path.with_suffix(".json"), [len(document) for document in documents])
    storage.write_bytes(path, b"".join(documents))


def _read_documents(path: Path) -> list[bytes]:
    data, documents, start = path.read_bytes(), [], 0
    for length in storage.read_json(path.with_suffix(".json")):
        documents.append(data[start : start + length])
        start += length
    return documents


def _compress(
    artifact: str, text: str, target: str, precision: codec.Precision, window: str, stride: str
) -> dict[str, Any]:
    coder = load(artifact).coder(precision, window=int(window), stride=int(stride))
    start = time.monotonic()
    compressed = codec.compress(coder, _read_documents(Path(text)))
    storage.write_bytes(Path(target), compressed.data)
    return {"nats": compressed.nats, "seconds": time.monotonic() - start}


def _decompress(artifact: str, source: str, target: str) -> dict[str, Any]:
    data = Path(source).read_bytes()
    model = load(artifact)
    start = time.monotonic()
    _write_documents(Path(target), model.decompress_documents(data))
    return {"seconds": time.monotonic() - start}


def main(arguments: Sequence[str]) -> int:
    """One half of a proof; prints its figures as JSON."""
    threads, verb, *rest = arguments
    torch.set_num_threads(int(threads))
    keep_freed_memory()
    try:
        half: Callable[..., dict[str, Any]] = _compress if verb == "compress" else _decompress
        print(json.dumps(half(*rest)))
    except FairwayError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
