"""Prompts whose replies are remembered by what they were made of, and texts packed into what a prompt can hold.

Knows no engine and no disk: the model is a function, and so is what remembers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvloom.errors import CancelledError
from kvloom.reduce.fit import Count
from kvloom.reduce.summarize import Completer, Watch

VERSION = 1
"""Of what a key is made of. Another one finds no earlier reply."""


class Results(Protocol):
    """Replies by the digest of what they were made of. What `put` returned from stays."""

    def get(self, key: str) -> str | None: ...

    def put(self, key: str, reply: str) -> None: ...


class MemoryResults:
    """Results for as long as this object is there."""

    def __init__(self) -> None:
        self._replies: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        return self._replies.get(key)

    def put(self, key: str, reply: str) -> None:
        self._replies[key] = reply


@dataclass(frozen=True)
class TextModel:
    """A model as a function. `window_tokens`: what a prompt and its reply may take together, without the template.

    `name` stands for all that decides a reply beside the prompt: weights, sampling, system text. Two models of one name
    are taken to reply alike, so their replies are not to be drawn at random.
    """

    name: str
    complete: Completer
    count: Count
    window_tokens: int


class Asker:
    """Asks one model, one prompt after the other; what was asked before is found in the results.

    `num_asked` prompts were computed, `num_found` were not. Progress counts the steps that its caller counts.
    """

    def __init__(self, model: TextModel, results: Results, watch: Watch) -> None:
        self.model = model
        self._results, self._watch = results, watch
        self.num_asked = self.num_found = 0
        self._done = self._total = self._num_known = 0
        self._num_asked_before = 0

    def ask(self, prompt: str, max_tokens: int) -> str:
        """The reply. Raises CancelledError before a prompt is computed; what was found before stays found."""
        key = key_of(self.model.name, prompt, max_tokens)
        known = self._results.get(key)
        if known is not None:
            self.num_found += 1
            return known
        if self._watch.is_cancelled():
            raise CancelledError(
                f"stopped after {self._done} of {self._total} steps; they are kept: run it again to go on"
            )
        reply = self.model.complete(prompt, max_tokens)
        self._results.put(key, reply)
        self.num_asked += 1
        return reply

    def expect(self, num_steps: int) -> None:
        """So many steps more are to come."""
        self._total += num_steps
        self._watch.progress(self._done, self._total)

    def step(self) -> None:
        """One of them is done."""
        self._done += 1
        if self.num_asked == self._num_asked_before:
            self._num_known += 1
            self._watch.known(self._num_known)
        self._num_asked_before = self.num_asked
        self._watch.progress(self._done, self._total)


def key_of(model: str, prompt: str, max_tokens: int) -> str:
    """The digest of everything that a reply is made of."""
    parts = json.dumps([VERSION, model, max_tokens, prompt])
    return hashlib.sha256(parts.encode()).hexdigest()


def grouped(
    texts: Sequence[str], max_tokens: int, count: Count, is_border: Callable[[str], bool] = lambda _text: False
) -> list[range]:
    """Neighbours that are at most `max_tokens` together, as ranges over `texts`.

    A group has two texts at least, whatever they take, and but for the last one: so that grouping what is made of the
    groups comes to an end. One ends early behind a text that is a border: where borders are known by the text alone,
    another text in front of them moves none.
    """
    groups: list[range] = []
    start = 0
    for stop in range(1, len(texts) + 1):
        is_last = stop == len(texts)
        if not is_last and stop - start < 2:
            continue
        if is_last or is_border(texts[stop - 1]) or count("\n".join(texts[start : stop + 1])) > max_tokens:
            groups.append(range(start, stop))
            start = stop
    return groups
