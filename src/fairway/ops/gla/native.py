"""Gated linear attention by the native kernel; see `naive.py` for the definition."""

from fairway.ops.outer_products import Recurrence

SPAN = 32
"""Tokens between the states that are kept."""
gla = Recurrence("gla", SPAN, grouped=False)
"""The same as `naive.gla`, with a state and starts given."""
