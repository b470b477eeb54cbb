"""Every parameter into exactly one group, by its role and its rates."""

from collections.abc import Mapping

from torch import Tensor, nn

from fairway.model.parts import Role, parameter_roles
from fairway.optim.parts import Group, OptimizerConfig, RateScale

DECAYING = frozenset({Role.MATRIX, Role.HEAD, Role.ROUTER})
"""Roles that weight decay applies to; the embedding may be added."""


def make_groups(
    model: nn.Module, config: OptimizerConfig, scales: Mapping[str, RateScale] | None = None
) -> list[Group]:
    """Groups of parameters that share role, learning rate and weight decay, in order of appearance."""
    members: dict[tuple[Role, float, float], list[str]] = {}
    for name, role in parameter_roles(model).items():
        scale = (scales or {}).get(name, RateScale())
        decays = role in DECAYING or (role is Role.EMBEDDING and config.decay_embedding)
        rate = config.rates.of(role, config.lr) * scale.lr
        members.setdefault((role, rate, config.weight_decay * scale.weight_decay * decays), []).append(name)
    seen: dict[Role, int] = {}
    groups = []
    for (role, rate, decay), names in members.items():
        seen[role] = seen.get(role, 0) + 1
        label = role.value if seen[role] == 1 else f"{role.value}_{seen[role]}"
        groups.append(Group(label, role, tuple(names), rate, decay))
    return groups


def members_of(model: nn.Module, group: Group) -> dict[str, Tensor]:
    """The parameters of a group by name."""
    named = dict(model.named_parameters())
    return {name: named[name] for name in group.parameters}
