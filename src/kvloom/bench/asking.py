"""A draw brought into a session: its documents as chunks, its question and answer as token ids.

What `bench fidelity` and `bench codecs` share. Knows the façade and its probe only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvloom.bench.draws import Draw
from kvloom.bench.setting import SYSTEM
from kvloom.session.probe import Probe
from kvloom.types import ChunkId, Fidelity

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

NUM_DOCUMENTS, DOCUMENT_TOKENS, CONTEXT = 8, 192, 4096
QUESTION_ROWS = 8
"""Positions at the end of the question that are measured with the answer."""
MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Asked:
    """The question's prompt and the answer as token ids; `num_rows` positions are measured."""

    tokens: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return QUESTION_ROWS - 1 + len(self.answer)


@contextmanager
def chunks_of(loom: Loom, drawn: Draw) -> Iterator[list[ChunkId]]:
    """The draw's documents as chunks; purged at the end."""
    chunks = [loom.load_text(text, name=name).id for name, text in drawn.documents]
    try:
        yield chunks
    finally:
        for chunk in chunks:
            loom.purge(chunk)


def session_with(loom: Loom, chunks: list[ChunkId], fidelity: Fidelity) -> Session:
    session = loom.session(system=SYSTEM, fidelity=fidelity)
    session.activate(*chunks)
    return session


def asked_in(session: Session, drawn: Draw) -> Asked:
    """The draw's question and answer as this session asks them."""
    prompt = Probe(session).question_tokens(drawn.question)
    vocabulary = session.loom.engine.vocabulary
    answer = vocabulary.tokenize(drawn.answer.encode(), parse_special=False)[:MAX_ANSWER_TOKENS]
    # The last token of the answer is predicted, not given.
    return Asked((*prompt, *answer[:-1]), tuple(answer))
