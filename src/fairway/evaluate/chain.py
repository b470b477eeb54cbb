"""A chain of hashes over scored chunks: once a chunk is in it, its nats cannot change unnoticed.

`hash_k = SHA-256(hash_(k-1), place of the chunk, its nats, SHA-256 of its tokens and of the nats of each)`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fairway.evaluate.gates import GateResult
from fairway.serve.scoring import Tally

_FIRST_LINK = hashlib.sha256(b"fairway: score first").hexdigest()


@dataclass(frozen=True)
class Link:
    """One scored chunk in the chain of hashes."""

    sequence: int
    first: int
    """Index of the chunk's first target in its sequence."""
    targets: int
    nats: float
    content: str
    """SHA-256 of the chunk's tokens and of the nats of each, in order."""
    hash: str
    """SHA-256 over the previous link's hash and all of the above."""


def extended(chain: Sequence[Link], sequence: int, first: int, tokens: np.ndarray, nats: np.ndarray) -> Link:
    """The next link for a chunk's tokens and nats."""
    content = hashlib.sha256(np.asarray(tokens, "<i8").tobytes() + np.asarray(nats, "<f8").tobytes()).hexdigest()
    previous = chain[-1].hash if chain else _FIRST_LINK
    total = float(np.asarray(nats, np.float64).sum())
    return Link(
        sequence,
        first,
        len(nats),
        total,
        content,
        _hash(previous, sequence, first, len(nats), total, content),
    )


def check_chain(chain: Sequence[Link], tally: Tally) -> GateResult:
    """Replays a chain: its links follow one another through the text and hold the nats of the score."""
    name = "score before update"
    previous, places = _FIRST_LINK, [(-1, 0)]
    for number, link in enumerate(chain):
        expected = _hash(previous, link.sequence, link.first, link.targets, link.nats, link.content)
        chunk = slice(link.first, link.first + link.targets)
        again = extended(
            chain[:number], link.sequence, link.first, _tokens(tally, link), tally.nats[link.sequence][chunk]
        )
        last = places[-1]
        follows = (
            link.first == last[1] if link.sequence == last[0] else link.first == 0 and link.sequence == last[0] + 1
        )
        if link.hash != expected or again != link or not follows:
            return GateResult(
                name, False, f"Link {number} of the chain of scores does not follow from those before it."
            )
        previous = link.hash
        places.append((link.sequence, link.first + link.targets))
    if sum(link.targets for link in chain) != tally.tokens:
        return GateResult(name, False, "The chain of scores does not reach the end of the text.")
    return GateResult(
        name,
        True,
        f"{len(chain)} chunks, each final before it was learned from; last link {previous[:16]}...",
    )


def _tokens(tally: Tally, link: Link) -> np.ndarray:
    return tally.sequences[link.sequence][link.first + 1 : link.first + link.targets + 1]


def _hash(previous: str, *values: str | float) -> str:
    return hashlib.sha256(" ".join([previous, *_spelled(values)]).encode()).hexdigest()


def _spelled(values: Iterable[str | float]) -> Iterator[str]:
    return (value.hex() if isinstance(value, float) else str(value) for value in values)
