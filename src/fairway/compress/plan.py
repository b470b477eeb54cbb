"""Every choice of the way from a trained model to an artifact."""

from typing import Annotated

from pydantic import Field

from fairway.artifact.parts import CODERS, CoderConfig
from fairway.compress.parts import PrunerConfig, QuantizerConfig, Sensitivity
from fairway.core.config import Config, Slot

QUANTIZERS = Slot("fairway.compress.quantize", "rtn")
PRUNERS = Slot("fairway.compress.prune", "none")


class CompressConfig(Config):
    """How a trained model becomes a file of at most so many bytes."""

    quantize: Annotated[QuantizerConfig, QUANTIZERS] = Field(default="rtn", validate_default=True)
    prune: Annotated[PrunerConfig, PRUNERS] = Field(default="none", validate_default=True)
    coder: Annotated[CoderConfig, CODERS] = Field(default="ans", validate_default=True)
    embedding_finer: float = Field(default=2.0, gt=0, le=64)
    """How many times finer the step of embeddings, heads and routers is than that of matrices, relative to
    their deviations.
    """
    sensitivity: Sensitivity = "none"
    """Choose each tensor's step by how much the loss feels it, instead of `embedding_finer`: by the Fisher
    information, by the Hessian's trace from random probes, or by the Kronecker factors of the curvature.
    """
    margin: int = Field(default=0, ge=0)
    """Bytes of the cap to leave free, as for code that is counted with the file."""
    finest: float = Field(default=-6.0, ge=-8, le=2)
    """Logarithm to base 2 of the finest step worth storing, relative to the weights' deviation; -6 is about
    8 bits a weight.
    """
    calibration_sequences: int = Field(default=64, ge=1)
    """Training sequences shown to techniques that look at activations."""
