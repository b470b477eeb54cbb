"""One optimizer spread over ranks: each parameter is updated, and its state held, by one rank alone.

The ranks' optimizers are built over a shadow of the model in which parameters of other ranks have shapes but no
storage, so their state takes no memory. Whole parameters are dealt out and not slices, because orthogonalisation
needs whole matrices. Rajbhandari et al. 2020 (arXiv:1910.02054), stage 1, by parameter.
"""

import copy
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fairway.model.parts import Role, parameter_roles
from fairway.optim.parts import Optimizer

Owners = Mapping[str, int]
"""The rank that updates each parameter."""


def deal_out(model: nn.Module, world: int) -> dict[str, int]:
    """Owners that share the work evenly: heaviest first, each to the rank with the least so far."""
    roles, loads, owners = parameter_roles(model), [0.0] * world, {}
    costs = {name: _cost(parameter, roles[name]) for name, parameter in model.named_parameters()}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = min(range(world), key=lambda rank: (loads[rank], rank))
        loads[owners[name]] += costs[name]
    return owners


def _cost(parameter: Tensor, role: Role) -> float:
    """Multiply-adds of an update, relatively: iterations on a matrix cost its shorter side for each element."""
    return parameter.numel() * (min(parameter.shape[-2:]) if role is Role.MATRIX else 1)


def shadow(model: nn.Module, own: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model whose parameters are the tensors of `own`, and empty ones without storage elsewhere."""
    memo: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for name, parameter in model.named_parameters():
        data = own[name] if name in own else torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(data, parameter.requires_grad)
    return copy.deepcopy(model, memo)


def gathered_state(optimizer: Optimizer, owners: Owners, rank: int, device: torch.device) -> dict[str, Tensor]:
    """The state of the whole optimizer in the memory of every rank's host; every rank must call this."""
    whole = {}
    for key, tensor in sorted(optimizer.state().items()):
        owner = next((owners[part] for part in key.split("/") if part in owners), None)
        if owner is not None:
            held = tensor if owner == rank else torch.empty_like(tensor, device=device if tensor.is_meta else None)
            sent = held.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(sent, owner)
            tensor = sent
        whole[key] = tensor.detach().cpu()
    return whole
