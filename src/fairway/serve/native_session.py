"""Decoding by the native step: the same windows and logits as `engine.Session`, one call of the kernel for each token.

Shape key: V vocabulary.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fairway.core.log import say_once
from fairway.core.native import level
from fairway.model.lm import LanguageModel
from fairway.ops.decode_step import native
from fairway.ops.decode_step.native import Compiled
from fairway.serve.translate import translate
from fairway.serve.translate_block import Untranslated
from fairway.serve.window import Policy


class NativeSession:
    """One growing sequence of tokens, and the logits of what follows it."""

    def __init__(self, compiled: Compiled, policy: Policy, tokens: Sequence[int]) -> None:
        assert tokens, "a sequence begins with its boundary"
        assert policy.length <= compiled.program.length
        self.policy = policy
        self.tokens = list(tokens)
        self.compiled = compiled
        self._sequence = native.Sequence(compiled)
        self._start = 0

    def logits(self) -> Tensor:
        """Logits of the next token, (V,), good until they are asked for again."""
        sequence, tokens = self._sequence, self.tokens
        if self._start + self.policy.length < len(tokens):
            self._start = self.policy.window(len(tokens) - 1).start
            sequence.forget()
        return sequence.take(tokens[self._start + sequence.seen :])

    def push(self, token: int) -> None:
        """Adds a token; `logits` must be read between two of them."""
        self.tokens.append(token)


def compiled_step(network: LanguageModel, length: int, steps: Mapping[str, Tensor]) -> Compiled | None:
    """A model's native step for windows of up to `length` tokens; None, and a notice, where it has none.

    `steps`: by the name of a parameter, what its rows are whole multiples of.
    """
    if level() is None:
        return None
    named = network.state_dict(keep_vars=True)
    try:
        program = translate(
            network, length, {id(named[name]): step_O for name, step_O in steps.items() if name in named}
        )
    except Untranslated as reason:
        say_once(f"This model decodes through PyTorch, not by the native step: {reason}.")
        return None
    return Compiled(program)
