"""Which functions may stand where a norm stood? The four properties, measured, for every one that `norm.kind=pointwise`
offers and for two that lack some: `python examples/point_functions.py`.

A function of your own takes the place of `CANDIDATES`' values; one that is fit becomes a choice by a line in
`fairway.model.squash.FUNCTIONS`.
"""

import torch

from fairway.model.squash import FUNCTIONS, properties

CANDIDATES = {
    "relu": torch.relu,
    "shifted tanh": lambda u: torch.tanh(u) + 2,
}

columns = "".join(f"{title:>14}" for title in ("zero-centred", "bounded", "sensitive", "monotone"))
print(f"{'function':<20}{'at 0':>8}{'bound':>8}{'slope':>8}{columns}")
for name, function in {**FUNCTIONS, **CANDIDATES}.items():
    found = properties(function)
    answers = (found.zero_centred, found.bounded, found.centre_sensitive, found.monotone)
    marks = "".join(f"{'yes' if answer else 'no':>14}" for answer in answers)
    print(
        f"{name:<20}{found.centre:>8.2f}{found.bound:>8.3g}{found.slope:>8.3f}{marks}  {'fit' if found.fit() else ''}"
    )
