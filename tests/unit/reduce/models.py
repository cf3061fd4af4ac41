"""A scripted model for texts: it says what a function says, counts words, and remembers what it was asked."""

from __future__ import annotations

import re
from collections.abc import Callable

from kvloom.reduce.asking import TextModel
from tests.unit.reduce.counts import by_words

Reply = Callable[[str], str]


class ScriptedModel:
    """Asked through `model`; `prompts` are those that were really computed."""

    def __init__(self, reply: Reply, window_tokens: int = 800) -> None:
        self._reply = reply
        self.prompts: list[str] = []
        self.limits: list[int] = []
        self.model = TextModel("scripted", self._complete, by_words, window_tokens)

    def _complete(self, prompt: str, max_tokens: int) -> str:
        self.prompts.append(prompt)
        self.limits.append(max_tokens)
        return self._reply(prompt)


_FACT = re.compile(r"fact(\d+)")


def told_facts(prompt: str) -> str:
    """A good model: some words for the facts that its prompt names, few for many."""
    facts = sorted({int(number) for number in _FACT.findall(prompt)})
    if not facts:
        return "- nothing of note."
    chosen = facts if len(facts) <= 6 else [*facts[:3], *facts[-3:]]
    return "\n".join(f"- Ann wrote of fact{number}." for number in chosen)
