"""Each way of choosing weights against a direct formula, brute force, or the identity that it must obey."""

import pytest
import torch
from torch import Tensor, nn

from compress.examples import half_error, hessian, layer, model, text
from fairway.compress import curvature
from fairway.compress.calibrate import gather
from fairway.compress.masks import keep_by_score, keep_highest, keep_in_rows, keep_pattern, prunable
from fairway.compress.prune import magnitude, obd, obs, sparsegpt, taylor, wanda


def network() -> tuple[Tensor, Tensor, nn.Parameter]:
    """Inputs, labels, and one vector that holds all weights of a small network, in float64."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 3, (40,), generator=random)
    vector = nn.Parameter(torch.randn(5 * 6 + 6 * 3, generator=random, dtype=torch.float64) * 0.5)
    return x, labels, vector


def outputs(vector: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x @ vector[:30].view(5, 6)) @ vector[30:].view(6, 3)


def cross_entropy(vector: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs(vector, x), labels)


def test_exact_counts_whatever_the_ties() -> None:
    score = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
    assert int((~keep_highest(score, 3)).sum()) == 3
    assert keep_highest(score, 0).all()
    assert (~keep_in_rows(score, 0.5)).sum(dim=1).tolist() == [1, 1]
    masks = keep_by_score({"a": score, "b": score + 0.5}, 0.5, "global")
    assert sum(int((~mask).sum()) for mask in masks.values()) == 6
    assert int((~masks["a"]).sum()) > int((~masks["b"]).sum())


def test_patterns_keep_the_highest_of_every_group() -> None:
    score = torch.tensor([[4.0, 1.0, 3.0, 2.0, 1.0, 9.0, 8.0, 7.0, 5.0, 6.0]])
    kept = keep_pattern(score, "2:4")
    assert kept.tolist() == [[True, False, True, False, False, True, True, False, False, True]]


@pytest.mark.parametrize("scope", ["layer", "row", "global"])
def test_magnitude_keeps_the_largest(scope: str) -> None:
    subject = model()
    kept = magnitude.Config.model_validate({"sparsity": 0.4, "scope": scope}).build().prune(subject, []).kept
    original = dict(model().named_parameters())
    groups: list[list[tuple[Tensor, Tensor]]] = []
    pairs = [(original[name].detach().abs().flatten(), mask.flatten()) for name, mask in kept.items()]
    if scope == "global":
        groups = [pairs]
    elif scope == "layer":
        groups = [[pair] for pair in pairs]
    else:
        groups = [[(original[n].detach().abs()[r], m[r])] for n, m in kept.items() for r in range(len(m))]
    for group in groups:
        size = torch.cat([pair[0] for pair in group])
        mask = torch.cat([pair[1] for pair in group])
        assert size[mask].min() >= size[~mask].max()
        assert int((~mask).sum()) == int(0.4 * len(mask))


def test_random_pruning_is_random_but_repeatable() -> None:
    config = magnitude.Config.model_validate({"random": True, "sparsity": 0.5})
    first, second = (config.build().prune(model(), []).kept for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    plain = magnitude.Config.model_validate({"sparsity": 0.5}).build().prune(model(), []).kept
    assert any(not torch.equal(first[name], plain[name]) for name in first)


def test_wanda_is_magnitude_times_input_norm_in_every_row() -> None:
    subject = model()
    statistics = gather(subject, text())
    first = "depth.blocks.0.mixer.query.weight"
    weight_RC = dict(subject.named_parameters())[first].detach().clone()
    kept = wanda.Config.model_validate({"sparsity": 0.5}).build().prune(subject, text()).kept[first]
    norms_C = statistics[first].gram_CC.diagonal().sqrt().float()
    for row in range(len(weight_RC)):
        order = (weight_RC[row].abs() * norms_C).argsort()
        assert not kept[row][order[:16]].any()
        assert kept[row][order[16:]].all()


def test_wanda_chooses_as_diagonal_obd_does() -> None:
    weight_RC, x_NC = layer(12, 40)
    mine = wanda.Wanda(wanda.Config.model_validate({"sparsity": 0.45})).keep(weight_RC, x_NC.square().sum(dim=0))
    saliency_RC = 0.5 * hessian(x_NC).diagonal() * weight_RC.square()
    assert torch.equal(mine, keep_in_rows(saliency_RC, 0.45))


def test_wanda_sees_the_pruned_layers_before_it() -> None:
    """The second layer's mask follows from inputs behind the pruned first layer, not from the dense model."""
    dense, subject = model(), model()
    kept = wanda.Config.model_validate({"sparsity": 0.8}).build().prune(subject, text()).kept
    later = "depth.blocks.1.ffn.output.weight"
    weight_RC = dict(dense.named_parameters())[later].detach()
    pruner = wanda.Wanda(wanda.Config.model_validate({"sparsity": 0.8}))
    behind = model()
    with torch.no_grad():
        for name, parameter in behind.named_parameters():
            if name in kept and name != later:
                parameter.mul_(kept[name])
    assert torch.equal(kept[later], pruner.keep(weight_RC, gather(behind, text())[later].squares_C))
    assert not torch.equal(kept[later], pruner.keep(weight_RC, gather(dense, text())[later].squares_C))


