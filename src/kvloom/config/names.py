"""Finds the valid name that was probably meant. Knows names only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LIKENESS = 0.5
"""Share of letters in common from which a name is worth suggesting."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name as a question, or all of them where none is near."""
    names = sorted(valid)
    close = closest(name, names)
    return f"did you mean `{close}`?" if close else "valid names: " + ", ".join(names)


def closest(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name, "" where none is near."""
    folded = {other.lower(): other for other in valid}
    wanted = name.lower()
    # A name cut short is nearer to its whole than to one that happens to be as short.
    starting = [other for other in folded if wanted and other.startswith(wanted)]
    found = starting or difflib.get_close_matches(wanted, folded, 1, _LIKENESS)
    return folded[found[0]] if found else ""
