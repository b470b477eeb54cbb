"""Linear attention: softmax replaced by non-negative features, so that the past fits in one matrix.

`o_t = phi(q_t) S_t / (phi(q_t) . z_t + eps)`, `S_t = S_(t-1) + phi(k_t)^T v_t`, `z_t = z_(t-1) + phi(k_t)`;
output `o W_out`. Katharopoulos et al. 2020. Its state is S and z. Shape key: B batch, T time, D width, H
heads, K head width.
"""

from pydantic import Field
from torch import Tensor

from fairway.core.config import Source
from fairway.model.heads import check_heads
from fairway.model.linear import Linear
from fairway.model.parts import NO_CONTEXT, Context, Mixer, MixerConfig, Site, State, widened
from fairway.ops.chunking import chunked_flops
from fairway.ops.linear_attention.fastest import linear_attention
from fairway.ops.linear_attention.feature_maps import FeatureMap

SOURCE = Source("Katharopoulos et al.", 2020, "arXiv:2006.16236")
CHUNK = 64
EPS = 1e-6


class Config(MixerConfig):
    """Settings of linear attention."""

    heads: int = Field(default=4, ge=1)
    feature_map: FeatureMap = "elu_plus_one"
    normalise: bool = True
    """Divide by the sum of the weights."""

    def build(self, width: int, site: Site = Site()) -> Mixer:  # noqa: ARG002, B008
        check_heads(self.heads, width, "the width")
        return LinearAttention(width, self)

    def isolates_documents(self) -> bool:
        return True


class LinearAttention(Mixer):
    """`forward(x_BTD, state, context) -> (y_BTD, (S_BHKK, z_BHK))`."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.head_width = width // config.heads
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.output = Linear(width, width, gain=0.0)

    def empty_state(self, batch: int) -> State:
        like, heads = widened(self.key.weight), self.config.heads
        memory = like.new_zeros(batch, heads, self.head_width, self.head_width)
        return memory, like.new_zeros(batch, heads, self.head_width)

    def flops(self, context: int) -> float:
        per_head = chunked_flops(context, CHUNK, self.head_width, self.head_width + 1)
        return super().flops(context) + self.config.heads * per_head

    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        config, heads = self.config, (self.config.heads, self.head_width)
        memory, total = state or self.empty_state(x_BTD.shape[0])
        o_BTHK, after = linear_attention(
            self.query(x_BTD).unflatten(-1, heads),
            self.key(x_BTD).unflatten(-1, heads),
            self.value(x_BTD).unflatten(-1, heads),
            (memory, total),
            context.starts_BT,
            config.feature_map,
            config.normalise,
            EPS,
            CHUNK,
        )
        return self.output(o_BTHK.flatten(2)), after
