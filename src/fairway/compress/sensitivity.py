"""How fine each tensor's step should be: as fine as the loss is sensitive to it.

A step D adds `h n D^2 / 24` to the loss, h the mean curvature of the tensor's n weights (the trace of its Hessian
over n), and costs `n (2.05 + log2(sigma / D))` bits. At least loss for given bits, `h D^2` is the same for all tensors:
relative to its deviation sigma, each tensor's step moves by `-1/2 log2(h sigma^2)` octaves. Tensors whose step would
outgrow their weights get next to no bits: reverse water-filling. Curvature: Fisher with labels drawn from the model
(the Gauss-Newton trace), the Hessian's own trace by random probes, or the Kronecker factors of `felt.py`. Dong et al.
2020 (HAWQ-V2, arXiv:1911.03852); Cover & Thomas, chapter 10.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fairway.compress.curvature import fisher_diagonal, hutchinson_diagonal, mean_loss, sequence_losses
from fairway.compress.parts import Sensitivity, Statistics, deviations
from fairway.compress.predict import is_quantized
from fairway.compress.solve import damped
from fairway.core.errors import ConfigError
from fairway.model.lm import LanguageModel
from fairway.model.parts import parameter_roles

_MOST_OCTAVES = 3.0
_PROBES = 8
_PROBE_STEP = 1e-3
_DAMPING = 0.01


def shifts(
    model: LanguageModel,
    calibration: Sequence[Tensor],
    kind: Sensitivity,
    kept: Mapping[str, Tensor],
    seen: Mapping[str, Statistics] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """What to add to the strength of each quantised parameter; weighted by their numbers of weights they add up to
    about 0. `seen`: the curvature's factors, for `kronecker`."""
    assert kind != "none"
    if kind == "kronecker":
        return _by_factors(model, seen or {}, kept)
    if not calibration:
        raise ConfigError("compress.sensitivity looks at gradients, but no calibration text was given to it.")
    roles = parameter_roles(model)
    weights = {name: p for name, p in model.named_parameters() if is_quantized(roles[name], tuple(p.shape))}
    wanted = {name: parameter.requires_grad for name, parameter in weights.items()}
    for parameter in weights.values():
        parameter.requires_grad_(True)
    if kind == "fisher":
        curvature = fisher_diagonal(sequence_losses(model, calibration, sampled=True, seed=seed), weights)
    else:
        curvature = hutchinson_diagonal(lambda: mean_loss(model, calibration), weights, _PROBES, seed, _PROBE_STEP)
    for name, parameter in weights.items():
        parameter.requires_grad_(wanted[name])
    sizes, losses = {}, {}
    for name, parameter in weights.items():
        alive = kept[name] if name in kept else torch.ones(parameter.shape, dtype=torch.bool)
        sizes[name] = int(alive.sum())
        count = max(1, sizes[name])
        trace = float(curvature[name][alive].double().sum())
        losses[name] = max(trace, 0.0) / count * float(parameter.detach()[alive].double().square().sum()) / count
    return balanced(losses, sizes)


def _by_factors(model: LanguageModel, seen: Mapping[str, Statistics], kept: Mapping[str, Tensor]) -> dict[str, float]:
    """Steps of equal harm where each input's error is made up for by later inputs: geometric means over rows and
    columns, `1 / U_ii^2` what is left of input i's moment given the inputs behind it.

    What no text reached gets the mean.
    """
    roles = parameter_roles(model)
    losses, sizes, unseen = {}, {}, []
    for name, parameter in model.named_parameters():
        if not is_quantized(roles[name], tuple(parameter.shape)):
            continue
        found = seen.get(name)
        if found is None or found.felt_R is None or not float(found.felt_R.max()):
            unseen.append(name)
            continue
        deviation_R = deviations(parameter.detach().reshape(-1, parameter.shape[-1]).float())
        felt_R = found.felt_R.clamp_min(1e-3 * float(found.felt_R.mean()))
        left_C = torch.linalg.cholesky(damped(found.hessian_CC, _DAMPING)).diagonal().square()
        losses[name] = float(torch.exp(felt_R.log().mean() + left_C.log().mean() + 2 * deviation_R.log().mean()))
        sizes[name] = int(kept[name].sum()) if name in kept else parameter.numel()
    return {**balanced(losses, sizes), **dict.fromkeys(unseen, 0.0)}


def balanced(losses: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Octaves `-1/2 log2(h sigma^2)` for each tensor, less their mean over all weights, within 3 either way.

    `losses`: h sigma^2. Tensors that the loss does not feel at all get the coarsest step of all.
    """
    felt = {name: -0.5 * math.log2(loss) for name, loss in losses.items() if loss > 0}
    count = sum(sizes[name] for name in felt)
    mean = sum(octaves * sizes[name] for name, octaves in felt.items()) / max(1, count)
    limited = {name: min(max(octaves - mean, -_MOST_OCTAVES), _MOST_OCTAVES) for name, octaves in felt.items()}
    return {name: limited.get(name, _MOST_OCTAVES) for name in losses}