def test_obs_on_a_quadratic_is_the_least_squares_refit_on_the_survivors() -> None:
    weight_RC, x_NC = layer(6, 20)
    found_RC, kept_RC = obs.remove(weight_RC, hessian(x_NC), 9)
    assert bool(((~kept_RC).sum(dim=1) == 9).all())
    for row in range(6):
        index = kept_RC[row].nonzero()[:, 0]
        refit = torch.linalg.lstsq(x_NC[:, index], x_NC @ weight_RC[row]).solution
        assert torch.allclose(found_RC[row, index], refit, rtol=1e-7, atol=1e-9)
        assert not found_RC[row, ~kept_RC[row]].any()


def test_obs_takes_the_cheapest_weight_each_time() -> None:
    weight_RC, x_NC = layer(4, 9)
    hessian_CC = hessian(x_NC)
    found_RC, kept_RC = obs.remove(weight_RC, hessian_CC, 1)
    for row in range(4):
        losses = []
        for column in range(9):
            index = [other for other in range(9) if other != column]
            change_RC = -weight_RC[row : row + 1].clone()
            change_RC[0, index] += torch.linalg.lstsq(x_NC[:, index], x_NC @ weight_RC[row]).solution
            losses.append(half_error(change_RC, hessian_CC))
        assert int((~kept_RC[row]).nonzero()) == min(range(9), key=losses.__getitem__)
        mine = half_error(found_RC[row : row + 1] - weight_RC[row : row + 1], hessian_CC)
        assert mine == pytest.approx(min(losses), rel=1e-8)
        inverse_CC = torch.linalg.inv(hessian_CC)
        assert mine == pytest.approx(float((weight_RC[row] ** 2 / inverse_CC.diagonal() / 2).min()), rel=1e-8)


def test_correcting_all_weights_beats_correcting_some_or_none() -> None:
    weight_RC, x_NC = layer(8, 32)
    hessian_CC = hessian(x_NC)
    surgeon_RC, _ = obs.remove(weight_RC, hessian_CC, 16)
    solved = sparsegpt.SparseGpt(sparsegpt.Config.model_validate({"damping": 1e-6})).solve(weight_RC, hessian_CC)
    plain_RC = weight_RC * keep_in_rows(hessian_CC.diagonal() * weight_RC.square(), 0.5)
    errors = [half_error(found_RC - weight_RC, hessian_CC) for found_RC in (surgeon_RC, solved.weight_RC, plain_RC)]
    assert errors[0] < min(errors[1:])


def test_the_exact_hessian_agrees_with_finite_differences() -> None:
    x, labels, vector = network()
    found = curvature.hessian(lambda v: cross_entropy(v, x, labels), vector.detach())
    step = 1e-4
    for index in (0, 13, 40):
        nudge = torch.zeros_like(vector)
        nudge[index] = step
        gradients = [
            torch.autograd.functional.jacobian(lambda v: cross_entropy(v, x, labels), vector.detach() + sign * nudge)
            for sign in (1, -1)
        ]
        assert torch.allclose(found[index], (gradients[0] - gradients[1]) / (2 * step), atol=1e-7)


def test_gauss_newton_is_the_hessian_where_the_outputs_are_linear() -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(30, 6, generator=random, dtype=torch.float64)
    at = torch.randn(6, generator=random, dtype=torch.float64)
    target = torch.randn(30, generator=random, dtype=torch.float64)
    exact = curvature.hessian(lambda w: ((x @ w - target) ** 2).mean(), at)
    assert torch.allclose(curvature.gauss_newton(lambda w: x @ w, at, 2 / 30), exact)
    assert torch.allclose(exact, 2 * x.T @ x / 30)


