"""A trained run compressed in another way than its recipe says, what that does to its score, and what may go."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fairway.compress.quantize.qat import integer_inputs
from fairway.compress.saliency import Saliency, saliencies
from fairway.core.budget import parse_bytes
from fairway.core.config import override
from fairway.core.errors import ConfigError
from fairway.core.log import Listener
from fairway.core.storage import locked
from fairway.evaluate.bpb import judge
from fairway.evaluate.fresh import score_in_fresh_process
from fairway.run import Recipe, Run
from fairway.serve.load import load
from fairway.serve.scoring import NetworkPredictor


def recompressed(
    job: Run, overrides: Sequence[str], size: str | None, artifact: Path, listener: Listener
) -> dict[str, Any]:
    """Plan, predicted and real bytes, and the scores of the trained weights and of the artifact; the run stays."""
    recipe = changed(job.recipe, overrides, size)
    other = Run(recipe, job.folder, job.data)
    other.artifact, other.fit = artifact, artifact.with_suffix(".fit.json")
    with locked(job.folder, "compress"):
        model, _ = other.trained(listener)
        manifest, config = other.prepare(listener), recipe.evaluate
        documents = manifest.validation_documents()
        policy = config.policy(recipe.model.context)
        before = judge(NetworkPredictor(model.eval()), manifest.tokenizer, documents, policy, config, listener=listener)
        other.fit.unlink(missing_ok=True)
        fit = other.compress(listener)
        after = score_in_fresh_process(artifact, job.data, config, listener)
        bits = getattr(recipe.compress.quantize, "activation_bits", None)
        small: dict[str, float] = {}
        if bits is not None:
            network = load(artifact).network
            with integer_inputs(network, bits):
                found = judge(NetworkPredictor(network), manifest.tokenizer, documents, policy, config)
            small = {f"bits_per_byte_int{bits}_activations": found.bits_per_byte}
    return {
        "plan": yaml.safe_dump(recipe.compress.plain(), default_flow_style=True, width=1000, sort_keys=False).strip(),
        "artifact": artifact,
        "bytes": fit["bytes"],
        "bytes_cap": fit["cap"],
        "predicted_bytes": fit["predicted_bytes"],
        "strength": fit["strength"],
        "bits_per_byte_before": before.bits_per_byte,
        "bits_per_byte_after": after["bits_per_byte"],
        **small,
        **({"note": fit["note"]} if fit["note"] else {}),
    }


def salient(job: Run, listener: Listener) -> list[Saliency]:
    """What removing weights of a trained run should cost, matrix by matrix, on its calibration text."""
    model, _ = job.trained(listener)
    return saliencies(model, job.calibration(job.prepare(listener)))


def changed(recipe: Recipe, overrides: Sequence[str], size: str | None) -> Recipe:
    """The recipe with another way of compression; raises `ConfigError` for a change to anything else."""
    foreign = [text for text in overrides if not text.strip().startswith("compress.")]
    if foreign:
        raise ConfigError(f"{foreign[0]} was given; a trained run can only change in compress.* and --bytes.")
    data = override(recipe.plain(), overrides)
    if size is not None:
        try:
            data["budget"]["bytes"] = parse_bytes(size)
        except ValueError as error:
            raise ConfigError(f"--bytes: {error}.") from None
    return Recipe.read(data)
