"""What the linear maps of a model see on real text, layer by layer, each behind the compressed layers
before it.

All calibration sequences run through the model in one forward. When it reaches a linear map, the statistics
of its input are complete, the map is treated on the spot, and the forward goes on with the treated weight:
so every map is fitted to the inputs it will really see, for any way of composing layers. A weight that is
used several times (shared or looped layers, experts called in pieces) gets the sum over all its uses: it is
treated after a forward of its own, and the maps behind it in another.

Shape key: B batch, T time, N tokens of all uses, C inputs of a map.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fairway.compress.parts import Statistics
from fairway.core.errors import ConfigError
from fairway.core.log import Event, Listener, silent
from fairway.model.linear import Linear
from fairway.model.lm import LanguageModel

Treat = Callable[[str, Statistics], Tensor | None]
"""Takes a parameter's name and statistics; returns the weight to go on with, or None to leave it."""

_CHUNK = 8192


def gather(model: LanguageModel, calibration: Sequence[Tensor]) -> dict[str, Statistics]:
    """Statistics of every linear map that the text reaches, by its parameter's name; the model stays as it
    is.
    """
    found: dict[str, Statistics] = {}
    sums = {name: _Sum() for name in linear_weights(model).values()}
    with _watched(model, lambda name, x_NC: sums[name].add(x_NC)):
        _forward(model, calibration)
    for name, total in sums.items():
        if total.gram_CC is not None:
            found[name] = total.statistics()
    return found


def sequentially(
    model: LanguageModel, calibration: Sequence[Tensor], treat: Treat, listener: Listener = silent
) -> None:
    """Calls `treat` once for every linear map that the text reaches, in the order of their first use."""
    uses = _uses(model, calibration)
    weights = {name: module.weight for module, name in linear_weights(model).items()}
    shared = [name for name, count in uses.items() if count > 1]
    first_shared = list(uses).index(shared[0]) if shared else len(uses)
    before = [name for name, count in uses.items() if count == 1][:first_shared]
    after = [name for name, count in uses.items() if count == 1][first_shared:]
    done = 0

    def finish(name: str, statistics: Statistics) -> None:
        nonlocal done
        new = treat(name, statistics)
        if new is not None:
            weights[name].data.copy_(new)
        done += 1
        listener(Event("calibrate", done / len(uses)))

    sums = {name: _Sum() for name in shared}
    _pass(model, calibration, before, sums, finish)
    for name, total in sums.items():
        finish(name, total.statistics())
    if after:
        _pass(model, calibration, after, {}, finish)


def linear_weights(model: LanguageModel) -> dict[Linear, str]:
    """Every linear map that owns its weight, with the weight's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {module: names[id(module.weight)] for module in model.modules() if isinstance(module, Linear)}


def last_inputs(model: LanguageModel, tokens_BT: Tensor) -> dict[str, Tensor]:
    """What every linear map that is reached saw in the last row of its last use, (C), by its weight's name."""
    found: dict[str, Tensor] = {}

    def see(name: str, x_NC: Tensor) -> None:
        if len(x_NC):
            found[name] = x_NC[-1].float().clone()

    with _watched(model, see):
        _forward(model, [tokens_BT])
    return found


class _Sum:
    """Accumulates x x^T in float64 over pieces summed in float32."""

    def __init__(self) -> None:
        self.gram_CC: Tensor | None = None
        self.tokens = 0

    def add(self, x_NC: Tensor) -> None:
        gram_CC = _gram(x_NC)
        self.gram_CC = gram_CC.clone() if self.gram_CC is None else self.gram_CC + gram_CC
        self.tokens += len(x_NC)

    def statistics(self) -> Statistics:
        assert self.gram_CC is not None
        return Statistics(self.tokens, self.gram_CC)


def _gram(x_NC: Tensor) -> Tensor:
    total = torch.zeros(x_NC.shape[1], x_NC.shape[1], dtype=torch.float64)
    for piece in x_NC.float().split(_CHUNK):
        total += (piece.T @ piece).double()
    return total


def _pass(
    model: LanguageModel,
    calibration: Sequence[Tensor],
    single: Sequence[str],
    sums: dict[str, _Sum],
    finish: Callable[[str, Statistics], None],
) -> None:
    """One forward: maps of `single` are finished as it reaches them, those of `sums` only counted."""
    waiting = set(single)
    last: list[tuple[Tensor, Tensor]] = []

    def see(name: str, x_NC: Tensor) -> None:
        if name in sums:
            sums[name].add(x_NC)
        elif name in waiting:
            waiting.discard(name)
            if not (last and _same(last[0][0], x_NC)):
                last[:] = [(x_NC, _gram(x_NC))]
            finish(name, Statistics(len(x_NC), last[0][1]))

    with _watched(model, see):
        _forward(model, calibration)


def _same(left: Tensor, right: Tensor) -> bool:
    return left.data_ptr() == right.data_ptr() and left.shape == right.shape and left.stride() == right.stride()


def _uses(model: LanguageModel, calibration: Sequence[Tensor]) -> dict[str, int]:
    uses: dict[str, int] = {}

    def count(name: str, x_NC: Tensor) -> None:
        if len(x_NC):
            uses[name] = uses.get(name, 0) + 1

    with _watched(model, count):
        _forward(model, calibration)
    return uses


@contextmanager
def _watched(model: LanguageModel, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls `see(name, x_NC)` before every use of a linear map."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: see(name, inputs[0].detach().flatten(0, -2))

    handles = [module.register_forward_pre_hook(hook(name)) for module, name in linear_weights(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward(model: LanguageModel, calibration: Sequence[Tensor]) -> None:
    if not calibration:
        raise ConfigError("This kind of compression looks at activations, but no calibration text was given to it.")
    training = model.training
    model.eval()
    with torch.no_grad():
        tokens_BT = torch.cat([batch_BT.to(model.device) for batch_BT in calibration])
        model(tokens_BT)
    model.train(training)
