"""Where the weights lie: on one device, as replicas on many (DDP), or in pieces over many (FSDP).

Every rank computes the mean loss of its own rows, ranks have equally many, and gradients are averaged: together the
mean over all tokens of the batch. Li et al. 2020 (arXiv:2006.15704); Zhao et al. 2023 (arXiv:2304.11277).
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fairway.core.errors import ConfigError
from fairway.model.block import Block
from fairway.model.lm import LanguageModel
from fairway.optim.parts import OptimizerConfig, RateScale
from fairway.optim.sharded import deal_out, gathered_state, shadow
from fairway.train.distributed import Team
from fairway.train.parts import global_norm


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    if not isinstance(tensor, DTensor):
        return tensor
    detached = tensor.detach()
    assert isinstance(detached, DTensor)
    return detached.to_local()


def place(target: Tensor, whole: Tensor) -> None:
    """Copies this rank's part of a whole tensor into what it holds of it."""
    if isinstance(target, DTensor):
        mesh = target.device_mesh
        pieces = whole.chunk(mesh.size())
        if mesh.get_local_rank() < len(pieces):
            local(target).copy_(pieces[mesh.get_local_rank()])
    else:
        target.copy_(whole)


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from all ranks; every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Layout:
    """One device holds everything."""

    def __init__(
        self, model: LanguageModel, optimizer: OptimizerConfig, scales: Mapping[str, RateScale] | None
    ) -> None:
        self.model = model
        self.optimizer = optimizer.build(model, scales)
        self.parameters = dict(model.named_parameters())

    def wrap(self, step: nn.Module) -> nn.Module:
        """The module to call for the loss of a micro-batch."""
        return step

    def accumulating(self, last: bool) -> AbstractContextManager[object]:  # noqa: ARG002
        """The surroundings of a micro-batch; ranks exchange gradients in the last of a step."""
        return nullcontext()

    def zero_gradients(self) -> None:
        """Drops all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """What this rank holds of all gradients."""
        return [local(parameter.grad) for parameter in self.parameters.values() if parameter.grad is not None]

    def norm(self) -> float:
        """Euclidean norm of all gradients together, the same on every rank."""
        return float(global_norm(list(self.parameters.values())))

    def update(self, factor: float, progress: float) -> None:
        """One step of the optimizer, after which every rank has its part of the new weights."""
        self.optimizer.step(factor, progress)

    def optimizer_state(self) -> dict[str, Tensor]:
        """The state of the whole optimizer; every rank must call this."""
        return self.optimizer.state()

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, as this rank holds them."""
        return {**self.parameters, **dict(self.model.named_buffers())}

    def settle(self) -> None:
        """Called after passes without gradients, such as a validation."""


