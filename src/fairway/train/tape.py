"""A tape of a block's forward pass: what is dear is kept for the backward pass, what is cheap computed again from it.

The outputs of products with weights, of fused attention, of scans and of anything random are kept where the backward
pass needs them, and so are rotated queries and keys, which are small and end a chain of two operations each. Point
functions, norms, gates, casts, softmax and the scores of plain attention are not:
each tensor that autograd would save and that came about by those alone is replaced by the operations that lead to it
from kept ones. They run once, on demand, without autograd, and their results live until the block's gradients are done.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fairway.ops.add_rms_norm import native as _add_rms_norm
from fairway.ops.gate import apart as _gate_apart
from fairway.ops.gate import native as _gate
from fairway.ops.layer_norm import native as _layer_norm
from fairway.ops.relu2 import native as _relu2
from fairway.ops.rms_norm import native as _rms_norm
from fairway.ops.squash import native as _squash

SMALL = 64
"""Tensors smaller than this share of the block's input are kept."""

_REGISTERED = {
    "add_rms_norm": _add_rms_norm,
    "gate": _gate,
    "gate_apart": _gate_apart,
    "layer_norm": _layer_norm,
    "relu2": _relu2,
    "rms_norm": _rms_norm,
    "squash": _squash,
}
_NAMES = {
    "aten": (
        "_to_copy clone cat stack sum.dim_IntList mean.dim cumsum _softmax native_layer_norm _fused_rms_norm rms_norm "
        "index.Tensor gather index_select repeat constant_pad_nd"
    ),
    "fairway": " ".join(_REGISTERED),
}
_BATCHED = (torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default)


class Tape(TorchDispatchMode):
    """Writes down a forward pass from `x_BTD` on; `pack` and `unpack` are the hooks for what autograd saves."""

    def __init__(self, x_BTD: Tensor) -> None:
        super().__init__()
        self.small = x_BTD.nbytes // SMALL
        self.origins: dict[int, tuple[_Recipe, int] | None] = {_address(x_BTD): None}
        """By address of storage: how it comes about, or None for what depends on the input and is kept if needed."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # two wrappers less around every operation; compilation leaves code under a mode alone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        kind = _KINDS.get(func) or _kind(func)
        if kind != "view":
            self._write(kind, func, args, kwargs or {}, result)
        return result

    def pack(self, tensor: Tensor) -> "Tensor | _Piece":
        """What to keep of a tensor that autograd saves."""
        origin = self.origins.get(_address(tensor))
        return tensor if origin is None or tensor.nbytes <= self.small else _Piece.of(tensor, *origin)

    def _write(self, kind: str, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        inputs = {_address(tensor) for tensor in _tensors(args, kwargs)}
        outputs = [_address(tensor) for tensor in _results(result)]
        if kind == "mutates":
            self.origins.update(dict.fromkeys(inputs & self.origins.keys()))
        depends = not inputs.isdisjoint(self.origins)
        if depends and (kind == "cheap" or (kind == "batched" and self._widens(args, result))):
            recipe = _Recipe(func, self._described(args), self._described(kwargs))
            for index, address in enumerate(outputs):
                if address not in inputs:
                    self.origins[address] = recipe, index
            return
        for address in outputs:
            if depends and kind != "mutates":
                self.origins[address] = None
            elif address not in inputs:
                self.origins.pop(address, None)

    def _widens(self, args: tuple[Tensor, ...], result: Tensor) -> bool:
        """Whether a product of activations is larger than what it was made of, as the scores of attention are."""
        known = all(_address(tensor) in self.origins for tensor in args[-2:])
        return known and result.numel() > sum(tensor.numel() for tensor in args[-2:])

    def _described(self, value: Any) -> Any:
        """Arguments with pieces in the place of tensors that come about by recipes."""
        if isinstance(value, Tensor):
            origin = self.origins.get(_address(value))
            return _Kept(value, value._version) if origin is None else _Piece.of(value, *origin)
        if isinstance(value, dict):
            return {key: self._described(item) for key, item in value.items()}
        return type(value)(map(self._described, value)) if isinstance(value, (tuple, list)) else value


def unpack(packed: "Tensor | _Piece") -> Tensor:
    """The tensor that `Tape.pack` was given."""
    return packed if isinstance(packed, Tensor) else packed.made()


def held(packed: "Tensor | _Piece") -> Iterator[Tensor]:
    """The tensors that a packed one holds."""
    if isinstance(packed, Tensor):
        yield packed
        return
    seen: set[int] = set()
    waiting = [packed.recipe]
    while waiting:
        recipe = waiting.pop()
        if id(recipe) in seen:
            continue
        seen.add(id(recipe))
        for leaf in _leaves((recipe.args, recipe.kwargs)):
            if isinstance(leaf, _Piece):
                waiting.append(leaf.recipe)
            elif isinstance(leaf, _Kept):
                yield leaf.tensor


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor that a recipe begins with."""

    tensor: Tensor
    version: int

    def made(self) -> Tensor:
        assert self.tensor._version == self.version, "a tensor was changed in place that is needed once more"
        return self.tensor


