"""Ways to count tokens for the tests: each is odd in a way in which real tokenizers are."""

from __future__ import annotations

import re

from kvloom.reduce.fit import Count
from kvloom.text.tokenizer import PieceTokenizer
from tests.unit.text.vocabularies import LexiconVocabulary

_WORD = re.compile(r"\s*\w{1,9}|\s*[^\w\s]|\s+")


def by_bytes(text: str) -> int:
    """A character may be four tokens."""
    return len(text.encode())


def by_words(text: str) -> int:
    """Nine letters may be one token."""
    return len(_WORD.findall(text))


_LEXICON = PieceTokenizer(LexiconVocabulary())
_SPM = PieceTokenizer(LexiconVocabulary(is_spm=True))


def by_lexicon(text: str) -> int:
    """Longest match: one character more may make fewer tokens."""
    return len(_LEXICON.content(text))


def by_sentencepiece(text: str) -> int:
    """A text is tokenized behind a guard."""
    return len(_SPM.content(text))


COUNTS: dict[str, Count] = {
    "bytes": by_bytes,
    "words": by_words,
    "lexicon": by_lexicon,
    "sentencepiece": by_sentencepiece,
}
