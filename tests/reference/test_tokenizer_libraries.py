"""Byte-pair encoding against tiktoken: the same merges as ranks, the same words, the same ids."""

import sysconfig
from pathlib import Path

import pytest

from fairway.data.tokenizer.bpe import Config
from fairway.data.words import BOUNDARY, word_pattern

tiktoken = pytest.importorskip("tiktoken")

HOME = Path(sysconfig.get_paths()["stdlib"])


def test_ascii_text_has_the_ids_that_tiktoken_gives() -> None:
    text = (HOME / "argparse.py").read_bytes() + (HOME / "decimal.py").read_bytes()
    ours = Config.read({"vocabulary": 1000}).train([text], 0)
    # tiktoken counts ranks without gaps, so the boundary's id is taken out and put back.
    ranks = {piece: token - (token > BOUNDARY) for token, piece in enumerate(ours.table) if piece}
    pattern = word_pattern("single", "prefix", lambda byte: f"\\x{byte:02x}")
    library = tiktoken.Encoding("fairway", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    probe = "".join(chr(byte) for byte in (HOME / "typing.py").read_bytes() if byte < 128)
    ids = [token + (token >= BOUNDARY) for token in library.encode(probe)]
    assert ours.encode(probe.encode()).tolist() == ids
