"""The words that ask a small model for a summary, and what makes its reply unusable. Knows no model.

Short and plain: half a billion weights follow one instruction, not five. It stands behind the text, nearest to the
reply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cache

from kvloom.reduce.fit import Count


@dataclass(frozen=True)
class Wording:
    """What stands around the text in a prompt."""

    before: str
    after: str

    def prompt(self, text: str) -> str:
        return self.before + text + self.after


_KEEP = "Keep names, numbers, dates, file names, decisions, wishes and open questions."

CONVERSATION = (
    Wording(
        "<conversation>\n",
        "</conversation>\n\nSum up this conversation in short notes. One note for each fact, at most 10 words. Start "
        f"every note with '- '. {_KEEP} Leave out explanations and examples.",
    ),
    Wording(
        "A user and an assistant talked:\n\n---\n",
        "---\n\nWhat must be remembered of this? Answer in your own words, one short line for each fact. "
        "Do not repeat the conversation.",
    ),
)
"""For turns: the first wording, and another for a model that made nothing of it."""

NOTES = (
    Wording(
        "<notes>\n",
        "\n</notes>\n\nWrite these notes again in fewer words, in the same order. Start every note with '- '. "
        f"{_KEEP} Join what belongs together.",
    ),
    Wording(
        "Notes:\n\n---\n",
        "\n---\n\nMake these notes shorter: join lines that belong together, drop none of the names and numbers. "
        "Answer with the shorter notes only.",
    ),
)
"""For summaries that are summarized again."""


DOCUMENT = (
    Wording(
        "<text>\n",
        "\n</text>\n\nSum up this part of a longer text in short notes. One note for each fact, at most 20 words. "
        "Start every note with '- '. Keep names, numbers, dates and what follows from what.",
    ),
    Wording(
        "This is a part of a longer text:\n\n---\n",
        "\n---\n\nWhat does it say? Answer in your own words, one short line for each fact. Do not repeat the text.",
    ),
)
"""For a part of a document."""

_WHOLE = "Write full sentences. Begin with what it is about."


def abstract_of_text(num_words: int) -> tuple[Wording, ...]:
    """For a document that one prompt holds: its summary at once."""
    return (
        Wording("<text>\n", f"\n</text>\n\nSum up this text in at most {num_words} words. {_WHOLE}"),
        Wording(
            "This is a text:\n\n---\n",
            f"\n---\n\nTell somebody who has not read it what it says, in at most {num_words} words of your own.",
        ),
    )


def abstract_of_notes(num_words: int) -> tuple[Wording, ...]:
    """For the notes that were taken of a document: what is made of them at last."""
    return (
        Wording(
            "<notes>\n",
            "\n</notes>\n\nThese notes were taken of a longer text, in its order. Sum up that text in at most "
            f"{num_words} words. {_WHOLE}",
        ),
        Wording(
            "Notes that were taken of a longer text:\n\n---\n",
            f"\n---\n\nTell somebody who has not read the text what it says, in at most {num_words} words of your own.",
        ),
    )


class Unusable(Enum):
    """Why a reply is no summary."""

    EMPTY = "empty"
    SPECIAL_TOKENS = "special tokens"
    ECHO = "an echo of the prompt"
    TOO_LONG = "no shorter than what it replaces"


_SPECIAL = re.compile(r"<\|[^<>\s]{1,48}\|>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]")
_ECHO_SHARE = 0.8
"""A reply that stands word for word in the text and is this much of it is a copy. A shorter one may be its facts."""
_MIN_ECHO_CHARS = 24
"""Fewer characters of an instruction come up by chance."""
_MAX_LINE_CHARS = 200
"""A note is a sentence or two; where notes have to be shortened, each line is one."""
_ANY = 100
"""Words of a summary; a sentence that names them is told from others by the rest of it."""
_BULLET = "- "
_PARAGRAPH = re.compile(r"(?<=[.?!])\s+|(?<=[。？！])")
_SENTENCE_ENDS = re.compile(r"(?<=[.?:!])\s|\n")


def tidy(reply: str, *, is_cut_off: bool = False) -> str:
    """The lines of a reply, each once (small models repeat themselves), without the last where it was cut off.

    Where a line is a whole paragraph, each of its sentences becomes a line.
    """
    lines = [note for line in reply.strip().splitlines() if line.strip() for note in _notes(line.rstrip())]
    if is_cut_off and len(lines) > 1:
        lines.pop()
    return "\n".join(dict.fromkeys(lines))


def _notes(line: str) -> list[str]:
    if len(line) <= _MAX_LINE_CHARS:
        return [line]
    sentences = _PARAGRAPH.split(line.strip().removeprefix(_BULLET))
    return [_BULLET + sentence for sentence in sentences if sentence]


def flaw(reply: str, text: str, count: Count) -> Unusable | None:
    """Why `reply` cannot stand for `text`, which a prompt showed; None where it can."""
    if not any(character.isalnum() for character in _SPECIAL.sub("", reply)):
        return Unusable.EMPTY
    if _SPECIAL.search(reply):
        return Unusable.SPECIAL_TOKENS
    if _is_echo(reply, text):
        return Unusable.ECHO
    return Unusable.TOO_LONG if count(reply) >= count(text) else None


def _is_echo(reply: str, text: str) -> bool:
    said, shown = _plain(reply), _plain(text)
    if any(instruction in said for instruction in _instructions()):
        return True
    return len(said) >= _ECHO_SHARE * len(shown) and said in shown


@cache
def _instructions() -> tuple[str, ...]:
    """The sentences of every wording that are long enough to be told from a fact."""
    wordings = (*CONVERSATION, *NOTES, *DOCUMENT, *abstract_of_text(_ANY), *abstract_of_notes(_ANY))
    sentences = (one for wording in wordings for one in _SENTENCE_ENDS.split(f"{wording.before}\n{wording.after}"))
    return tuple(plain for plain in map(_plain, sentences) if len(plain) >= _MIN_ECHO_CHARS)


def _plain(text: str) -> str:
    """The words alone: no list mark and no line end hides a copy."""
    return " ".join(re.findall(r"\w+", text.lower()))