def test_fisher_with_drawn_labels_tends_to_the_gauss_newton_diagonal() -> None:
    x, _, vector = network()
    chances = outputs(vector, x).detach().softmax(-1)
    blocks = [torch.diag(p) - torch.outer(p, p) for p in chances]
    exact = curvature.gauss_newton(lambda v: outputs(v, x).flatten(), vector.detach(), torch.block_diag(*blocks) / 40)
    random = torch.Generator().manual_seed(3)
    labels = torch.multinomial(chances, 400, replacement=True, generator=random)

    def loss_of(sample: int, draw: int) -> curvature.Loss:
        return lambda: cross_entropy(vector, x[sample : sample + 1], labels[sample, draw : draw + 1])

    losses = (loss_of(sample, draw) for sample in range(40) for draw in range(400))
    found = curvature.fisher_diagonal(losses, {"vector": vector})["vector"]
    assert torch.allclose(found, exact.diagonal(), rtol=0.15, atol=1e-4)


def test_squaring_the_mean_gradient_would_be_far_too_small() -> None:
    x, labels, vector = network()
    losses = [lambda i=i: cross_entropy(vector, x[i : i + 1], labels[i : i + 1]) for i in range(40)]
    right = curvature.fisher_diagonal(losses, {"vector": vector})["vector"]
    wrong = curvature.fisher_diagonal([lambda: cross_entropy(vector, x, labels)], {"vector": vector})["vector"]
    assert float(wrong.sum() / right.sum()) < 0.5


@pytest.mark.parametrize("step", [None, 1e-4])
def test_hutchinson_is_unbiased(step: float | None) -> None:
    x, labels, vector = network()
    exact = curvature.hessian(lambda v: cross_entropy(v, x, labels), vector.detach()).diagonal()
    before = vector.detach().clone()
    loss = lambda: cross_entropy(vector, x, labels)  # noqa: E731
    found = curvature.hutchinson_diagonal(loss, {"vector": vector}, 800, 0, step)["vector"]
    assert float((found - exact).norm() / exact.norm()) < 0.25
    assert torch.equal(vector.detach(), before)


def test_hutchinson_is_exact_for_a_diagonal_hessian() -> None:
    vector = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    scale = torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64)
    found = curvature.hutchinson_diagonal(lambda: (scale * vector**2).sum(), {"v": vector}, 1, 0)["v"]
    assert torch.allclose(found, 2 * scale)


def test_obd_predicts_the_rise_in_loss_better_than_magnitude_does() -> None:
    """Spearman correlation of saliency with the measured rise, every weight removed by itself, exact
    Hessian.
    """
    x, labels, vector = network()
    optimizer = torch.optim.LBFGS([vector], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(vector, x, labels) + 1e-3 * vector.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    at = vector.detach()

    def loss(v: Tensor) -> Tensor:
        return cross_entropy(v, x, labels) + 1e-3 * v.square().sum()

    base = loss(at)
    rise = torch.stack([loss(torch.where(torch.arange(48) == q, 0.0, at)) - base for q in range(48)])
    saliency = 0.5 * curvature.hessian(loss, at).diagonal() * at.square()

    def ranks(v: Tensor) -> Tensor:
        return v.argsort().argsort().double()

    def correlation(a: Tensor, b: Tensor) -> float:
        return float(torch.corrcoef(torch.stack((ranks(a), ranks(b))))[0, 1])

    assert correlation(saliency, rise) > 0.5
    assert correlation(saliency, rise) > correlation(at.abs(), rise) - 0.05


@pytest.mark.parametrize("kind", ["fisher", "gauss_newton", "hutchinson"])
def test_obd_removes_the_least_salient_weights_of_the_model(kind: str) -> None:
    subject = model()
    pruner = obd.BrainDamage(obd.Config.model_validate({"curvature": kind, "sparsity": 0.5, "probes": 2}))
    parameters = {name: dict(subject.named_parameters())[name] for name in prunable(subject)}
    diagonal = pruner.diagonal(subject, text(), parameters)
    saliency = {name: 0.5 * diagonal[name] * parameters[name].detach().square() for name in parameters}
    kept = pruner.prune(subject, text()).kept
    removed = torch.cat([saliency[name][~kept[name]] for name in kept])
    stayed = torch.cat([saliency[name][kept[name]] for name in kept])
    assert removed.max() <= stayed.min() * (1 + 1e-5)
    assert len(removed) == int(0.5 * (len(removed) + len(stayed)))


def test_taylor_takes_the_mean_of_absolute_values_not_the_absolute_mean() -> None:
    subject = model()
    name = "depth.blocks.0.ffn.input.weight"
    parameter = dict(subject.named_parameters())[name]
    losses = curvature.sequence_losses(subject, text(), sampled=False)
    gradients = [torch.autograd.grad(loss(), parameter)[0] for loss in losses]
    score = torch.stack([(gradient * parameter.detach()).abs() for gradient in gradients]).sum(dim=0)
    kept = taylor.Config.model_validate({"scope": "layer", "sparsity": 0.5}).build().prune(subject, text()).kept[name]
    assert score[kept].min() >= score[~kept].max() * (1 - 1e-5)
