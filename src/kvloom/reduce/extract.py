"""A summary without a model: the first sentences of everything, each with its share of room. Knows only counting."""

from __future__ import annotations

from collections.abc import Sequence

from kvloom.reduce.fit import Count
from kvloom.reduce.truncate import Keep, truncate

_MARK = " …"
_BULLET = "- "
_MIN_LINE_TOKENS = 6
"""Less of a line says nothing; where there are more lines than that allows, some are taken at even distances."""


def extract(openings: Sequence[str], max_tokens: int, count: Count) -> str:
    """The first sentences of turns as a list within `max_tokens`; short ones leave their rest to those behind."""
    return shortened([_BULLET + opening for opening in openings if opening.strip()], max_tokens, count)


def shortened(lines: Sequence[str], max_tokens: int, count: Count) -> str:
    """The lines within `max_tokens`, as they are if they fit; else long ones cut, and evenly chosen if not all."""
    text = "\n".join(lines)
    if count(text) <= max_tokens:
        return text
    chosen = _spread(lines, max(1, max_tokens // _MIN_LINE_TOKENS))
    kept: list[str] = []
    room = max_tokens
    for number, line in enumerate(chosen):
        share = room // (len(chosen) - number)
        short = truncate(line, max(0, share - 1), count, Keep.HEAD, _MARK).text.strip()
        if short.strip(_BULLET + _MARK):
            kept.append(short)
            room -= count(short + "\n")
    text = "\n".join(kept or chosen)
    return text if count(text) <= max_tokens else truncate(text, max_tokens, count, Keep.BOTH_ENDS, _MARK).text


def _spread(lines: Sequence[str], most: int) -> list[str]:
    if len(lines) <= most:
        return list(lines)
    return [lines[number * len(lines) // most] for number in range(most)]
