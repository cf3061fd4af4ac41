"""Asks for the facts of a story and says which were answered right. Knows the façade only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvloom.cli.demos.story import Fact

if TYPE_CHECKING:
    from kvloom.cli.demos import Stage
    from kvloom.session.session import Session

SYSTEM = "You answer questions about a keeper's log in one short sentence."
MAX_REPLY_TOKENS = 24
"""A sentence with a code in it."""


@dataclass(frozen=True)
class Asked:
    """One question and its reply. `mark`: the fact's."""

    mark: str
    question: str
    reply: str
    expected: str
    is_right: bool
    ttft_s: float


def ask(session: Session, fact: Fact) -> Asked:
    """The turn is taken back, so that no reply helps with another question."""
    reply = session.generate(fact.question, max_tokens=MAX_REPLY_TOKENS, temperature=0.0, seed=1)
    session.undo()
    text = reply.text.strip()
    return Asked(fact.mark, fact.question, text, fact.answer, fact.answer in text, reply.usage.ttft_s)


def ask_all(stage: Stage, session: Session, facts: Iterable[Fact]) -> tuple[Asked, ...]:
    found = []
    for fact in facts:
        asked = ask(session, fact)
        stage.tell(f"> {asked.question}\n  {asked.reply}")
        found.append(asked)
    return tuple(found)
