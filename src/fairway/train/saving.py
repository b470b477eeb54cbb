"""What of a loop goes into a checkpoint, and how a loop goes on from one, on any number of ranks.

Checkpoints hold whole tensors, written by the first rank; every rank reads them and keeps its part. So a run saved on
four ranks goes on with two, with the same batches; sums in another order make it equal within rounding, not bit for
bit.
"""

from typing import TYPE_CHECKING, Any

import torch

from fairway.core.errors import CheckpointError
from fairway.core.log import Event, Listener
from fairway.train.checkpoint import CHECKPOINTS, Checkpoint, latest_checkpoint, save_checkpoint
from fairway.train.clock import Clock
from fairway.train.parallel import place, whole

if TYPE_CHECKING:
    from fairway.train.loop import Loop

MAY_CHANGE = ("threads", "ranks")
"""Facts that change rounding and nothing else."""


def save(loop: "Loop", *, finished: bool = False) -> None:
    """Writes a checkpoint of a loop; every rank must call this."""
    layout = loop.layout
    groups = {
        "model": {name: whole(tensor) for name, tensor in layout.tensors().items()},
        "optimizer": layout.optimizer_state(),
        "average": loop.average.state(),
        "precision": loop.precision.state(),
        "guard": loop.guard.state(),
        **{f"hook{index}": hook.state() for index, hook in enumerate(loop.hooks)},
    }
    if loop.team.first:
        counts = {
            "elapsed": loop.clock.elapsed,
            "tokens": loop.tokens,
            "skipped": loop.skipped,
            "averaged": loop.average.count,
            "finished": finished,
        }
        save_checkpoint(loop.folder / CHECKPOINTS, loop.step, groups, {**_facts(loop), **counts})


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
    groups = checkpoint.groups
    with torch.no_grad():
        for name, tensor in loop.layout.tensors().items():
            place(tensor, groups["model"][name])
    loop.optimizer.load_state(groups["optimizer"])
    loop.average.load_state(groups["average"], int(checkpoint.facts["averaged"]))
    loop.precision.load_state(groups["precision"])
    loop.guard.load_state(groups["guard"])
    for index, hook in enumerate(loop.hooks):
        hook.load_state(groups[f"hook{index}"])
    loop.skipped, loop.tokens = int(checkpoint.facts["skipped"]), int(checkpoint.facts["tokens"])
    loop.clock = Clock(loop.clock.budget, step=checkpoint.step, elapsed=checkpoint.facts["elapsed"])
    listener(Event("train", loop.clock.progress, message=f"Going on from step {checkpoint.step}."))
    return checkpoint


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
