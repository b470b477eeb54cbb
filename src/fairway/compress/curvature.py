"""Second derivatives of a loss: exact, Gauss-Newton, Fisher, and by random probes.

`H_qq` for every weight q, as OBD needs it. Fisher: mean over samples of the squared gradient of each
sample's own loss (never the square of the mean gradient, which is smaller by about the number of samples).
With labels drawn from the model's own predictions this is the Gauss-Newton diagonal of a cross-entropy.
Hutchinson: mean of `v .* H v` over random signs v.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.seed import generator
from fairway.model.lm import LanguageModel

Loss = Callable[[], Tensor]


def hessian(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The exact Hessian of a function of one vector."""
    return torch.autograd.functional.hessian(loss, at)


def gauss_newton(outputs: Callable[[Tensor], Tensor], at: Tensor, curvature: Tensor | float) -> Tensor:
    """`J^T C J`, J the derivative of the outputs by the vector, C the curvature of the loss by the outputs."""
    jacobian = torch.autograd.functional.jacobian(outputs, at).flatten(0, -2)
    scaled = curvature * jacobian if isinstance(curvature, float) else curvature @ jacobian
    return jacobian.T @ scaled


def fisher_diagonal(losses: Iterable[Loss], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of each sample's loss."""
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    count = 0
    for loss in losses:
        gradients = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.square()
        count += 1
    return {name: value / max(1, count) for name, value in total.items()}


def hutchinson_diagonal(
    loss: Loss, parameters: Mapping[str, nn.Parameter], probes: int, seed: int, step: float | None = None
) -> dict[str, Tensor]:
    """Mean of `v .* H v` over random signs v: unbiased, exact for a diagonal Hessian.

    `H v` by differentiating twice, or, with `step` (relative to each parameter's root mean square), by a
    central difference of gradients, for losses whose kernels can be differentiated only once.
    """
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for probe in range(probes):
        random = generator(seed, "hutchinson", probe)
        signs = [torch.randint(0, 2, p.shape, generator=random).to(p) * 2 - 1 for p in parameters.values()]
        values = list(parameters.values())
        products = _twice(loss, values, signs) if step is None else _difference(loss, values, signs, step)
        for name, sign, product in zip(parameters, signs, products, strict=True):
            total[name] += sign * product / probes
    return total


def _twice(loss: Loss, values: list[nn.Parameter], signs: list[Tensor]) -> Sequence[Tensor]:
    gradients = torch.autograd.grad(loss(), values, create_graph=True)
    return torch.autograd.grad(gradients, values, signs, materialize_grads=True)


def _difference(loss: Loss, values: list[nn.Parameter], signs: list[Tensor], step: float) -> Sequence[Tensor]:
    """Probes are scaled to each parameter, so the result is `H (s v) / s` up to cross terms that average to
    zero.
    """
    scales = [float(value.detach().square().mean().sqrt()) or 1.0 for value in values]
    found = []
    original = [value.detach().clone() for value in values]
    for side in (1.0, -1.0):
        with torch.no_grad():
            for value, start, sign, scale in zip(values, original, signs, scales, strict=True):
                value.copy_(start + side * step * scale * sign)
        found.append(torch.autograd.grad(loss(), values))
    with torch.no_grad():
        for value, start in zip(values, original, strict=True):
            value.copy_(start)
    pairs = zip(found[0], found[1], scales, strict=True)
    return [(above - below) / (2 * step * scale) for above, below, scale in pairs]


def sequence_losses(model: LanguageModel, calibration: Sequence[Tensor], *, sampled: bool, seed: int = 0) -> list[Loss]:
    """The loss of every calibration sequence by itself, in nats per token; labels from the text or from the
    model.
    """

    def loss_of(tokens_T: Tensor, index: int) -> Loss:
        def loss() -> Tensor:
            logits_TV = model.logits(model(tokens_T[None, :-1]).hidden_BTD)[0]
            labels_T = tokens_T[1:]
            if sampled:
                chances_TV = logits_TV.detach().softmax(-1)
                labels_T = torch.multinomial(chances_TV, 1, generator=generator(seed, "labels", index))[:, 0]
            return functional.cross_entropy(logits_TV, labels_T)

        return loss

    sequences = [tokens_T for batch_BT in calibration for tokens_T in batch_BT]
    return [loss_of(tokens_T, index) for index, tokens_T in enumerate(sequences)]


def mean_loss(model: LanguageModel, calibration: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of all calibration text in nats per token."""
    tokens_BT = torch.cat(list(calibration))
    logits = model.logits(model(tokens_BT[:, :-1]).hidden_BTD)
    return functional.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten())
