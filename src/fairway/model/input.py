"""What is done to the embedded input before the first block: smeared, told its position, scaled.

`x_t = (1 - sigmoid(g)) x_t + sigmoid(g) x_(t-1)`, g one number per feature, x_(t-1) = 0 for the first token of a
document; then `x = s x`, s = sqrt(D) or a learned scalar that begins there. The state is the last embedded vector.
The gate is from the records of OpenAI's Parameter Golf challenge. Shape key: B batch, T time, D width.
"""

import math

import torch
from torch import Tensor, nn

from fairway.model.parts import Part, Role, State, Stateful


class Smear(Stateful):
    """`forward(x_BTD, state, starts_BT) -> (x_BTD, (last_BD,))`; never looks across the start of a document."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_D = nn.Parameter(torch.empty(width))

    def roles(self) -> dict[str, Role]:
        return {"gate_D": Role.VECTOR}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        self.gate_D.zero_()

    def empty_state(self, batch: int) -> State:
        return (self.gate_D.new_zeros(batch, len(self.gate_D)),)

    def forward(self, x_BTD: Tensor, state: State | None, starts_BT: Tensor | None) -> tuple[Tensor, State]:
        """Smeared vectors, and the last one as it was before."""
        if not x_BTD.shape[1]:
            return x_BTD, self.empty_state(len(x_BTD)) if state is None else state
        last_BD = self.empty_state(len(x_BTD))[0] if state is None else state[0]
        before_BTD = torch.cat((last_BD[:, None].to(x_BTD.dtype), x_BTD[:, :-1]), dim=1)
        if starts_BT is not None:
            before_BTD = before_BTD.masked_fill(starts_BT[..., None], 0.0)
        mixed_BTD = torch.lerp(x_BTD, before_BTD, torch.sigmoid(self.gate_D).to(x_BTD.dtype))
        return mixed_BTD, (x_BTD[:, -1],)


class InputScale(Part):
    """`forward(x_BTD) -> x_BTD` times sqrt(D), fixed or learned from there."""

    def __init__(self, width: int, *, learned: bool) -> None:
        super().__init__()
        self.start = math.sqrt(width)
        self.scale = nn.Parameter(torch.empty(())) if learned else None

    def roles(self) -> dict[str, Role]:
        return {} if self.scale is None else {"scale": Role.SCALAR}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        if self.scale is not None:
            self.scale.fill_(self.start)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The scaled input."""
        return x_BTD * (self.start if self.scale is None else self.scale.to(x_BTD.dtype))
