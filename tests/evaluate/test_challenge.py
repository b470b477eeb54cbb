"""Parity with the public challenge: against a computation of its own, on a SentencePiece model trained here."""

import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fairway.core.errors import EvaluationError
from fairway.data.sentencepiece_model import Model as PieceModel
from fairway.data.sentencepiece_model import read_model
from fairway.evaluate.challenge import byte_table, challenge_score, compare, normalise, stream_of, table_gate
from fairway.evaluate.gates import refuse_failures

sentencepiece = pytest.importorskip("sentencepiece")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "there", "were", "nine", "naïve", "cafés", "42", "1999"]
DOCUMENTS = [
    b"the cat sat on a mat and then there were nine",
    "naïve cafés — 42 of them, 1999".encode(),
    b"the mat",
    "ﬁne ＦＵＬＬ width \N{SNOWMAN} 漢字".encode(),
]


@pytest.fixture(scope="module")
def trained():
    """The challenge's settings at 330 pieces: BPE, byte fallback, digits apart, nmt_nfkc, no dummy prefix."""
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, 12)) for _ in range(300)]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="bpe",
        vocab_size=330,
        character_coverage=0.999,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
        num_threads=1,
    )
    return read_model(out.getvalue())


class Bigram:
    """Predicts by a fixed random table of the last token alone."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        random = torch.Generator().manual_seed(0)
        self.table = torch.randn(vocabulary, vocabulary, generator=random, dtype=torch.float64).log_softmax(-1)

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        return self.table[inputs_BT[:, first:]]


def independent(bigram: Bigram, model: PieceModel, texts: list[bytes], window: int) -> tuple[float, int, int]:
    """Nats, tokens and bytes; a token's bytes are what it adds to the text spelled so far, without a table."""
    processor = model.processor
    ids: list[int] = []
    added: list[int] = []
    for text in texts:
        ids.append(1)
        added.append(0)
        spelled = b""
        for token in processor.encode(text.decode()):
            piece = processor.id_to_piece(token)
            before = len(spelled.removeprefix(b" "))
            spelled += (
                bytes([int(piece[3:5], 16)]) if processor.is_byte(token) else piece.replace("\u2581", " ").encode()
            )
            ids.append(token)
            added.append(len(spelled.removeprefix(b" ")) - before)
    usable = (len(ids) - 1) // window * window
    nats = math.fsum(-float(bigram.table[ids[t], ids[t + 1]]) for t in range(usable))
    return nats, usable, sum(added[1 : usable + 1])


@pytest.mark.parametrize("window", [4, 7, 16])
def test_the_formula_agrees_with_a_computation_of_its_own(trained, window: int) -> None:
    vocabulary = trained.processor.get_piece_size()
    bigram = Bigram(vocabulary)
    score = challenge_score(bigram, stream_of(trained, DOCUMENTS), byte_table(trained), window)
    nats, tokens, size = independent(bigram, trained, DOCUMENTS, window)
    assert (score.tokens, score.bytes) == (tokens, size)
    assert score.nats == pytest.approx(nats, rel=1e-12)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-12)


def test_the_table_counts_normalised_text_exactly(trained) -> None:
    table = byte_table(trained, 400)
    for text in [*DOCUMENTS, b"", b" leading space", b"two  spaces"]:
        assert table.bytes(stream_of(trained, [text])) == len(normalise(trained, text).encode())
    refuse_failures([table_gate(table, trained, DOCUMENTS)])
    assert table.boundary_V[330:].all()
    assert not table.base_V[330:].any()


def test_a_mark_between_documents_costs_nats_and_holds_no_bytes(trained) -> None:
    table = byte_table(trained)
    assert [table.bytes(np.array(pair)) for pair in ([5, 1], [1, 1], [1, 0])] == [0, 0, 0]
    bigram = Bigram(trained.processor.get_piece_size())
    one = challenge_score(bigram, np.array([1, 10, 11, 12, 13]), table, 4)
    two = challenge_score(bigram, np.array([1, 10, 11, 1, 13]), table, 4)
    assert two.nats > 0
    assert two.bytes < one.bytes


def test_the_leading_space_is_counted_unless_a_mark_stands_before_it(trained) -> None:
    table = byte_table(trained)
    piece = trained.processor.piece_to_id("\u2581the")
    letter = trained.processor.piece_to_id("a")
    assert table.bytes(np.array([1, piece])) == 3
    assert table.bytes(np.array([letter, piece])) == 4


def test_both_scores_and_why_they_differ(trained) -> None:
    bigram = Bigram(trained.processor.get_piece_size())
    found = compare(bigram, trained, DOCUMENTS, window=16)
    stream = stream_of(trained, DOCUMENTS)
    nats = math.fsum(-float(bigram.table[stream[t], stream[t + 1]]) for t in range(len(stream) - 1))
    assert found.raw_bits_per_byte == pytest.approx(nats / math.log(2) / sum(map(len, DOCUMENTS)), rel=1e-12)
    assert found.normalised_bytes != found.raw_bytes
    assert found.tail_tokens == (len(stream) - 1) % 16 > 0
    boundary = math.fsum(-float(bigram.table[stream[t], 1]) for t in range(len(stream) - 1) if stream[t + 1] == 1)
    assert found.boundary_nats == pytest.approx(boundary, rel=1e-12)
    plain = found.plain()
    assert plain["raw_bits_per_byte"] != plain["challenge_bits_per_byte"]
    assert any(str(found.tail_tokens) in reason for reason in plain["reasons"])


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (np.array([1, 5, 6]), "no whole window"),
        (np.array([1, 5, 900, 4, 4]), "goes up to 900"),
        (np.ones(9, int), "no bytes"),
    ],
)
def test_a_stream_that_cannot_be_scored_is_refused(trained, stream: np.ndarray, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        challenge_score(Bigram(trained.processor.get_piece_size()), stream, byte_table(trained), 4)


def test_text_that_is_not_utf8_is_refused(trained) -> None:
    with pytest.raises(EvaluationError, match="UTF-8"):
        stream_of(trained, [b"\xff"])
