"""What higher layers may plug into training without the loop knowing them.

A `Transform` changes the model before the loop (quantisation-aware training, masks). A `Hook` sees the loop at fixed
moments (gradual pruning, teachers, evaluation while training). Neither is imported by the loop's own layer; the
composition root joins them.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from fairway.data.batches import Batch
from fairway.loss.next_token import Term
from fairway.model.lm import LanguageModel, Output
from fairway.optim.parts import Optimizer
from fairway.train.clock import Course


class Trainee(Protocol):
    """What a hook may see of the loop."""

    model: LanguageModel
    optimizer: Optimizer

    @property
    def step(self) -> int:
        """Steps done of the training at hand; a run is one, unless a hook asks for more."""
        ...

    @property
    def progress(self) -> float:
        """Share of the training at hand that is done, in [0, 1]."""
        ...


class Transform(Protocol):
    """Changes a model before the loop and undoes what must not be saved."""

    def apply(self, model: nn.Module) -> None:
        """Called once before the optimizer is built."""
        ...

    def remove(self, model: nn.Module) -> None:
        """Called after the last step, before weights are handed on."""
        ...


class Hook:
    """Sees the loop; every moment does nothing unless overridden."""

    ranks: Literal["one", "replicas", "slices"] = "replicas"
    """On how many ranks it works: one, many that each hold all weights, or also many that hold slices of them. On
    many it sees its own rank's rows, the common gradients, and must come to the same decisions everywhere."""

    def course(self) -> Course:
        """The trainings that the run is to be divided into; one hook at most may ask for more than one."""
        return Course()

    def again(self, loop: Trainee, trained: Mapping[str, Tensor]) -> None:
        """Before a further training, all else put back; `trained`: the weights to keep of the one before it.

        Only the hook that asked for the course sees this, and its own state is not put back.
        """

    def start(self, loop: Trainee) -> None:
        """Before the first step, after a resume too."""

    def loss(self, loop: Trainee, batch: Batch, output: Output) -> dict[str, Tensor]:  # noqa: ARG002
        """Further loss terms of a micro-batch, already weighted; each is added to the loss and logged."""
        return {}

    def next_token_weight(self, loop: Trainee) -> float:  # noqa: ARG002
        """Weight of the next-token loss in the next step; those of several hooks are multiplied."""
        return 1.0

    def term(self, loop: Trainee, batch: Batch) -> Term | None:  # noqa: ARG002
        """A further term of a micro-batch's logits, already weighted; computed together with the next-token loss."""
        return None

    def gradients(self, loop: Trainee) -> bool:  # noqa: ARG002
        """After the backward passes. True replaces this step's weight update, as a change of topology does."""
        return False

    def stepped(self, loop: Trainee) -> dict[str, float]:  # noqa: ARG002
        """After the step; returns figures to log."""
        return {}

    def finish(self, loop: Trainee) -> None:
        """After the last step."""

    def state(self) -> dict[str, Tensor]:
        """What an exact resume needs."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state()`."""
        assert not state


def global_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Euclidean norm over all gradients; infinite or NaN exactly if one of them is."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
