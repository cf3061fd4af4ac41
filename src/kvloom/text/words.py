"""Cuts a text into the words that full text search compares. Knows no index and no language.

SQLite's tokenizers cut at spaces and signs; what they would miss is spaced out before they see it.
"""

from __future__ import annotations

import re

TOKENIZER = "porter unicode61"
"""How FTS5 cuts and stems what `spaced` gives it."""

_WORD = re.compile(r"\w+")
_UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f])")
"""Scripts without spaces: each character is a word of its own."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_")
_JOINED = re.compile(r"\w+(?:[.:/\\-]+\w+)*")
_JOINT = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_.:/\\-]")
_MAX_NAME_WORDS = 8
"""A longer one is an address or a sentence without spaces."""


def spaced(text: str) -> str:
    """`text` with a space wherever a word ends that no space ends: in camelCase, in snake_case, in Chinese."""
    parted = _CAMEL.sub(" ", text)
    return parted if parted.isascii() else _UNSPACED.sub(r" \1 ", parted)


def word_run(text: str) -> tuple[str, ...]:
    """The words of `text` in lower case, as they follow each other."""
    return tuple(_WORD.findall(spaced(text).lower()))


def words(text: str) -> tuple[str, ...]:
    """The words of `text` in lower case, each once, in their order."""
    return tuple(dict.fromkeys(word_run(text)))


def joined_names(text: str) -> tuple[str, ...]:
    """What several words make one name of (`snake_case`, `camelCase`, `module.function`, `notes.md`): its words in
    lower case with a space between, each name once."""
    names: dict[str, None] = {}
    for match in _JOINED.findall(text):
        run = word_run(match)
        if 1 < len(run) <= _MAX_NAME_WORDS and _JOINT.search(match.strip("_")):
            names[" ".join(run)] = None
    return tuple(names)
