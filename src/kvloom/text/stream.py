"""Token ids to text as they come: never half a character, never a part of a stop string. Knows no engine."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from kvloom.engine.base import Vocabulary
from kvloom.errors import UsageError


class TextStream:
    """The text of one reply. Feed it the sampled ids without the end token; not safe for several threads.

    `shown`: control tokens whose names are text here (a model's `<think>`); others are silent.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = (), shown: Collection[int] = frozenset()) -> None:
        if any(not word for word in stop):
            raise UsageError("a stop string must not be empty")
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._shown = frozenset(shown)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tokens: list[int] = []
        self._held = ""
        self._given: list[str] = []
        self.stopped_by = ""
        """The stop string that ended the reply, "" while none has."""

    @property
    def text(self) -> str:
        """All text given so far."""
        return "".join(self._given)

    def push(self, token: int) -> str:
        """The text that has become certain with `token`; "" after a stop string."""
        if self.stopped_by:
            return ""
        self._tokens.append(token)
        return self._give(self._decoder.decode(self._bytes(token)), is_last=False)

    def finish(self) -> str:
        """What was held back, when the reply has ended. Half a character becomes U+FFFD."""
        if self.stopped_by:
            return ""
        return self._give(self._decoder.decode(b"", final=True), is_last=True)

    def kept_tokens(self) -> tuple[int, ...]:
        """The ids whose bytes lie wholly in `text`: all of them, unless a stop string has cut the reply."""
        if not self.stopped_by:
            return tuple(self._tokens)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        num_chars, kept, limit = 0, 0, len(self.text)
        for number, token in enumerate(self._tokens, start=1):
            num_chars += len(decoder.decode(self._bytes(token)))
            if num_chars > limit:
                break
            if not decoder.getstate()[0]:
                kept = number
        return tuple(self._tokens[:kept])

    def _bytes(self, token: int) -> bytes:
        return self._vocabulary.token_bytes(token, special=token in self._shown)

    def _give(self, fresh: str, *, is_last: bool) -> str:
        held = self._held + fresh
        found = [(held.find(word), word) for word in self._stop if word in held]
        if found:
            # The first to be complete ends the reply, however the text is cut into tokens.
            at, self.stopped_by = min(found, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            held, keep = held[:at], 0
        else:
            keep = 0 if is_last else self._num_open(held)
        delta, self._held = held[: len(held) - keep], held[len(held) - keep :]
        if delta:
            self._given.append(delta)
        return delta

    def _num_open(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = 0
        for word in self._stop:
            for size in range(min(len(word) - 1, len(text)), longest, -1):
                if text.endswith(word[:size]):
                    longest = size
                    break
        return longest
