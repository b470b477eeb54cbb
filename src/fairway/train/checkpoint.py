"""Checkpoints: sealed folders of safetensors files, found newest first and believed only after every checksum held.

`checkpoints/step-00000120/` holds one file for each group of tensors (model, optimizer, average, ...) and a manifest,
written last, with sizes, SHA-256 and the facts a resume must agree with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from fairway.core.errors import CheckpointError, StorageError
from fairway.core.log import Event, Listener
from fairway.core.storage import MANIFEST, fault_point, free_bytes, remove_folder, replace_folder, unseal, write_bytes

CHECKPOINTS = "checkpoints"
KEPT = 2

Groups = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    path: Path
    step: int
    facts: dict[str, Any]
    """JSON facts given when it was saved."""
    groups: dict[str, dict[str, Tensor]]


def save_checkpoint(folder: Path, step: int, groups: Groups, facts: Mapping[str, Any]) -> Path:
    """Writes the checkpoint of a step, then deletes all but the newest `KEPT`.

    Raises `StorageError` where it cannot be written; earlier checkpoints stay intact.
    """
    needed = sum(tensor.nbytes for tensors in groups.values() for tensor in tensors.values())
    if free_bytes(folder) < 2 * needed:
        raise StorageError(
            f"{folder} has {free_bytes(folder):,} bytes free; a checkpoint needs twice its {needed:,} to be safe."
        )
    path = folder / f"step-{step:08d}"

    def fill(target: Path) -> None:
        for name, tensors in groups.items():
            whole = {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}
            write_bytes(target / f"{name}.safetensors", save(whole))

    replace_folder(path, fill, {"step": step, "facts": dict(facts)})
    fault_point("checkpoint.saved")
    for old in _found(folder)[KEPT:]:
        remove_folder(old)
    return path


def latest_checkpoint(folder: Path, listener: Listener) -> Checkpoint | None:
    """The newest checkpoint whose files are all intact; damaged ones are named and passed over.

    Raises `CheckpointError` where there are checkpoints and none is intact.
    """
    found = _found(folder)
    for path in found:
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            listener(Event("train", message=f"{error} The checkpoint before it is used instead."))
    if found:
        raise CheckpointError(f"None of the {len(found)} checkpoints in {folder} is intact; delete it to start anew.")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint, after its checksums held; raises `CheckpointError` otherwise."""
    try:
        manifest = unseal(path)
        groups = {
            name.removesuffix(".safetensors"): load((path / name).read_bytes())
            for name in manifest["files"]
            if name.endswith(".safetensors")
        }
        return Checkpoint(path, int(manifest["step"]), dict(manifest["facts"]), groups)
    except (StorageError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"The checkpoint {path} cannot be used: {error}") from None


def _found(folder: Path) -> list[Path]:
    return sorted((path.parent for path in folder.glob(f"step-*/{MANIFEST}")), reverse=True)
