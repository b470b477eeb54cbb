"""Steps before the clock starts, undone afterwards: kernels compile and caches fill, and nothing else remains."""

from typing import TYPE_CHECKING

import torch

from fairway.train.parallel import local

if TYPE_CHECKING:
    from fairway.train.loop import Loop


def warm_up(loop: "Loop") -> None:
    """Takes the recipe's warm-up steps in every shape of the run, then puts back weights, states and clock.

    Uses training text; hooks see nothing of it. Every rank must call this.
    """
    config = loop.config
    if not config.warmup_steps or loop.clock.done:
        return
    elapsed = loop.clock.elapsed
    held = [local(tensor) for tensor in loop.layout.tensors().values()]
    held += list(loop.optimizer.state().values()) + list(loop.precision.state().values())
    before = [tensor.detach().clone() for tensor in held]
    hooks, loop.inner.hooks = loop.inner.hooks, ()
    loop.model.train()
    for rows, context in config.stages.shapes(config.batch, loop.model.config.context):
        batch = loop.batches.rows(0, rows // loop.team.world, context)
        for _ in range(config.warmup_steps):
            loop.accumulate(batch, loop.clock.progress)
            loop.layout.update(0.0, loop.clock.progress)
    with torch.no_grad():
        for tensor, old in zip(held, before, strict=True):
            tensor.copy_(old)
    loop.inner.hooks = hooks
    loop.layout.zero_gradients()
    loop.layout.settle()
    loop.clock = loop.clock.at(loop.clock.step, elapsed, loop.clock.start)
