"""What of a loop goes into a checkpoint, and how a loop goes on from one, on any number of ranks.

Checkpoints hold whole tensors, written by the first rank; every rank reads them and keeps its part. So a run saved on
four ranks goes on with two, with the same batches; sums in another order make it equal within rounding, not bit for
bit.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairway.core.errors import CheckpointError
from fairway.core.log import Event, Listener
from fairway.train.checkpoint import CHECKPOINTS, Checkpoint, latest_checkpoint, save_checkpoint
from fairway.train.parallel import place, whole
from fairway.train.parts import Hook

if TYPE_CHECKING:
    from fairway.train.loop import Loop

MAY_CHANGE = ("threads", "ranks")
"""Facts that change rounding and nothing else."""


def save(loop: "Loop", *, finished: bool = False) -> None:
    """Writes a checkpoint of a loop; every rank must call this."""
    groups = groups_of(loop)
    if loop.team.first:
        early, facts = loop.rewinding.state(loop)
        counts = {**counts_of(loop), "elapsed": loop.clock.elapsed, "finished": finished}
        save_checkpoint(
            loop.folder / CHECKPOINTS, loop.clock.step, {**groups, **early}, {**_facts(loop), **counts, **facts}
        )


def groups_of(loop: "Loop", without: Sequence[Hook] = ()) -> dict[str, dict[str, Tensor]]:
    """Every tensor that a loop goes on from, whole and live, by group; every rank must call this."""
    return {
        "model": {name: whole(tensor) for name, tensor in loop.layout.tensors().items()},
        "optimizer": loop.layout.optimizer_state(),
        "average": loop.average.state(),
        "precision": loop.precision.state(),
        "guard": loop.guard.state(),
        **{_group(index): hook.state() for index, hook in enumerate(loop.hooks) if hook not in without},
    }


def counts_of(loop: "Loop") -> dict[str, int]:
    """The numbers that a loop goes on from, its clock's aside."""
    return {"tokens": loop.tokens, "skipped": loop.skipped, "averaged": loop.average.count}


def put(loop: "Loop", groups: Mapping[str, dict[str, Tensor]], counts: Mapping[str, Any]) -> None:
    """Puts a loop where `groups_of` and `counts_of` saw it; hooks without a group stay as they are."""
    with torch.no_grad():
        for name, tensor in loop.layout.tensors().items():
            place(tensor, groups["model"][name])
    loop.optimizer.load_state(groups["optimizer"])
    loop.average.load_state(groups["average"], int(counts["averaged"]))
    loop.precision.load_state(groups["precision"])
    loop.guard.load_state(groups["guard"])
    for index, hook in enumerate(loop.hooks):
        if _group(index) in groups:
            hook.load_state(groups[_group(index)])
    loop.skipped, loop.tokens = int(counts["skipped"]), int(counts["tokens"])


def resume(loop: "Loop", listener: Listener) -> Checkpoint | None:
    """Puts a loop where its newest checkpoint was, if there is one; every rank must call this.

    Raises `CheckpointError` where it belongs to another run, or where ranks see different ones.
    """
    checkpoint = latest_checkpoint(loop.folder / CHECKPOINTS, listener)
    step = -1 if checkpoint is None else checkpoint.step
    if loop.team.by_first([step]) != [step] or loop.team.sum([step]) != [step * loop.team.world]:
        raise CheckpointError(
            f"Ranks see different checkpoints in {loop.folder}; a folder that all of them share would work."
        )
    if checkpoint is None:
        return None
    _require_same_run(loop, checkpoint, listener)
    put(loop, checkpoint.groups, checkpoint.facts)
    start = loop.rewinding.load_state(checkpoint.groups, checkpoint.facts)
    loop.clock = loop.clock.at(checkpoint.step, checkpoint.facts["elapsed"], start)
    listener(Event("train", loop.clock.share, message=f"Going on from step {checkpoint.step}."))
    return checkpoint


def _group(hook: int) -> str:
    return f"hook{hook}"


def _facts(loop: "Loop") -> dict[str, Any]:
    return {**loop.facts, "ranks": loop.team.world}


def _require_same_run(loop: "Loop", checkpoint: Checkpoint, listener: Listener) -> None:
    pairs = {name: (checkpoint.facts.get(name), value) for name, value in _facts(loop).items()}
    changed = {name: f"{name} was {old!r}, is {new!r}" for name, (old, new) in pairs.items() if old != new}
    told = "; ".join(changed.values())
    if set(changed) - set(MAY_CHANGE):
        raise CheckpointError(f"{checkpoint.path} belongs to another run: {told}. Use another run folder.")
    if changed:
        listener(Event("train", message=f"Same batches, but not bit for bit: {told}."))
