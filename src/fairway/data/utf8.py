"""Any bytes for libraries that only take UTF-8 text: valid stretches as text, every other byte by itself."""

import re
from collections.abc import Iterator

_LONGEST_RUN = 8192
_LONG_RUN = re.compile(rf"\s{{{_LONGEST_RUN}}}|\S{{{_LONGEST_RUN}}}")
_STRAY = re.compile("([\udc80-\udcff])")


def stretches(data: bytes) -> Iterator[str | int]:
    """The text of each valid stretch and the value of each byte outside them, in order.

    A stretch is cut where 8,192 characters come without a blank, or 8,192 blanks without anything else, so
    that libraries whose time or stack grows with the length of a run stay linear. Texts without such runs are
    whole.
    """
    text = data.decode("utf-8", "surrogateescape")
    for place, part in enumerate(_STRAY.split(text)):
        if place % 2:
            yield ord(part) - 0xDC00
        else:
            yield from _cut_runs(part)


def _cut_runs(text: str) -> Iterator[str]:
    start = 0
    for match in _LONG_RUN.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    if start < len(text):
        yield text[start:]
