"""Byte-pair encoding beside its peers: training, encoding and preparing shards, in megabytes of text a second.

`python benchmarks/tokenizer_speed.py [--text FILE.jsonl.xz] [--megabytes 30] [--vocabulary 1024] [--threads 2]
[--rounds 7]`. Without a file the text is the standard library's source, repeated with changed words to the size.
Peers: `tokenizers`, `tiktoken`, `sentencepiece`, `rustbpe`, `gigatoken`; each cuts words by its own pattern except
`tokenizers` when encoding, which reads the `tokenizer.json` that Fairway wrote and must give the same ids. Every
encoding is decoded and compared with the text before the first round, and a contender that fails has no rate. `cold`
encoders are made anew in each round; `warm` ones have seen the text. `shards` is the whole way from the spooled text
to sealed files, each document checked.
"""

import argparse
import io
import json
import lzma
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from report import save

GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
OURS = ("fairway", "fairway cold", "fairway warm", "fairway shards")
TRAINERS = ("fairway", "tokenizers", "sentencepiece", "rustbpe", "gigatoken")
ENCODERS = (
    "fairway cold", "fairway warm", "fairway shards", "tokenizers", "sentencepiece", "tiktoken", "gigatoken cold",
    "gigatoken warm",
)  # fmt: skip

Prepared = tuple[Callable[[], None], dict[str, Any]]


def texts_of(path: str, megabytes: float) -> list[bytes]:
    """Documents of UTF-8 text of the given size together."""
    found: list[bytes] = []
    left = int(1e6 * megabytes)
    if path:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            documents = (json.loads(line)["text"].encode("utf-8", "replace") for line in lines)
            for text in documents:
                found.append(text)
                left -= len(text)
                if left <= 0:
                    return found
        raise SystemExit(f"{path} holds less than {megabytes} MB of text.")
    home = Path(sysconfig.get_paths()["stdlib"])
    sources = [file.read_bytes() for file in sorted(home.glob("*.py"))]
    turn = 0
    while left > 0:
        for text in sources:
            changed = text.replace(b"self", b"s%d" % turn) if turn else text
            found.append(changed.decode("utf-8", "replace").encode())
            left -= len(changed)
            if left <= 0:
                break
        turn += 1
    return found


def trainer(name: str, texts: list[bytes], vocabulary: int) -> Prepared:
    """Training from documents in memory to a vocabulary."""
    words = [text.decode() for text in texts]
    if name == "fairway":
        from fairway.data.tokenizer.bpe import Config

        config = Config.read({"vocabulary": vocabulary})
        return lambda: check(config.train(texts, 0).vocabulary, vocabulary), {}
    if name == "tokenizers":
        return lambda: check(gpt2(words, vocabulary).get_vocab_size(), vocabulary), {}
    if name == "sentencepiece":
        return lambda: check(len(sentencepiece_model(words, vocabulary)) > 0, True), {}
    if name == "rustbpe":
        import rustbpe

        def train_rust() -> None:
            library = rustbpe.Tokenizer()
            library.train_from_iterator(iter(words), vocabulary, pattern=GPT2)
            check(len(library.get_mergeable_ranks()), vocabulary)

        return train_rust, {}
    import gigatoken

    # Its Python surface trains on one run of bytes; a byte that no UTF-8 text holds keeps documents apart.
    whole = b"\xff".join(texts)

    def train_giga() -> None:
        learned = gigatoken.train_bpe(whole, vocabulary, ["<|document|>"], separator=b"\xff")
        check(len(learned[0]), vocabulary)

    return train_giga, {}


def encoder(name: str, texts: list[bytes], vocabulary: int) -> Prepared:
    """Encoding documents in memory to ids, after a round trip of all of them."""
    from fairway.data.tokenizer.bpe import BpeTokenizer, Config

    words = [text.decode() for text in texts]
    ours = Config.read({"vocabulary": vocabulary}).train(texts, 0)
    if name == "fairway shards":
        return shards(texts, ours), {}
    if name.startswith("fairway"):
        facts = {"tokens": sum(map(len, ours.encode_all(texts)))}
        check([ours.decode(ids) for ids in ours.encode_all(texts)], texts)
        if name.endswith("warm"):
            return lambda: void(ours.encode_all(texts)), facts
        return lambda: void(BpeTokenizer(ours.merges).encode_all(texts)), facts
    if name == "tokenizers":
        from tokenizers import Tokenizer

        library = Tokenizer.from_str(ours.tokenizer_json())
        theirs = [found.ids for found in library.encode_batch_fast(words)]
        check(theirs, [ids.tolist() for ids in ours.encode_all(texts)])
        return lambda: void(library.encode_batch_fast(words)), {"tokens": sum(map(len, theirs))}
    if name == "sentencepiece":
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(words, vocabulary))
        check([processor.decode(ids) for ids in processor.encode(words)], words)
        return lambda: void(processor.encode(words, num_threads=threads())), {}
    if name == "tiktoken":
        import tiktoken

        ranks = gpt2_ranks(words, vocabulary)
        library = tiktoken.Encoding("peer", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})
        encode = lambda: library.encode_ordinary_batch(words, num_threads=threads())  # noqa: E731
        check(library.decode_batch(encode()), words)
        return lambda: void(encode()), {}
    import gigatoken

    described = gpt2(words, vocabulary).to_str()
    library = gigatoken.Tokenizer.from_json(described)
    several = threads() > 1
    check([library.decode(list(ids)) for ids in library.encode_batch_list(texts)], texts)
    if name.endswith("warm"):
        return lambda: void(library.encode_batch(texts, parallel=several)), {}
    return lambda: void(gigatoken.Tokenizer.from_json(described).encode_batch(texts, parallel=several)), {}


