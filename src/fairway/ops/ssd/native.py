"""Linear recurrences with one decay for a head and token by the native kernel.

The state space of Mamba-2 (queries C, keys B, values `Delta x`, log-decays `Delta A`; see `naive.py`), retention and
linear attention are all this.
"""

from fairway.ops.outer_products import Recurrence

PIECE = 32
"""Tokens between the states that are kept."""
recurrence = Recurrence("ssd", PIECE, grouped=True, halves=True)
