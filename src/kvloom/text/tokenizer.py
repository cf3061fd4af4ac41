"""Tokenizes single runs of text so that equal text gives equal ids anywhere. Knows a vocabulary, no templates.

Content is data: only `template` may turn text into special tokens.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvloom.engine.base import Vocabulary

_MAX_CACHED_TOKENS = 1_000_000
"""Ids held by the cache: about 36 MB, some forty full windows of 24k."""
_MIN_CACHED_CHARS = 256
"""Below this, hashing and locking cost as much as tokenizing."""
_SPM_FENCES = ("\n", "\x01", "|")
"""Texts to tokenize behind, so that SentencePiece adds its space in front of them and not in front of ours."""


@dataclass(frozen=True)
class SpecialToken:
    """A token that only a template may emit, and the characters `start` to `stop` of the text that it came from."""

    token: int
    start: int
    stop: int


class PieceTokenizer:
    """A vocabulary with a cache. Safe for several threads where the vocabulary's `tokenize` is.

    `reserved`: words that only the template may emit as one token. A vocabulary knows some of them (`<tool_call>`,
    `<think>`) as plain tokens, so `parse_special` alone does not keep documents from forging them.
    """

    def __init__(self, vocabulary: Vocabulary, reserved: Iterable[str] = ()) -> None:
        self.vocabulary = vocabulary
        words = sorted(word for word in set(reserved) if len(word) > 1 and self._is_one_token(word))
        self._words = frozenset(words)
        # Matches the seam behind the first character of each word: there the text is cut in two runs.
        seams = (f"(?<={re.escape(word[0])})(?={re.escape(word[1:])})" for word in words)
        self._seam = re.compile("|".join(seams)) if words else None
        self._cache: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._num_cached = 0
        self._lock = threading.Lock()

    def content(self, text: str) -> tuple[int, ...]:
        """Ids of content: `<|im_end|>` in it stays plain text."""
        return self._cached(text, parse_special=False)

    def template(self, text: str) -> tuple[int, ...]:
        """Ids of text that the template wrote: special tokens in it are tokens."""
        return self._cached(text, parse_special=True)

    def text(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """The text of token ids; control tokens as their names where `special`, else left out."""
        return b"".join(self.vocabulary.token_bytes(t, special=special) for t in tokens).decode("utf-8", "replace")

    def byte_offsets(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Where each token starts in the UTF-8 bytes of the whole, and the end: `len(tokens) + 1` numbers."""
        offsets = [0]
        for token in tokens:
            offsets.append(offsets[-1] + len(self.vocabulary.token_bytes(token, special=True)))
        return tuple(offsets)

    def specials(self, text: str) -> tuple[SpecialToken, ...]:
        """Where template text turns into tokens that content never yields, in order."""
        tokens = self.template(text)
        if tokens == self.content(text):
            return ()
        data, found, end = text.encode(), [], 0
        for token in tokens:
            spelled = self.vocabulary.token_bytes(token, special=True)
            if self.vocabulary.is_control(token) or spelled.decode("utf-8", "replace") in self._words:
                # Searched, not summed up: SentencePiece may spell a space more than the text has.
                start = data.find(spelled, end)
                if start >= 0:
                    end = start + len(spelled)
                    found.append(SpecialToken(token, len(data[:start].decode()), len(data[:end].decode())))
        return tuple(found)

    def forget(self) -> None:
        """Nothing cached any more: the vocabulary counts otherwise now."""
        with self._lock:
            self._cache.clear()
            self._num_cached = 0

    def _is_one_token(self, word: str) -> bool:
        return len(self._run(word, parse_special=False)) == 1

    def _cached(self, text: str, parse_special: bool) -> tuple[int, ...]:
        if not text:
            return ()
        if len(text) < _MIN_CACHED_CHARS:
            return self._tokenize(text, parse_special)
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() + bytes([parse_special])
        with self._lock:
            hit = self._cache.get(key)
            if hit is not None:
                self._cache.move_to_end(key)
                return hit
        tokens = self._tokenize(text, parse_special)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = tokens
                self._num_cached += len(tokens)
            while self._num_cached > _MAX_CACHED_TOKENS:
                _, old = self._cache.popitem(last=False)
                self._num_cached -= len(old)
        return tokens

    def _tokenize(self, text: str, parse_special: bool) -> tuple[int, ...]:
        if not parse_special and self._seam is not None and self._seam.search(text):
            return tuple(token for run in self._seam.split(text) if run for token in self._run(run, parse_special))
        return self._run(text, parse_special)

    def _run(self, text: str, parse_special: bool) -> tuple[int, ...]:
        data = text.encode()
        if self.vocabulary.is_spm:
            for fence in _SPM_FENCES:
                tokens = self._behind(fence.encode(), data, parse_special)
                if tokens is not None:
                    return tokens
        return tuple(self.vocabulary.tokenize(data, parse_special=parse_special))

    def _behind(self, fence: bytes, data: bytes, parse_special: bool) -> tuple[int, ...] | None:
        """Ids of `data` behind `fence`, or None where the two melt into one token or anything is lost."""
        alone = self.vocabulary.tokenize(fence, parse_special=False)
        both = self.vocabulary.tokenize(fence + data, parse_special=parse_special)
        if both[: len(alone)] != alone:
            return None
        tokens = tuple(both[len(alone) :])
        whole = b"".join(self.vocabulary.token_bytes(t, special=True) for t in tokens)
        return tokens if whole == data or parse_special else None
