"""How much the loss feels what linear maps and token tables put out: the Kronecker factors of its curvature.

For a map `y = W x` the Hessian of the loss by W is about `E[g g^T] (x) E[x x^T]`, g the slope of the loss by y with
labels drawn from the model itself (Gauss-Newton); of the first factor the diagonal is kept. Tokens count as
independent, which takes maps that attention averages over (values) for less felt than they are. A token table is felt
where it is read, row v as often as token v occurs, and where it is the head, with `p (1 - p)` for each logit; the two
are joined into one pair of factors. Martens & Grosse 2015 (arXiv:1503.05671). Shape key: B batch, T time, N tokens, D
width, V vocabulary, R outputs and C inputs of a map.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional

from fairway.compress.calibrate import linear_weights
from fairway.compress.parts import Statistics
from fairway.core.errors import ConfigError
from fairway.core.seed import generator
from fairway.model.embedding.token import TokenEmbedding
from fairway.model.lm import LanguageModel


def felt_statistics(model: LanguageModel, calibration: Sequence[Tensor], seed: int = 0) -> dict[str, Statistics]:
    """Inputs and felt outputs of every linear map that the text reaches and of a token table, by parameter name."""
    if not calibration:
        raise ConfigError("This kind of compression looks at gradients, but no calibration text was given to it.")
    training, sums = model.training, _Sums(model)
    model.eval()
    with ExitStack() as stack:
        for module, name in linear_weights(model).items():
            stack.callback(module.register_forward_pre_hook(sums.inputs(name)).remove)
            stack.callback(module.register_forward_hook(sums.outputs(name)).remove)
        stack.callback(model.embedding.register_forward_hook(sums.embedded).remove)
        for index, tokens_BT in enumerate(calibration):
            sums.add(tokens_BT.to(model.device), generator(seed, "felt", index))
    model.train(training)
    return sums.statistics()


class _Sums:
    """Second moments over batches."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.tokens = 0
        self.grams: dict[str, Tensor] = {}
        self.felt: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.table = _Table(model) if isinstance(model.embedding, TokenEmbedding) else None
        self._slope_ND: Tensor | None = None

    def inputs(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x_NC = inputs[0].detach().flatten(0, -2).float()
            _add(self.grams, name, (x_NC.T @ x_NC).double())
            self.counts[name] = self.counts.get(name, 0) + len(x_NC)

        return see

    def outputs(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def feel(slope: Tensor) -> None:
            _add(self.felt, name, slope.detach().flatten(0, -2).double().square().sum(dim=0))

        def see(_: nn.Module, __: tuple[Tensor, ...], y: Tensor) -> None:
            if y.requires_grad:
                y.register_hook(feel)

        return see

    def embedded(self, _: nn.Module, __: tuple[Tensor, ...], output: tuple[Tensor, object]) -> None:
        entered_BTD = output[0]
        if not entered_BTD.requires_grad:
            entered_BTD.requires_grad_(True)
        entered_BTD.register_hook(self._feel_entered)

    def _feel_entered(self, slope_BTD: Tensor) -> None:
        self._slope_ND = slope_BTD.detach().flatten(0, 1)

    def add(self, tokens_BT: Tensor, random: torch.Generator) -> None:
        """One batch: forward, labels from the model, backward."""
        with torch.enable_grad():
            hidden_BTD = self.model(tokens_BT).hidden_BTD
            logits_NV = self.model.logits(hidden_BTD).flatten(0, 1).float()
            chances_NV = logits_NV.detach().softmax(dim=-1)
            labels_N = torch.multinomial(chances_NV.cpu(), 1, generator=random)[:, 0].to(tokens_BT.device)
            functional.cross_entropy(logits_NV, labels_N, reduction="sum").backward()
        self.tokens += tokens_BT.numel()
        assert self._slope_ND is not None
        if self.table is not None:
            hidden_ND = hidden_BTD.detach().flatten(0, 1)
            self.table.add(tokens_BT.flatten(), self._slope_ND, hidden_ND, logits_NV.detach())

    def statistics(self) -> dict[str, Statistics]:
        found = {
            name: Statistics(self.counts[name], gram_CC, self.felt[name] / self.tokens)
            for name, gram_CC in self.grams.items()
            if name in self.felt
        }
        return found if self.table is None else found | self.table.statistics(self.tokens)


class _Table:
    """What a token table sees as input and, where it is tied, as head."""

    def __init__(self, model: LanguageModel) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        table_VD = model.embedding.weight
        assert isinstance(table_VD, Tensor)
        self.name = names[id(table_VD)]
        self.tied = model.head.own is None
        self.cap, self.scale = model.head.config.softcap, model.head.config.scale
        vocabulary, width = table_VD.shape
        self.read_V = torch.zeros(vocabulary, dtype=torch.float64)
        self.logits_V = torch.zeros(vocabulary, dtype=torch.float64)
        self.slopes_DD, self.hidden_DD = torch.zeros(2, width, width, dtype=torch.float64)

    def add(self, tokens_N: Tensor, slope_ND: Tensor, hidden_ND: Tensor, logits_NV: Tensor) -> None:
        self.read_V += torch.bincount(tokens_N, minlength=len(self.read_V)).double()
        self.slopes_DD += (slope_ND.float().T @ slope_ND.float()).double()
        if self.tied:
            chances_NV = logits_NV.softmax(dim=-1)
            slope_NV = self.scale * (1.0 if self.cap is None else 1 - (logits_NV / self.cap).square())
            self.logits_V += (chances_NV * (1 - chances_NV) * slope_NV**2).double().sum(dim=0)
            self.hidden_DD += (hidden_ND.float().T @ hidden_ND.float()).double()

    def statistics(self, tokens: int) -> dict[str, Statistics]:
        """One pair of factors whose traces, row by row, are those of both uses together."""
        if not float(self.slopes_DD.trace()) + float(self.hidden_DD.trace()):
            return {}
        joint_DD = self.hidden_DD * self.logits_V.sum() + self.slopes_DD * self.read_V.sum()
        felt_V = (self.logits_V * self.hidden_DD.trace() + self.read_V * self.slopes_DD.trace()) / tokens**2
        return {self.name: Statistics(1, joint_DD / joint_DD.trace(), felt_V)}


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
