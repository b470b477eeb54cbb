"""Sequences are cut along time; each block computes a piece again from its input and the state carried to it.

A block keeps its input and one state for each piece, and the activations of one piece at a time while the gradients
are computed: memory of a recurrent block is near that of its inputs and outputs, however long the sequence. Blocks
whose state grows with the tokens, as attention's keys and values do, or that must see all tokens together, as routed
experts, are computed again as a whole. Gruslys et al. 2016, with the sequence cut evenly and every state kept.
"""

from pydantic import Field
from torch import nn

from fairway.core.config import Source
from fairway.model.lm import LanguageModel
from fairway.train.numerics import RecomputeConfig
from fairway.train.recomputation import Pieces
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
        more = -(-costs.tokens // self.length) - 1
        share = min(1.0, self.length / costs.tokens)
        carried = sum(more * state for state in states if state is not None)
        rest = (kept if state is None else kept * share for kept, state in zip(costs.kept, states, strict=True))
        return Prediction(sum(costs.inputs) + carried + int(max(rest)), sum(costs.work))
