"""How many parameters each part of a model holds, by the kind of module around them."""

from collections.abc import Iterator

from torch import nn

from fairway.model.lm import LanguageModel
from fairway.model.parts import Embedding, Ffn, Mixer, Norm, parameter_roles

_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (Mixer, "mixer"),
    (Ffn, "ffn"),
    (Embedding, "embedding"),
    (Norm, "norm"),
)
OTHER = "other"


def parameters_by_part(model: LanguageModel) -> dict[str, int]:
    """How many parameters each part holds; a shared parameter counts once, parts without any are left out."""
    counts: dict[str, int] = {}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, part in part_of_each_parameter(model).items():
        counts[part] = counts.get(part, 0) + sizes[name]
    return counts


def part_of_each_parameter(model: LanguageModel) -> dict[str, str]:
    """For each parameter's name its part: embedding, mixer, ffn, norm, head or other. The outermost decides."""

    def walk(module: nn.Module, prefix: str, label: str) -> Iterator[tuple[str, str]]:
        if label == OTHER:
            label = (
                "head"
                if module is model.head
                else next((name for kind, name in _KINDS if isinstance(module, kind)), OTHER)
            )
        for name, _ in module.named_parameters(recurse=False):
            yield prefix + name, label
        for name, child in module.named_children():
            yield from walk(child, f"{prefix}{name}.", label)

    found = dict(walk(model, "", OTHER))
    return {name: found[name] for name in parameter_roles(model)}
