"""KL divergence between teacher and student at every token, in either direction.

`forward_kl`: `KL(teacher || student)`, which spreads the student over all that the teacher does; `reverse_kl`:
`KL(student || teacher)`, which keeps the student to where the teacher is likely. Both times T^2 at temperature T.
"""

from fairway.core.config import Source
from fairway.loss.targets import TokenTerm
from fairway.loss.transfer import Distiller, TokenDistiller, TokenLossConfig
from fairway.model.lm import LanguageModel
from fairway.ops.divergence.naive import forward_kl, reverse_kl

KINDS = ("forward_kl", "reverse_kl")
SUMMARIES = {
    "forward_kl": "KL(teacher || student) at every token: covers all that the teacher does",
    "reverse_kl": "KL(student || teacher) at every token: keeps to where the teacher is likely",
}
SOURCES = {
    "forward_kl": Source("Sanh et al.", 2019, "arXiv:1910.01108"),
    "reverse_kl": Source("Gu et al.", 2023, "arXiv:2306.08543"),
}


class Config(TokenLossConfig):
    """Settings of a KL divergence."""

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> Distiller:  # noqa: ARG002
        divergence = forward_kl if self.kind == "forward_kl" else reverse_kl
        return TokenDistiller(self.alpha, TokenTerm(divergence, self.temperature, self.alpha))
