"""Every packing plans the arrays that it unpacks, and refuses settings and integers that make no sense."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import Tensor

from fairway.artifact.packing import codebook, lowrank, nf4, raw, rows, sparse, trellis
from fairway.artifact.parts import PACKINGS, Packed, packing
from fairway.core.errors import ArtifactError

KINDS = PACKINGS.kinds()


def examples() -> dict[str, Packed]:
    """One packed tensor of every kind."""
    random = np.random.default_rng(1)
    codes = random.integers(-9, 10, (6, 8)).astype(np.int32)
    return {
        "rows": rows.pack(codes, random.integers(-30, 4, 6), (2, 3, 8)),
        "codebook": codebook.pack(codes + 9, torch.linspace(-0.1, 0.1, 19), (6, 8)),
        "sparse": sparse.pack(np.where(codes > 5, codes, 0), np.arange(9, dtype=np.int32) + 15_000, -3, (6, 8), 2),
        "nf4": nf4.pack(np.abs(codes), random.integers(-40, -20, 12), (48,), 4),
        "lowrank": lowrank.pack(codes, codes[:, 0] - 20, torch.eye(6)[:, :2], torch.eye(8)[:2] * 0.1, (6, 8)),
        "trellis": trellis.pack(codes, random.integers(-30, 4, 6), codes != 3, (2, 3, 8), 3),
        "raw": raw.pack(torch.randn(5, generator=torch.Generator().manual_seed(1)), "bfloat16"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_an_example_here(kind: str) -> None:
    assert examples()[kind].kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_names_the_arrays_and_their_lengths(kind: str) -> None:
    packed = examples()[kind]
    planned = packing(kind).plan(packed.shape, packed.settings)
    assert planned == {name: array.size for name, array in packed.arrays.items()}
    assert list(planned) == list(packed.arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_unpacking_gives_a_finite_tensor_of_the_shape_and_leaves_the_integers_alone(kind: str) -> None:
    packed = examples()[kind]
    before = {name: array.copy() for name, array in packed.arrays.items()}
    tensor = packing(kind).unpack(packed)
    assert isinstance(tensor, Tensor)
    assert tuple(tensor.shape) == packed.shape
    assert tensor.dtype == torch.float32
    assert bool(tensor.isfinite().all())
    assert all(np.array_equal(before[name], array) for name, array in packed.arrays.items())


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_missing_and_absurd_settings_are_refused(kind: str) -> None:
    packed = examples()[kind]
    with pytest.raises(ArtifactError):
        packing(kind).plan(packed.shape, {**packed.settings, "surprise": 1})
    for name in packed.settings:
        with pytest.raises(ArtifactError):
            packing(kind).plan(packed.shape, {key: value for key, value in packed.settings.items() if key != name})
        with pytest.raises(ArtifactError):
            packing(kind).plan(packed.shape, {**packed.settings, name: -(2**31)})


@pytest.mark.parametrize("kind", KINDS)
def test_integers_of_any_size_give_a_finite_tensor_or_one_error(kind: str) -> None:
    packed = examples()[kind]
    random = np.random.default_rng(2)
    for name, array in packed.arrays.items():
        for scale in (1, 300, 70_000, 2**31 - 1):
            wild = random.integers(-scale - 1, scale + 1, array.size).astype(np.int32)
            changed = Packed(kind, packed.shape, {**packed.arrays, name: wild}, packed.settings)
            with suppress(ArtifactError):
                assert bool(packing(kind).unpack(changed).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_whole_multiples_of_the_steps_that_a_packing_tells(kind: str) -> None:
    packed = examples()[kind]
    steps_R = packing(kind).row_steps(packed)
    assert (steps_R is not None) == (kind in ("rows", "trellis"))
    if steps_R is not None:
        values_RC = packing(kind).unpack(packed).reshape(len(steps_R), -1)
        assert torch.equal((values_RC / steps_R[:, None]).round() * steps_R[:, None], values_RC)
