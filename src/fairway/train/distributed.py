"""Ranks: processes that train one model together, each on its own device.

`torchrun`, `fairway launch` or a cluster's own starter sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT; without them a process trains alone. Tensors on a CPU travel by gloo, those on GPUs by NCCL. The first
rank alone writes files.
"""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from fairway.core.errors import ConfigError, FairwayError

HEARTBEAT = "FAIRWAY_HEARTBEAT"
"""Environment variable with the descriptor of a pipe to whoever supervises this rank."""
_PATIENCE = timedelta(hours=1)


class RankLost(FairwayError):
    """Another rank has gone; this one cannot go on, and the whole job may be started again."""

    exit_code = 75


@dataclass(frozen=True)
class Team:
    """This process among those that train together; alone by default."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and talks."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64; the same numbers on every rank."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def mean(self, values: Sequence[float]) -> list[float]:
        """Means over all ranks."""
        return [value / self.world for value in self.sum(values)]

    def mean_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means of tensors over all ranks, in one message; every rank gives the same names and shapes."""
        if self.world == 1 or not tensors:
            return dict(tensors)
        flat = torch.cat([tensor.detach().double().cpu().flatten() for tensor in tensors.values()])
        means = torch.tensor(self.mean(flat.tolist()), dtype=torch.float64)
        pieces = means.split([tensor.numel() for tensor in tensors.values()])
        return {name: new.view_as(old).to(old) for (name, old), new in zip(tensors.items(), pieces, strict=True)}

    def by_first(self, values: Sequence[float]) -> list[float]:
        """What the first rank gave, on every rank."""
        return self.sum(values if self.first else [0.0] * len(values))

    def barrier(self) -> None:
        """Waits until every rank is here."""
        self.sum([0.0])

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Runs the block on the first rank, and on the others once it is done there."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()


ALONE = Team()


@contextmanager
def joined() -> Iterator[Team]:
    """Joins the ranks that the environment names, until the block ends.

    A rank that fails leaves without a word: the others notice a closed connection and raise `RankLost`.
    """
    world = _number("WORLD_SIZE", 1)
    if world == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield Team(dist.get_rank(), world)
    except FairwayError:
        _leave()
        raise
    except RuntimeError as error:
        # gloo's errors have no type of their own.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            lost = f"Rank {dist.get_rank()} of {world} lost another rank. The last checkpoint is intact."
            raise RankLost(lost) from error
        raise
    _leave()


def _leave() -> None:
    """Ends the group's threads before the interpreter does; what still holds the group goes first."""
    gc.collect()
    dist.destroy_process_group()


def beat() -> None:
    """Tells whoever supervises this rank that it is alive; nothing where nobody does."""
    pipe = os.environ.get(HEARTBEAT)
    if pipe is not None:
        os.write(int(pipe), b".")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or (name == "WORLD_SIZE" and text == "0"):
        raise ConfigError(f"The environment variable {name} is {text!r}; a whole number would work.")
    return int(text)
