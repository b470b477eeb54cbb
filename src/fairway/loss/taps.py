"""What some layers of a model put out in its last forward pass.

Layers are counted by use, so a block that is applied three times is three layers. What a recomputed layer does during
the backward pass is not looked at.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fairway.core.errors import ConfigError
from fairway.model.block import Block
from fairway.model.lm import LanguageModel


class Taps:
    """Records the layers at some shares of the depth: 1.0 is the last, 0.5 the one in the middle."""

    def __init__(self, model: LanguageModel, shares: Sequence[float], parts: Sequence[str] = ()) -> None:
        """`parts` names modules of the mixers to record instead of the blocks' own outputs."""
        layers = model.config.depth.layers
        self.wanted = [max(0, math.ceil(share * layers) - 1) for share in shares]
        self.parts = tuple(parts)
        self._found: dict[tuple[int, str], Tensor] = {}
        self._layer = -1
        self._open = False
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        self._handles = [model.register_forward_pre_hook(self._begin)]
        for block in blocks:
            self._handles.append(block.register_forward_pre_hook(self._enter))
            if not self.parts:
                self._handles.append(block.register_forward_hook(self._recorder("")))
            for name in self.parts:
                self._handles.append(_part(block, name).register_forward_hook(self._recorder(name)))

    def take(self) -> list[list[Tensor]]:
        """For every share, the recorded tensors (B, T, features): the block's output, or each part's."""
        self._open = False
        found, self._found = self._found, {}
        return [[found[layer, name] for name in self.parts or ("",)] for layer in self.wanted]

    def remove(self) -> None:
        """Stops recording."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: nn.Module, inputs: object) -> None:  # noqa: ARG002
        self._found, self._layer, self._open = {}, -1, True

    def _enter(self, module: nn.Module, inputs: object) -> None:  # noqa: ARG002
        self._layer += 1

    def _recorder(self, name: str) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def record(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:  # noqa: ARG001
            if self._open and self._layer in self.wanted:
                self._found[self._layer, name] = output if isinstance(output, Tensor) else output[0]

        return record


def _part(block: Block, name: str) -> nn.Module:
    part = getattr(block.mixer, name, None)
    if not isinstance(part, nn.Module):
        raise ConfigError(
            f"The mixer {type(block.mixer).__name__} has no {name}s to compare; attention has, and "
            "distill.loss.of=hint or attention would work with any mixer."
        )
    return part