def shards(texts: list[bytes], tokenizer: Any) -> Callable[[], None]:
    """Spooled documents to shards on disk, by the stage of `fairway prepare` that does it."""
    from fairway.data.build import DataConfig, _Encoder
    from fairway.data.parts import Document
    from fairway.data.spool import spool

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    spooled = spool((Document(str(n), text) for n, text in enumerate(texts)), folder / "spool", None, void)

    def run() -> None:
        target = folder / "shards"
        target.mkdir()
        made = _Encoder(DataConfig(), spooled, tokenizer, target, lambda fraction, what: None)  # noqa: ARG005
        found = made.encode("train", range(len(spooled.digests)))
        check(found["bytes"], sum(map(spooled.size, range(len(spooled.digests)))))
        shutil.rmtree(target)

    return run


def gpt2(words: list[str], vocabulary: int) -> Any:
    """Byte-level encoding as GPT-2 has it, trained by `tokenizers`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=letters, show_progress=False)
    )
    return library


def gpt2_ranks(words: list[str], vocabulary: int) -> dict[bytes, int]:
    """Ranks for `tiktoken`, from `rustbpe`."""
    import rustbpe

    library = rustbpe.Tokenizer()
    library.train_from_iterator(iter(words), vocabulary, pattern=GPT2)
    return {bytes(piece): rank for piece, rank in library.get_mergeable_ranks()}


def sentencepiece_model(words: list[str], vocabulary: int) -> bytes:
    """A model of its byte-pair kind that keeps all text."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=(line for text in words for line in text.split("\n")), model_writer=model,
        vocab_size=vocabulary, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, num_threads=threads(), minloglevel=2,
        user_defined_symbols=["\n", "\t"], character_coverage=0.9995, max_sentence_length=1 << 20,
    )  # fmt: skip
    return model.getvalue()


def threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])


def check(seen: Any, wanted: Any) -> None:
    if seen != wanted:
        raise SystemExit("a result is wrong; no rate is given")


def void(result: Any) -> None:
    """Nothing; names what is done only for its time."""


def measure_all(chosen: argparse.Namespace, kind: str, names: tuple[str, ...]) -> None:
    """One table: every contender of a kind."""
    base = [
        __file__,
        "--text",
        chosen.text,
        "--megabytes",
        str(chosen.megabytes),
        "--vocabulary",
        str(chosen.vocabulary),
    ]
    environment = {"RAYON_NUM_THREADS": str(chosen.threads), "TOKENIZERS_PARALLELISM": str(chosen.threads > 1).lower()}
    commands = {name: [*base, "--contend", f"{kind}:{name}"] for name in names}
    measured = pairs.measure(commands, chosen.rounds, chosen.threads, environment)
    size = sum(map(len, texts_of(chosen.text, chosen.megabytes))) / 1e6
    rates = {name: size / value.wall for name, value in measured.items()}
    save(f"tokenizer_{kind}_{chosen.threads}t", measured, rates, f"MB/s of {size:.1f} MB", OURS)
    if "fairway shards" in rates:
        share = rates["fairway shards"] / rates["fairway cold"]
        print(f"  preparing shards runs at {share:.2f} of the rate of encoding alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="", help="a .jsonl.xz with the field text")
    parser.add_argument("--megabytes", type=float, default=30)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contend")
    chosen = parser.parse_args()
    if not chosen.contend:
        measure_all(chosen, "training", TRAINERS)
        measure_all(chosen, "encoding", ENCODERS)
        return
    answers = os.dup(1)  # some libraries print on standard output, where the rounds are told
    os.dup2(2, 1)
    sys.stdout = os.fdopen(answers, "w")
    kind, _, name = chosen.contend.partition(":")
    texts = texts_of(chosen.text, chosen.megabytes)
    prepare = trainer if kind == "training" else encoder
    pairs.serve(lambda: prepare(name, texts, chosen.vocabulary))


if __name__ == "__main__":
    main()
