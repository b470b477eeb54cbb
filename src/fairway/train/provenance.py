"""What a run's training depends on, as facts that every checkpoint holds and a resume must find again.

Changing any of them in the middle of a run gives weights that no recipe describes. It is refused with the difference,
or allowed where the user says so; then the change is written to `changes.jsonl` in the run folder before the run goes
on.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fairway
from fairway.core.errors import CheckpointError, StorageError
from fairway.core.log import Event, Listener
from fairway.core.storage import MANIFEST, Journal, sha256, unseal
from fairway.data.manifest import Manifest
from fairway.train.checkpoint import CHECKPOINTS, latest_checkpoint, save_checkpoint

CHANGES = "changes.jsonl"
RECIPE = "recipe."
_TRAINING_CODE = ("core", "data", "loss", "model", "ops", "optim", "train")
_FIXED = ("tokenizer", "recipe.model.", "recipe.distill", "recipe.train.optimizer.kind", "recipe.train.precision.kind")
"""Facts whose change would leave weights or optimizer state that do not fit."""
_OF_THE_MACHINE = ("code", "torch", "threads")
"""Facts that matter only while there are steps to come."""

Facts = dict[str, Any]


def facts_of(settings: Mapping[str, Any], manifest: Manifest, folder: Path) -> Facts:
    """Every setting of a recipe by its path, digests of text, tokenizer and code, torch's version and threads, by name.

    Once training is finished, code, version and threads are those it was finished with.
    """
    facts = {
        **{RECIPE + name: value for name, value in settings.items()},
        "data": sha256(manifest.folder / MANIFEST),
        "tokenizer": manifest.tokenizer_record.sha256,
        "code": code_digest(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    newest = _newest(folder)
    if newest.get("finished"):
        facts |= {name: newest[name] for name in _OF_THE_MACHINE if name in newest}
    return facts


@cache
def code_digest() -> str:
    """SHA-256 over the sources that training consists of."""
    package = Path(fairway.__file__).parent
    whole = hashlib.sha256()
    for part in _TRAINING_CODE:
        for path in sorted((package / part).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h"):
                whole.update(f"{path.relative_to(package).as_posix()} {sha256(path)}\n".encode())
    return whole.hexdigest()


def accept_changes(folder: Path, facts: Facts, listener: Listener) -> bool:
    """Lets the newest checkpoint go on under other facts and records which; returns whether any had changed.

    Raises `CheckpointError` for a change that the weights or the optimizer's state could not follow.
    """
    checkpoint = latest_checkpoint(folder / CHECKPOINTS, listener)
    changed = {} if checkpoint is None else _changed(checkpoint.facts, facts)
    if checkpoint is None or not changed:
        return False
    stuck = [name for name in changed if name.startswith(_FIXED)]
    if stuck:
        raise CheckpointError(
            f"{checkpoint.path} cannot go on with another {', '.join(stuck)}; use another run folder."
        )
    with Journal(folder / CHANGES) as journal:
        journal.append({"step": checkpoint.step, "changed": changed})
    kept = {name: value for name, value in checkpoint.facts.items() if not name.startswith(RECIPE)}
    save_checkpoint(folder / CHECKPOINTS, checkpoint.step, checkpoint.groups, {**kept, **facts, "finished": False})
    told = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
    listener(Event("train", message=f"Changed at step {checkpoint.step}, as allowed: {told}."))
    return True


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    old = {name for name in before if name.startswith(RECIPE)}
    names = sorted(old | set(after))
    return {name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)}


def _newest(folder: Path) -> Mapping[str, Any]:
    """The facts of the newest checkpoint; none where it is damaged, which is told when it is read."""
    found = sorted((folder / CHECKPOINTS).glob(f"step-*/{MANIFEST}"))
    try:
        return unseal(found[-1].parent, check=False)["facts"] if found else {}
    except StorageError:
        return {}
