"""One session that is given other passages for every question, as a library gives them. Knows the façade only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvloom.bench.questions import Question
from kvloom.index import StoredPassage
from kvloom.session.probe import Probe
from kvloom.types import ChunkId, F32Array, Fidelity, Usage

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

SYSTEM = "Answer the question from the files."
TAIL = " Answer with the value only."
MAX_ANSWER_TOKENS = 32
PROBED_ROWS = 8
"""Positions at the end of the question whose distributions are compared."""


@dataclass(frozen=True)
class Given:
    """A question and the passages that it is asked with, in the order of the prompt: the best stands last."""

    question: Question
    passages: tuple[StoredPassage, ...]

    @property
    def text(self) -> str:
        return self.question.text + TAIL


@dataclass(frozen=True)
class Answer:
    """One reply. `ttft_s` counts from before the first edit of the context to the first token, `total_s` to the end.

    `chunk_tokens` are those of the passages; `prefilled_tokens` of them were computed for this reply.
    """

    text: str
    is_right: bool
    ttft_s: float
    edit_s: float
    total_s: float
    usage: Usage
    prompt: tuple[int, ...]
    chunk_tokens: int

    @property
    def prefilled_tokens(self) -> int:
        return max(0, self.chunk_tokens - self.usage.loaded_tokens - self.usage.reused_tokens)


class Reader:
    """A session that reads. A context manager."""

    def __init__(self, loom: Loom, fidelity: Fidelity) -> None:
        self._loom = loom
        self.session: Session = loom.session(system=SYSTEM, fidelity=fidelity)
        self._order: list[ChunkId] = []

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.session.close()

    def arrange(self, passages: Sequence[StoredPassage]) -> None:
        """These passages in the context, in this order; what stands there already is left where it is."""
        # Files repeat each other: equal texts are one chunk, named where it was met first.
        wanted = list(dict.fromkeys(self._loom.load_text(p.text, name=p.label).id for p in passages))
        for chunk in [chunk for chunk in self._order if chunk not in wanted]:
            self.session.remove(chunk)
            self._order.remove(chunk)
        new = [chunk for chunk in wanted if chunk not in self._order]
        if new:
            self.session.activate(*new)
            self._order += new
        for place, chunk in enumerate(wanted):
            if self._order[place] != chunk:
                self.session.move(chunk, place)
                self._order.remove(chunk)
                self._order.insert(place, chunk)

    def ask(self, given: Given) -> Answer:
        """The passages in, the question, its reply; the turn is taken back afterwards."""
        began = time.perf_counter()
        self.arrange(given.passages)
        edited = time.perf_counter()
        first = 0.0
        with self.session.stream(given.text, max_tokens=MAX_ANSWER_TOKENS, temperature=0.0) as stream:
            for _ in stream:
                first = first or time.perf_counter()
            reply = stream.reply
        ended = time.perf_counter()
        # A first token that ends the reply gives no delta: then the reply's own clock counts.
        ttft = first - began if first else edited - began + reply.usage.ttft_s
        prompt = tuple(self.session.tokens()[: reply.usage.prompt_tokens])
        self.session.undo()
        right = given.question.is_right(reply.text)
        return Answer(
            reply.text, right, ttft, edited - began, ended - began, reply.usage, prompt, self._num_chunk_tokens()
        )

    def leave(self) -> None:
        """The passages off the device: another session over them is not to find them there."""
        self.arrange(())
        self.session.warm()

    def distributions(self, given: Given) -> F32Array:
        """Log-probabilities behind the last tokens of the question, with these passages."""
        self.arrange(given.passages)
        probe = Probe(self.session)
        rows, _ = probe.log_probs(probe.question_tokens(given.text), PROBED_ROWS)
        return rows

    def _num_chunk_tokens(self) -> int:
        return sum(slot.num_tokens for slot in self.session.manifest.active if slot.ref in self._order)
