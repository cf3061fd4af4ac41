"""The text that the demonstrations read: a keeper's log with three codes in it, of any length, always the same.

Made by rule, so that whether an answer is right can be checked. Knows a counter of tokens, no model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

Count = Callable[[str], int]

_WINDS = ("a calm morning", "wind from the north", "fog until noon", "light rain", "a clear sky", "a heavy swell")
_EVENTS = (
    "the lamp was cleaned and the oil filled up",
    "two fishing boats passed on their way to the harbour",
    "the cook baked bread and a pie of apples",
    "the paint of the eastern door was renewed",
    "a letter of my sister came with the mail boat",
    "the gulls took the fish that was left on the stairs",
    "the rope of the small boat was spliced again",
    "the stove smoked, and its pipe had to be swept",
)
_SECRETS = (("A", "boat house", 0.06), ("B", "oil cellar", 0.5), ("C", "signal room", 0.94))
"""The mark of a fact, what the code opens, and its place: a share of the text."""
MARKS = tuple(mark for mark, _, _ in _SECRETS)


@dataclass(frozen=True)
class Fact:
    """The code of `what`: it stands in the text once, in a line at character `place`."""

    mark: str
    what: str
    question: str
    answer: str
    place: int


@dataclass(frozen=True)
class Story:
    """A text and the facts in it, in its order."""

    text: str
    num_tokens: int
    facts: tuple[Fact, ...]


def story(count: Count, num_tokens: int, seed: int = 0, marks: Collection[str] = MARKS) -> Story:
    """A log of about `num_tokens` with the facts of these marks; another seed tells other days and has other codes."""
    draw = random.Random(f"kvloom-demo:{seed}")
    secrets = [(mark, what, share, str(draw.randint(1000, 9999))) for mark, what, share in _SECRETS]
    secrets = [secret for secret in secrets if secret[0] in marks]
    told = [f"The code of the {what} is {code}." for _, what, _, code in secrets]
    room = num_tokens - sum(count(line + "\n") for line in told)
    lines: list[str] = []
    while room > 0 or len(lines) < len(secrets):
        lines.append(f"Day {len(lines) + 1}: {draw.choice(_WINDS)}; {draw.choice(_EVENTS)}.")
        room -= count(lines[-1] + "\n")
    facts = []
    for number, ((mark, what, share, code), line) in enumerate(zip(secrets, told, strict=True)):
        at = min(len(lines), round(share * (len(lines) - number)) + number)
        lines.insert(at, line)
        facts.append((mark, what, f"What is the code of the {what}?", code, line))
    text = "\n".join(lines) + "\n"
    return Story(
        text, count(text), tuple(Fact(mark, what, q, code, text.index(line)) for mark, what, q, code, line in facts)
    )
