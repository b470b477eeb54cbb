"""Trains with the rounding that the artifact will apply, from a late moment of the run on.

Every use of a linear map sees `round(w / step) step`, steps as in rounding to nearest at `strength`; the
gradient passes straight through to w (Bengio et al. 2013). With `activation_bits`, what enters the map is
rounded too, each token by its own largest magnitude, as machines that multiply small integers do it. A step
in which no map was used so is an error, so the rounding cannot silently be inactive, as it would be in a
graph compiled before it began. Jacob et al. 2018. Shape key: R rows, C columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.compress.calibrate import linear_weights
from fairway.compress.parts import Quantizer, QuantizerConfig
from fairway.compress.steps import RowRounding, row_steps
from fairway.core.config import Source
from fairway.core.errors import TrainingError
from fairway.model.linear import Linear
from fairway.model.lm import LanguageModel
from fairway.train.parts import Hook, Trainee

SOURCE = Source("Jacob et al.", 2018, "arXiv:1712.05877")


class Config(QuantizerConfig):
    """Settings of quantisation-aware training."""

    row_power: float = Field(default=1.0, ge=0, le=1)
    """1: each row's step follows its own deviation; 0: one step for the whole weight."""
    start: float = Field(default=0.8, ge=0, lt=1)
    """Progress from which on training rounds."""
    strength: float = Field(default=-0.5, ge=-8, le=2)
    """Logarithm to base 2 of the step in training, relative to the weights' deviation; near what the
    artifact will need.
    """
    activation_bits: int | None = Field(default=None, ge=2, le=16)
    """Round what enters linear maps to so many bits a number as well, such as 8; not at all if not given."""

    def build(self) -> Quantizer:
        return RowRounding(self.row_power)

    def hooks(self) -> list[Hook]:
        return [Rounded(self)]


class Rounded(Hook):
    """Shadows the weights of linear maps by rounded ones while each runs."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.uses = 0
        self._active = False
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def start(self, loop: Trainee) -> None:
        for module in linear_weights(loop.model):
            self._handles.append(module.register_forward_pre_hook(self._before))
            self._handles.append(module.register_forward_hook(_after))
        self._active = self._active or loop.progress >= self.config.start

    def stepped(self, loop: Trainee) -> dict[str, float]:
        if self._active and not self.uses:
            raise TrainingError(
                "Quantisation-aware training is on, but no linear map was rounded in the last step; "
                "train.compile=false would help."
            )
        figures = {"qat/uses": float(self.uses)}
        self.uses = 0
        self._active = loop.progress >= self.config.start
        return figures

    def state(self) -> dict[str, Tensor]:
        return {"active": torch.tensor(self._active)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._active = bool(state["active"])

    def finish(self, loop: Trainee) -> None:  # noqa: ARG002
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not (self._active and module.training):
            return None
        assert isinstance(module, Linear)
        module.__dict__["weight"] = straight_through(
            module._parameters["weight"], self.config.strength, self.config.row_power
        )
        self.uses += 1
        bits = self.config.activation_bits
        return None if bits is None else (rounded_input(inputs[0], bits), *inputs[1:])


def rounded_input(x: Tensor, bits: int) -> Tensor:
    """Each vector of the last dimension to whole multiples of `max |x| / (2^(bits-1) - 1)`, straight through."""
    with torch.no_grad():
        wide = x.detach().float()
        step = wide.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
        step = torch.where(step > 0, step, torch.ones_like(step))
        change = (torch.round(wide / step) * step - wide).to(x.dtype)
    return x + change


@contextmanager
def integer_inputs(model: LanguageModel, bits: int) -> Iterator[None]:
    """A model whose linear maps see their inputs rounded, to measure what that costs."""

    def rounded(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ARG001
        return rounded_input(inputs[0], bits), *inputs[1:]

    handles = [module.register_forward_pre_hook(rounded) for module in linear_weights(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def straight_through(weight: Tensor | None, strength: float, power: float) -> Tensor:
    """The rounded weight, with the gradient of the weight itself."""
    assert weight is not None
    with torch.no_grad():
        rows_RC = weight.detach().float().view(-1, weight.shape[-1])
        steps_R1 = row_steps(rows_RC, strength, power)[:, None]
        change = (torch.round(rows_RC / steps_R1) * steps_R1 - rows_RC).view(weight.shape).to(weight.dtype)
    return weight + change


def _after(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
    module.__dict__.pop("weight", None)
