"""Parts made ready for a law: built without storage, poisoned with NaN, filled, and moved off their zeros."""

import copy
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fairway.core.seed import generator
from fairway.model.parts import initialise, parameter_roles

P = TypeVar("P", bound=nn.Module)


def built(make: Callable[[], P], seed: int = 0, *, dtype: torch.dtype = torch.float64, awake: bool = True) -> P:
    """A filled part; `awake` moves every parameter off its initial value so that no branch is zero."""
    with torch.device("meta"):
        part = make()
    check_holds_no_tensors(part)
    part = part.to_empty(device="cpu").to(dtype)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.fill_(math.nan)
    initialise(part, seed)
    for name, parameter in part.named_parameters():
        assert not parameter.isnan().any(), f"{name} was not filled by init_weights"
    if awake:
        awaken(part, seed)
    return part


def opened(
    make: Callable[[], nn.Module], seed: int = 0, *, dtype: torch.dtype = torch.float64, awake: bool = True
) -> Any:
    """The same as `built`, for a test that names what is inside the part."""
    return built(make, seed, dtype=dtype, awake=awake)


def awaken(part: nn.Module, seed: int = 0) -> None:
    """Moves every parameter: zeros to the scale of a linear map, anything else by a few hundredths."""
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator(seed, "awake", name), dtype=parameter.dtype)
            scale = 1 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.3
            parameter.add_(noise * (scale if not parameter.any() else 0.03))


def check_holds_no_tensors(part: nn.Module) -> None:
    """A part keeps parameters only: buffers and plain tensors would be lost when weights are loaded."""
    for name, module in part.named_modules():
        held = [key for key, value in vars(module).items() if isinstance(value, Tensor)]
        assert not held, f"{name or 'part'} holds tensors that are no parameters: {held}"
        buffers = [key for key, _ in module.named_buffers(recurse=False)]
        assert not buffers, f"{name or 'part'} holds buffers: {buffers}"


def check_card(make: Callable[[], nn.Module]) -> None:
    """Every parameter has a role and is filled, by the seed alone; copies share nothing."""
    first, again, other = built(make, 3, awake=False), built(make, 3, awake=False), built(make, 4, awake=False)
    roles = parameter_roles(first)
    assert set(roles) == {name for name, _ in first.named_parameters()}
    moved = False
    for (name, a), (_, b), (_, c) in zip(
        first.named_parameters(), again.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), f"{name} is not a function of the seed"
        moved = moved or not torch.equal(a, c)
    random = [name for name, value in first.named_parameters() if value.numel() > 1 and value.std() > 0]
    assert moved or not random, "the seed changes nothing"
    check_copies(first)


def check_copies(part: nn.Module) -> None:
    """A deep copy has equal parameters, keeps what is shared shared, and shares nothing with the original."""
    twin = copy.deepcopy(part)
    ours, theirs = dict(part.named_parameters()), dict(twin.named_parameters())
    assert list(ours) == list(theirs), "a copy shares its parameters differently"
    kept = [name for name in ours if ours[name].data_ptr() == theirs[name].data_ptr() and ours[name].numel()]
    assert not kept, f"a copy still shares {kept} with the original"
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    changed = [name for name in ours if torch.equal(ours[name], theirs[name])]
    assert not changed, f"a copy cannot be changed by itself: {changed}"


def check_gradients(part: nn.Module, loss: Tensor, *, but: tuple[str, ...] = ()) -> None:
    """Every parameter that learns gets a finite gradient that is not zero everywhere."""
    part.zero_grad(set_to_none=True)
    loss.backward()
    for name, parameter in part.named_parameters():
        if not parameter.requires_grad or name.endswith(but or ("\0",)):
            continue
        assert parameter.grad is not None, f"{name} got no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert parameter.grad.any(), f"the gradient of {name} is zero"
