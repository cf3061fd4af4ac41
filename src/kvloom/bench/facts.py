"""Facts to plant in a conversation: somebody's thing, and a number that nobody could guess; and small talk to say
between them. No model, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass

_NAMES = """
Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karin Lukas Maria Nils Olga Peter Quinn Rosa Stefan Tina
Ursula Viktor Wanda Xaver Yvonne Zeno Amelia Bruno Celine Dario Edith Fabian Gloria Hannes Isabel Jakob Klara Leopold
Mirjam Norbert
"""
_THINGS = ("bicycle", "locker", "piano", "garden", "boat", "camera", "laptop", "kitchen", "office", "tent")
MAX_FACTS = len(_NAMES.split()) * len(_THINGS)

_TOPICS = """
bicycles lockers pianos gardens boats cameras laptops kitchens offices tents
bread tea chess rain snow bees owls maps clocks bridges trains ships candles mirrors soap salt glass paper ink wool silk
cheese honey apples rivers deserts volcanoes tides stars comets violins drums poems riddles kites wells mills barns
fences lanterns marbles ladders umbrellas pillows gloves buttons baskets pottery carpets stamps
"""
_REMARKS = (
    "Tell me in one sentence something about {}.",
    "Why do people care for {}? One sentence, please.",
    "I read about {} this morning. What should I know of it?",
    "What would a child ask about {}?",
    "My neighbour talks of nothing but {}. What do I answer?",
    "Is there a proverb about {}?",
    "How would you explain {} to somebody who never saw any?",
    "What is the best thing about {}, in a few words?",
    "Somebody asked me for a gift that has to do with {}. An idea?",
    "What did people do before they had {}?",
    "Give me a title for a short story about {}.",
    "What goes wrong most often with {}?",
)
MAX_SMALL_TALK = len(_TOPICS.split()) * len(_REMARKS)


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
    if number > MAX_FACTS:
        raise ValueError(f"{number} facts: there are {MAX_FACTS}")
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


def small_talk(number: int) -> str:
    """A question that has to do with no fact, though some name the same things; each `number` from 0 has its own.

    Raises ValueError above one for each topic and remark.
    """
    if number >= MAX_SMALL_TALK:
        raise ValueError(f"small talk {number}: there is {MAX_SMALL_TALK}")
    topics = _TOPICS.split()
    rounds, topic = divmod(number, len(topics))
    # Neighbours differ in both: the conversation does not go through one remark after another.
    return _REMARKS[(rounds + topic) % len(_REMARKS)].format(topics[topic])
