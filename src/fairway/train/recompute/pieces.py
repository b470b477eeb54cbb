"""Sequences are cut along time; each block computes a piece again from its input and the state carried to it.

A block keeps its input and one state for each piece, and the activations of one piece at a time while the gradients
are computed: memory of a recurrent block is near that of its inputs and outputs, however long the sequence. Blocks
whose state grows with the tokens, as attention's keys and values do, or that must see all tokens together, as routed
experts, are computed again as a whole. Where states together are larger than half of the input, stretches of pieces
are computed once or twice more, and only the states between stretches and those inside one are kept. Gruslys
et al. 2016, with the sequence cut evenly.
"""

from pydantic import Field
from torch import nn

from fairway.core.config import Source
from fairway.model.lm import LanguageModel
from fairway.train.numerics import RecomputeConfig
from fairway.train.recomputation import Pieces, states_kept, stretches
from fairway.train.segmentation import Costs, Prediction

SOURCE = Source("Gruslys et al.", 2016, "arXiv:1606.03401")


class Config(RecomputeConfig):
    """Settings of recomputation along time."""

    length: int = Field(default=256, ge=1)
    """Tokens of a piece. A multiple of 64 suits the chunks of the mixers; of the mini-batch, test-time training."""

    def apply(self, model: nn.Module) -> None:
        assert isinstance(model, LanguageModel)
        model.block_runner = Pieces(self.length)

    def predict(self, costs: Costs) -> Prediction:
        states = costs.states or (None,) * len(costs.kept)
        share = min(1.0, self.length / costs.tokens)
        carried, again, rest = 0, 0.0, [0]
        for inputs, kept, work, state in zip(costs.inputs, costs.kept, costs.work, states, strict=True):
            again += work
            if state is None:
                rest.append(kept)
                continue
            pieces = -(-costs.tokens // self.length)
            plan = stretches(pieces, state, int(inputs * share))
            between, *inside = states_kept(pieces, plan)
            carried += between * state
            again += work * (len(plan) - 1)
            rest.append(int(kept * share) + (sum(inside) + min(1, pieces - 1)) * state)  # its own is joined to a piece
        return Prediction(sum(costs.inputs) + carried + max(rest), again)
