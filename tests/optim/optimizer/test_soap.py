"""SOAP against the published algorithm in NumPy, written apart from it."""

import numpy as np
import pytest
import torch
from torch import nn

from fairway.core.seed import generator
from fairway.model.parts import Part, Role
from fairway.optim.optimizer.soap import Config


class Matrix(Part):
    """One matrix or stack."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(shape, generator=generator(0, "m"), dtype=torch.float64))

    def roles(self) -> dict[str, Role]:
        return {"matrix": Role.MATRIX}


def gradient_at(step: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(1, step), dtype=torch.float64)


def soap_in_numpy(
    weight: np.ndarray, gradients: list[np.ndarray], config: Config, rotated: tuple[bool, bool]
) -> np.ndarray:
    b1, b2, b = config.beta1, config.beta2, config.covariance_beta
    covariances = [np.zeros((n, n)) for n in weight.shape]
    bases = [np.eye(n) for n in weight.shape]
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, g in enumerate(gradients):
        weight = weight * (1 - config.lr * config.weight_decay)
        if t > 0:
            left, right = bases
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * (left.T @ g @ right) ** 2
            step = (left.T @ m @ right / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + config.eps)
            weight = weight - config.lr * left @ step @ right.T
        covariances = [b * c + (1 - b) * p for c, p in zip(covariances, (g @ g.T, g.T @ g), strict=True)]
        for side in np.flatnonzero(rotated):
            if t == 0:
                bases[side] = np.linalg.eigh(covariances[side])[1]
            elif t % config.refresh == 0:
                bases[side] = np.linalg.qr(covariances[side] @ bases[side])[0]
    return weight


@pytest.mark.parametrize(
    ("columns", "longest", "rotated"), [(6, 6, (True, True)), (9, 6, (True, False)), (9, 1, (False, False))]
)
def test_thirty_steps_equal_the_algorithm(columns: int, longest: int, rotated: tuple[bool, bool]) -> None:
    """A square matrix where both sides turn: the first covariance of a longer side has an arbitrary null space."""
    model = Matrix(6, columns)
    config = Config(lr=0.01, weight_decay=0.1, refresh=4, longest_side=longest)
    expected = soap_in_numpy(
        model.matrix.detach().numpy().copy(),
        [gradient_at(t, 6, columns).numpy() for t in range(30)],
        config,
        rotated,
    )
    optimizer = config.build(model)
    for step in range(30):
        model.matrix.grad = gradient_at(step, 6, columns)
        optimizer.step(1.0, step / 30)
    np.testing.assert_allclose(model.matrix.detach().numpy(), expected, rtol=1e-8, atol=1e-9)


def test_a_stack_is_many_matrices() -> None:
    stack, single = Matrix(3, 5, 5), Matrix(5, 5)
    single.matrix.data.copy_(stack.matrix.data[1])
    config = Config(lr=0.01, refresh=2)
    first, second = config.build(stack), config.build(single)
    for step in range(6):
        stack.matrix.grad = gradient_at(step, 3, 5, 5)
        single.matrix.grad = stack.matrix.grad[1].clone()
        first.step(1.0, 0.5)
        second.step(1.0, 0.5)
    torch.testing.assert_close(stack.matrix[1], single.matrix, rtol=0, atol=1e-7)


def test_without_rotation_it_is_adamw() -> None:
    model, plain = Matrix(6, 9), Matrix(6, 9)
    optimizer = Config(lr=0.01, weight_decay=0.1, longest_side=1, beta1=0.9, beta2=0.95).build(model)
    peer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    model.matrix.grad = gradient_at(99, 6, 9)
    optimizer.step(0.0, 0.0)
    for step in range(20):
        model.matrix.grad, plain.matrix.grad = gradient_at(step, 6, 9), gradient_at(step, 6, 9)
        optimizer.step(1.0, 0.5)
        peer.step()
    torch.testing.assert_close(model.matrix, plain.matrix, rtol=1e-9, atol=1e-9)


def test_a_rotation_of_the_problem_rotates_the_path() -> None:
    left = torch.linalg.qr(torch.randn(6, 6, generator=generator(5), dtype=torch.float64)).Q
    plain, turned = Matrix(6, 6), Matrix(6, 6)
    turned.matrix.data.copy_(left @ plain.matrix.data)
    config = Config(lr=0.01, refresh=3)
    first, second = config.build(plain), config.build(turned)
    for step in range(8):
        plain.matrix.grad = gradient_at(step, 6, 6)
        turned.matrix.grad = left @ plain.matrix.grad
        first.step(1.0, 0.5)
        second.step(1.0, 0.5)
    torch.testing.assert_close(turned.matrix, left @ plain.matrix, rtol=1e-6, atol=1e-7)
