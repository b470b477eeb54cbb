"""Decoding by carried state: prefill once, then one token at a time.

The windows are those of scoring (`window.py`): when a window is full, the next one is filled with the last L
- S inputs and decoding goes on from its state. So every distribution is the one that scoring the finished
text would use. Shape key: B batch, T time, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fairway.model.lm import LanguageModel
from fairway.model.parts import State
from fairway.serve.window import Policy


class Decoding(Protocol):
    """One growing sequence of tokens, whatever computes it."""

    def logits(self) -> Tensor:
        """Logits of the next token, (V,), good until they are asked for again."""
        ...

    def push(self, token: int) -> None:
        """Adds a token; `logits` must be read between two of them."""
        ...


class Session:
    """One growing sequence of tokens, and the logits of what follows it."""

    def __init__(self, network: LanguageModel, policy: Policy, tokens: Sequence[int]) -> None:
        assert tokens, "a sequence begins with its boundary"
        self.network = network
        self.policy = policy
        self.tokens = list(tokens)
        self._start = -1
        self._state: State | None = None
        self._input = torch.zeros(1, 1, dtype=torch.int64, device=network.device)

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits of the next token, (V,)."""
        start = self.policy.window(len(self.tokens) - 1).start
        if start != self._start:
            self._start, self._state = start, None
            inputs_BT = torch.tensor([self.tokens[start:]], device=self.network.device)
        else:
            self._input.fill_(self.tokens[-1])
            inputs_BT = self._input
        output = self.network(inputs_BT, self._state, first=inputs_BT.shape[1] - 1)
        self._state = output.state
        return self.network.logits(output.hidden_BTD)[0, 0]

    def push(self, token: int) -> None:
        """Adds a token; `logits` must be read between two of them."""
        self.tokens.append(token)


Choose = Callable[[Tensor, list[int]], Sequence[int]]


@torch.inference_mode()
def walk(network: LanguageModel, policy: Policy, boundary: int, lanes: int, at_once: int, choose: Choose) -> None:
    """Grows `lanes` sequences from the boundary to the next boundary, asking `choose` for every token.

    `choose(logits_BV, indices)` gets the logits of the sequences named by `indices` and returns their next
    tokens. Which sequences are computed together depends on their lengths alone, so two walks over the same
    tokens do the same arithmetic bit for bit.
    """
    histories = [[boundary] for _ in range(lanes)]
    open_lanes = list(range(lanes))
    while open_lanes:
        for begin in range(0, len(open_lanes), at_once):
            _walk_window(network, policy, boundary, histories, open_lanes[begin : begin + at_once], choose)
        open_lanes = [lane for lane in open_lanes if histories[lane][-1] != boundary or len(histories[lane]) == 1]


def _walk_window(
    network: LanguageModel,
    policy: Policy,
    boundary: int,
    histories: list[list[int]],
    rows: list[int],
    choose: Choose,
) -> None:
    """Carries some sequences of equal length through the window that scores their next targets."""
    length = len(histories[rows[0]])
    start = policy.window(length - 1).start
    inputs_BT = torch.tensor([histories[lane][start:] for lane in rows], device=network.device)
    state: State = ()
    alive = list(range(len(rows)))
    for _ in range(start + policy.length - length + 1):
        output = network(inputs_BT, state or None)
        state = output.state
        logits_BV = network.logits(output.hidden_BTD[:, -1:])[:, 0]
        chosen = choose(logits_BV[alive] if len(alive) < len(rows) else logits_BV, [rows[place] for place in alive])
        following = [boundary] * len(rows)
        for place, token in zip(alive, chosen, strict=True):
            histories[rows[place]].append(token)
            following[place] = token
        alive = [place for place in alive if following[place] != boundary]
        if not alive:
            return
        if len(alive) <= len(rows) // 2:
            state = tuple(part[alive] for part in state)
            rows, following = [rows[place] for place in alive], [following[place] for place in alive]
            alive = list(range(len(rows)))
        inputs_BT = torch.tensor(following, device=network.device)[:, None]