@dataclass(slots=True, eq=False)
class _Recipe:
    """An operation to run once more, and what it gave."""

    func: Any
    args: Any
    kwargs: Any
    values: "list[Tensor] | None" = None

    def run(self) -> None:
        """Runs the operation; what only it needed is free afterwards."""
        self.values = _results(self.func(*_made(self.args), **_made(self.kwargs)))
        self.args, self.kwargs = (), {}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A view of one result of a recipe."""

    recipe: _Recipe
    index: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor, recipe: _Recipe, index: int) -> "_Piece":
        return cls(recipe, index, tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def made(self) -> Tensor:
        if self.recipe.values is None:
            _run_all(self.recipe)
        assert self.recipe.values is not None
        whole = self.recipe.values[self.index]
        if whole.dtype == self.dtype and whole.shape == self.size and whole.stride() == self.stride:
            return whole
        part = torch.empty(0, dtype=self.dtype, device=whole.device)
        return part.set_(whole.untyped_storage(), self.offset, self.size, self.stride)


def _run_all(recipe: _Recipe) -> None:
    """Runs what a recipe needs, then itself; with a stack of its own, as chains of steps in time are long."""
    stack = [recipe]
    with torch._C._AutoDispatchBelowAutograd(), torch._C._DisableAutocast():
        while stack:
            needed = [leaf.recipe for leaf in _leaves((stack[-1].args, stack[-1].kwargs)) if isinstance(leaf, _Piece)]
            missing = [one for one in needed if one.values is None]
            stack.extend(missing)
            if not missing:
                done = stack.pop()
                if done.values is None:
                    done.run()


_KINDS: dict[Any, str] = {}


def _kind(func: Any) -> str:
    """`view`, `mutates`, `cheap`, `batched` (products of activations) or `dear`."""
    kind = _KINDS[func] = _found_kind(func)
    return kind


def _found_kind(func: Any) -> str:
    if func.is_view:
        return "view"
    if func._schema.is_mutable:
        return "mutates"
    if torch.Tag.nondeterministic_seeded in func.tags:
        return "dear"
    if func in _BATCHED:
        return "batched"
    space, _, name = func.name().partition("::")
    listed = name.removesuffix(".default") in _NAMES.get(space, "").split()
    return "cheap" if listed or torch.Tag.pointwise in func.tags else "dear"


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _results(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [one for one in result if isinstance(one, Tensor)] if isinstance(result, (tuple, list)) else []


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += [one for one in value if isinstance(one, Tensor)]
    return found


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _made(value: Any) -> Any:
    if isinstance(value, (_Kept, _Piece)):
        return value.made()
    if isinstance(value, dict):
        return {key: _made(item) for key, item in value.items()}
    return type(value)(map(_made, value)) if isinstance(value, (tuple, list)) else value
