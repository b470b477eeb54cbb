"""Errors that people see: one sentence that says what was seen, where, and what would work.

Everything a user can cause derives from `FairwayError`; the command line prints its message and exits
with `exit_code`, without a traceback. Broken promises of our own code are plain `assert`s.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class FairwayError(Exception):
    """A mistake in the input or the surroundings that the reader of the message can mend."""

    exit_code = 2


class ConfigError(FairwayError):
    """A recipe, an override or an option that cannot be used."""


class BudgetError(FairwayError):
    """A budget of bytes, seconds or memory that cannot be met."""


class DataError(FairwayError):
    """Text, shards or a manifest that cannot be used."""


class TokenizerError(FairwayError):
    """A tokenizer that cannot be trained, read or applied."""


class StorageError(FairwayError):
    """A file that could not be written or read back intact."""


class ArtifactError(FairwayError):
    """A `.fwy` file that is damaged, hostile or not an artifact at all."""


class CheckpointError(FairwayError):
    """A checkpoint that is damaged or belongs to another run."""


class TrainingError(FairwayError):
    """Training that cannot go on."""


class EvaluationError(FairwayError):
    """A score that may not be shown because one of its gates failed."""


class Interrupted(FairwayError):
    """The user or the system asked the process to stop; everything done so far is saved."""

    exit_code = 130


def suggestion(seen: str, known: Iterable[str]) -> str:
    """`' Did you mean "width"?'` when a known name is near `seen`, else an empty string."""
    near = get_close_matches(seen, list(known), n=1, cutoff=0.55)
    return f' Did you mean "{near[0]}"?' if near else ""
