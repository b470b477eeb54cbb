"""Text from a model as a stream of whole characters, cut before stop strings."""

import codecs
from collections.abc import Callable, Iterator, Sequence

from fairway.core.errors import ConfigError
from fairway.data.parts import Tokenizer
from fairway.serve.engine import Decoding
from fairway.serve.sampler import Sampler, SamplerConfig


def generate_tokens(session: Decoding, count: int, boundary: int, config: SamplerConfig) -> Iterator[int]:
    """Up to `count` tokens after those of the session; ends before the next boundary."""
    sample = Sampler(config)
    for _ in range(count):
        token = sample(session.logits())
        if token == boundary:
            return
        yield token
        session.push(token)


def stream(
    begin: Callable[[Sequence[int]], Decoding],
    tokenizer: Tokenizer,
    prompt: bytes,
    count: int,
    config: SamplerConfig,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Pieces of text: together the decoded tokens up to the first stop string, invalid UTF-8 as U+FFFD.

    `begin` makes a session of the prompt's tokens, the boundary before them.
    """
    if any(not ending for ending in stop):
        raise ConfigError("An empty stop string was given; it would end the text before its first character.")
    tokens = [tokenizer.boundary, *tokenizer.encode(prompt).tolist()]
    pieces = map(tokenizer.piece, generate_tokens(begin(tokens), count, tokenizer.boundary, config))
    return until(characters(pieces), stop)


def characters(pieces: Iterator[bytes]) -> Iterator[str]:
    """Bytes as text, each character as soon as it is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest


def until(texts: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """The same text, ended before the first stop string; what may be the beginning of one is held back."""
    held = ""
    for text in texts:
        held += text
        found = [place for ending in stop if (place := held.find(ending)) >= 0]
        if found:
            if held[: min(found)]:
                yield held[: min(found)]
            return
        keep = max((_overlap(held, ending) for ending in stop), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def _overlap(text: str, ending: str) -> int:
    """Length of the longest end of `text` that begins `ending`."""
    longest = min(len(text), len(ending) - 1)
    return next((size for size in range(longest, 0, -1) if ending.startswith(text[-size:])), 0)
