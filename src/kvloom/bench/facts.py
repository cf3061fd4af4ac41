"""Facts to plant in a conversation: somebody's thing, and a number that nobody could guess. No model, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass

_NAMES = """
Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karin Lukas Maria Nils Olga Peter Quinn Rosa Stefan Tina
Ursula Viktor Wanda Xaver Yvonne Zeno Amelia Bruno Celine Dario Edith Fabian Gloria Hannes Isabel Jakob Klara Leopold
Mirjam Norbert
"""
_THINGS = ("bicycle", "locker", "piano", "garden", "boat", "camera", "laptop", "kitchen", "office", "tent")


@dataclass(frozen=True)
class Fact:
    """A sentence, the question that it answers, and what the answer has to hold."""

    text: str
    question: str
    answer: str

    def is_in(self, reply: str) -> bool:
        return self.answer in reply


def facts(number: int) -> list[Fact]:
    """The first `number` facts; always the same. Raises ValueError above one for each name and thing."""
    names, draw = _NAMES.split(), random.Random("kvloom-facts")
    if number > len(names) * len(_THINGS):
        raise ValueError(f"{number} facts: there are {len(names) * len(_THINGS)}")
    found = []
    for place in range(number):
        rounds, index = divmod(place, len(names))
        name, thing, code = names[index], _THINGS[(place + rounds) % len(_THINGS)], str(draw.randint(1000, 9999))
        found.append(
            Fact(
                f"The access code of {name}'s {thing} is {code}.",
                f"What is the access code of {name}'s {thing}?",
                code,
            )
        )
    return found
