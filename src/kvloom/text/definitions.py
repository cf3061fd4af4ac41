"""What a text defines, and what a question writes as a name. Knows no index and no model.

A passage that gives a name its value says more about it than many that use the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

WORD = re.compile(r"[^\W\d]\w*|\d+")
_QUOTED = re.compile(r"`([^`]+)`|\"([^\"]+)\"|“([^”]+)”|(?<!\w)'([^'\n]+)'(?!\w)")
_IDENTIFIER = re.compile(r".*(?:_|\d|[a-z][A-Z])")
_DEFINING_WORDS = "def class function func fn fun struct enum interface trait type const let var macro define"
DEFINING = frozenset(_DEFINING_WORDS.split())
"""What follows one of these is being defined."""
_BY_WORD = re.compile(rf"\b(?:{'|'.join(sorted(DEFINING))})[ \t]+(\w+)")
_BY_SIGN = re.compile(
    r"""(?m)^[ \t]*(?:self\.|cls\.)?(\w+)[ \t]*(?::[^=\n]{1,40})?=(?!=)"""  # name = …, name: type = …
    r"""|["'](\w[^"'\n]*)["'][ \t]*:|^[ \t]*(\w+):"""  # "key": …, and a line's first word before a colon
    r"""|[(,][ \t]*(\w+)(?::[^=\n,]{1,40})?=(?!=)"""  # a parameter's default
)


def names_in(question: str) -> frozenset[str]:
    """Words that are quoted, or that look like identifiers, in lower case."""
    quoted = ["".join(group or "" for group in match.groups()) for match in _QUOTED.finditer(question)]
    names = [match.group() for match in WORD.finditer(question) if _IDENTIFIER.match(match.group())]
    return frozenset(word.group().lower() for text in quoted + names for word in WORD.finditer(text))


def given_values(text: str) -> Iterator[tuple[int, str]]:
    """Where each name stands that is given a value or an explanation, and the name in lower case."""
    for match in _BY_SIGN.finditer(text):
        group = match.lastindex or 0
        yield match.start(group), match.group(group).lower()


def defined_in(text: str) -> frozenset[str]:
    """Names that are given a value, or declared by a word such as `def`, in lower case."""
    declared = (match.group(1).lower() for match in _BY_WORD.finditer(text))
    return frozenset((*declared, *(name for _, name in given_values(text))))