class Replicas(Layout):
    """Every rank holds all weights; each updates its share of the parameters, unless all update all."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: OptimizerConfig,
        scales: Mapping[str, RateScale] | None,
        team: Team,
        shared: bool,
    ) -> None:
        self.team, self.model = team, model
        self.parameters = dict(model.named_parameters())
        self.owners = deal_out(model, team.world) if shared else {}
        self.own = {name: parameter.data for name, parameter in self.parameters.items() if self._is_own(name)}
        self.optimizer = optimizer.build(shadow(model, self.own) if shared else model, scales)
        self._step: Any = None

    def wrap(self, step: nn.Module) -> nn.Module:
        gpu = self.model.device.type == "cuda"
        devices = [self.model.device] if gpu else None
        self._step = DistributedDataParallel(step, devices, find_unused_parameters=True)
        return self._step

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self._step.no_sync()

    def norm(self) -> float:
        return self.team.by_first([super().norm()])[0]

    def update(self, factor: float, progress: float) -> None:
        if not self.owners:
            self.optimizer.step(factor, progress)
            return
        for name, held in self.optimizer.named_parameters().items():
            held.grad = self.parameters[name].grad if self._is_own(name) else None
        messages: list[_Message] = []
        self.optimizer.when_done = lambda group: messages.extend(self._sent(group.parameters))
        self.optimizer.step(factor, progress)
        self._take(messages)

    def optimizer_state(self) -> dict[str, Tensor]:
        if not self.owners:
            return super().optimizer_state()
        return gathered_state(self.optimizer, self.owners, self.team.rank, self.model.device)

    def _is_own(self, name: str) -> bool:
        return self.owners.get(name) == self.team.rank

    def _sent(self, names: Sequence[str]) -> list["_Message"]:
        """Starts to send each rank's new weights of a group to all others, one message for each rank and type.

        The messages travel while the next group is updated.
        """
        messages = []
        for owner in range(self.team.world):
            kinds: dict[torch.dtype, list[Tensor]] = {}
            for name in names:
                parameter = self.parameters[name]
                if self.owners[name] == owner and parameter.requires_grad:
                    kinds.setdefault(parameter.dtype, []).append(parameter.data)
            for tensors in kinds.values():
                flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
                messages.append(_Message(dist.broadcast(flat, owner, async_op=True), owner, flat, tensors))
        return messages

    def _take(self, messages: Sequence["_Message"]) -> None:
        """Puts what the other ranks sent into the weights."""
        for message in messages:
            assert message.work is not None
            message.work.wait()
            if message.owner != self.team.rank:
                sizes = [tensor.numel() for tensor in message.tensors]
                for tensor, piece in zip(message.tensors, message.flat.split(sizes), strict=True):
                    tensor.copy_(piece.view_as(tensor))


@dataclass(frozen=True)
class _Message:
    """Weights of one rank on their way to the others."""

    work: dist.Work | None
    owner: int
    flat: Tensor
    tensors: list[Tensor]


class Pieces(Layout):
    """Every rank holds a slice of each weight; whole ones exist while a block computes, and where they are updated."""

    def __init__(
        self, model: LanguageModel, optimizer: OptimizerConfig, scales: Mapping[str, RateScale] | None, team: Team
    ) -> None:
        _require_sliceable(model)
        # A model returns states that are views; nothing writes to them in training.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        self.team, self.model = team, model
        self.owners = deal_out(model, team.world)
        named = model.named_parameters()
        own = {name: parameter.detach().clone() for name, parameter in named if self.owners[name] == team.rank}
        self.optimizer = optimizer.build(shadow(model, own), scales)
        mesh = init_device_mesh(model.device.type, (team.world,))
        if model.config.depth.kind == "plain":
            for block in [module for module in model.modules() if isinstance(module, Block)]:
                fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        self.parameters = dict(model.named_parameters())

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def norm(self) -> float:
        squares = [float(torch.linalg.vector_norm(gradient)) ** 2 for gradient in self.gradients()]
        return self.team.sum([sum(squares)])[0] ** 0.5

    def update(self, factor: float, progress: float) -> None:
        held = self.optimizer.named_parameters()
        moved = [name for name, parameter in self.parameters.items() if parameter.grad is not None]
        for name in moved:
            parameter, owner = self.parameters[name], self.owners[name]
            assert parameter.grad is not None
            weight, gradient = self._collect(parameter, owner), self._collect(parameter.grad, owner)
            if weight is not None:
                held[name].data.copy_(weight)
                held[name].grad = gradient
        self.optimizer.step(factor, progress)
        self.optimizer.zero_grad()
        for name in moved:
            self._hand_out(self.parameters[name], held[name].data, self.owners[name])

    def optimizer_state(self) -> dict[str, Tensor]:
        return gathered_state(self.optimizer, self.owners, self.team.rank, self.model.device)

    def settle(self) -> None:
        assert isinstance(self.model, FSDPModule)
        self.model.reshard()

    def _rows(self, tensor: Tensor) -> int:
        return -(-tensor.shape[0] // self.team.world)

    def _collect(self, sliced: Tensor, owner: int) -> Tensor | None:
        """The whole tensor at its owner, None elsewhere."""
        held, rows = local(sliced), self._rows(sliced)
        sent = held.new_zeros(rows, *held.shape[1:])
        sent[: len(held)] = held
        mine = owner == self.team.rank
        parts = [torch.empty_like(sent) for _ in range(self.team.world)] if mine else None
        dist.gather(sent, parts, owner)
        return torch.cat(parts)[: sliced.shape[0]] if parts is not None else None

    def _hand_out(self, sliced: Tensor, new: Tensor, owner: int) -> None:
        """Replaces every rank's slice by its part of the owner's whole tensor."""
        held, rows = local(sliced), self._rows(sliced)
        parts = None
        if owner == self.team.rank:
            padded = new.new_zeros(rows * self.team.world, *new.shape[1:])
            padded[: len(new)] = new
            parts = list(padded.split(rows))
        got = held.new_empty(rows, *held.shape[1:])
        dist.scatter(got, parts, owner)
        held.copy_(got[: len(held)])


def _require_sliceable(model: nn.Module) -> None:
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    types = {parameter.dtype for parameter in model.parameters()}
    if scalars or len(types) > 1:
        seen = f"{scalars[0]} is a single number" if scalars else "its weights are stored in several types"
        raise ConfigError(f"This model cannot be cut into pieces: {seen}. train.parallel=ddp would work.")
