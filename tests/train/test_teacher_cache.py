"""Stored predictions: what comes back, what is refused, and that a teacher need not run twice."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fairway.core.errors import ConfigError, StorageError
from fairway.core.seed import generator
from fairway.loss.targets import Targets
from fairway.train.teacher_cache import TeacherCache, fingerprint
from laws.teaching import made, text

FACTS = {"teacher": "abc", "top_k": 4}


def targets(tokens_BT: Tensor) -> Targets:
    count = tokens_BT[:, 1:].numel()
    return Targets.of(3 * torch.randn(count, 20, generator=generator(0, "z")), 1.0, 4)


@pytest.fixture(name="cache")
def _cache(tmp_path: Path) -> TeacherCache:
    return TeacherCache(tmp_path / "cache", FACTS, 20)


def test_what_is_read_is_what_was_written_to_half_precision(cache: TeacherCache) -> None:
    tokens = text(20)
    given = targets(tokens)
    stored = cache.write(7, 1, tokens, given)
    again = TeacherCache(cache.folder, FACTS, 20).read(7, 1, tokens)
    assert again is not None
    assert again.index_NK is not None
    assert given.index_NK is not None
    assert torch.equal(again.log_p_NM, stored.log_p_NM)
    assert torch.equal(again.index_NK, given.index_NK)
    assert (again.log_p_NM.exp() - given.log_p_NM.exp()).abs().max() < 2e-3
    assert torch.allclose(again.log_p_NM.exp().sum(-1), torch.ones(len(again.log_p_NM)), atol=1e-5)
    assert cache.read(7, 0, tokens) is None
    assert cache.read(8, 1, tokens) is None


def test_a_damaged_file_is_named_and_never_used(cache: TeacherCache) -> None:
    tokens = text(20)
    cache.write(0, 0, tokens, targets(tokens))
    (path,) = cache.folder.rglob("step-*")
    data = bytearray(path.read_bytes())
    for place in (3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(StorageError, match="is damaged"):
            cache.read(0, 0, tokens)


def test_a_sealed_file_that_names_no_token_of_the_vocabulary_is_refused(cache: TeacherCache) -> None:
    tokens = text(20)
    cache.write(0, 0, tokens, targets(tokens))
    with pytest.raises(StorageError, match="names token"):
        TeacherCache(cache.folder, FACTS, 10).read(0, 0, tokens)


def test_a_sealed_file_of_another_length_is_refused(cache: TeacherCache) -> None:
    tokens = text(20)
    few = targets(tokens)
    assert few.index_NK is not None
    with pytest.raises(StorageError, match="are not those of"):
        cache.write(0, 0, tokens, Targets(few.log_p_NM[1:], few.index_NK[1:]))


def test_predictions_of_other_text_are_refused(cache: TeacherCache) -> None:
    cache.write(0, 0, text(20), targets(text(20)))
    with pytest.raises(StorageError, match="other text"):
        cache.read(0, 0, text(20, seed=1))


def test_another_teachers_cache_is_refused_with_what_differs(cache: TeacherCache) -> None:
    with pytest.raises(ConfigError, match=r"teacher differ"):
        TeacherCache(cache.folder, {**FACTS, "teacher": "def"}, 20)


def test_a_teachers_fingerprint_follows_its_weights_and_settings() -> None:
    model = made(1)
    assert fingerprint(model) == fingerprint(made(1))
    assert fingerprint(model) != fingerprint(made(2))
    assert fingerprint(model) != fingerprint(made(1, "head.scale=2"))
