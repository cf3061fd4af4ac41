"""Marks around content, so that a rendered prompt can be cut into template text and content. Knows no templates.

A mark is a random word of letters and digits: no template has it, no document can guess it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

# A word of any render: a pattern of its own for each would fill the cache of `re`, and take longer to make than to use.
# Templates that change the case of a message change that of its marks. No two matches overlap: "k" is no digit.
_MARK = re.compile("kv([0-9a-f]{16})([0-9a-f]{8})([be])", re.IGNORECASE)


class SegmentKind(Enum):
    """Where a run of the prompt came from."""

    TEMPLATE = "template"
    SYSTEM = "system"
    CHUNK = "chunk"
    USER = "user"
    ASSISTANT = "assistant"
    REASONING = "reasoning"
    OTHER = "other"


@dataclass(frozen=True)
class Content:
    """One run of content. `index` is that of the chunk or message, 0 for the system text."""

    kind: SegmentKind
    index: int
    text: str


@dataclass(frozen=True)
class Segment:
    """A run of the rendered prompt: template text (may hold special tokens), or content (never does)."""

    kind: SegmentKind
    text: str
    index: int = 0


class Side(Enum):
    """Where marks stand: outside of a content's outer white space, inside of it (for templates that trim), or BARE,
    in place of the content (for templates that look into it)."""

    OUTSIDE = "outside"
    INSIDE = "inside"
    BARE = "bare"


class Marks:
    """The marks of one render."""

    def __init__(self, contents: Iterable[str]) -> None:
        joined = list(contents)
        self._word = secrets.token_hex(8)
        while any(self._word in text for text in joined):
            self._word = secrets.token_hex(8)
        self._contents: list[Content] = []
        self._bare: set[int] = set()

    def wrap(self, content: Content, side: Side) -> str:
        """The content's text with its marks."""
        number = len(self._contents)
        self._contents.append(content)
        before, core, after = "", content.text, ""
        if side is Side.BARE:
            self._bare.add(number)
            core = ""
        elif side is Side.INSIDE and content.text.strip():
            core = content.text.strip()
            before = content.text[: content.text.index(core)]
            after = content.text[len(before) + len(core) :]
        return f"{before}{self._mark(number, 'b')}{core}{self._mark(number, 'e')}{after}"

    def remove(self, rendered: str) -> str:
        """The render without its marks."""
        return _MARK.sub(lambda match: "" if self._is_mine(match) else match[0], rendered)

    def tail(self, rendered: str) -> str:
        """What stands behind the last mark: all of it where there is none."""
        end = 0
        for match in self._found(rendered):
            end = match.end()
        return rendered[end:]

    def cut(self, rendered: str) -> list[Segment] | None:
        """The segments between the marks, empty template runs left out; None where a pair of marks is torn."""
        segments: list[Segment] = []
        opened: Content | None = None
        number, at = -1, 0
        for match in self._found(rendered):
            text, at = rendered[at : match.start()], match.end()
            if match[3] in "bB":
                if opened is not None:
                    return None
                if text:
                    segments.append(Segment(SegmentKind.TEMPLATE, text))
                number = int(match[2], 16)
                opened = self._contents[number]
            elif opened is None or number != int(match[2], 16):
                return None
            else:
                segments.append(Segment(opened.kind, opened.text if number in self._bare else text, opened.index))
                opened = None
        if opened is not None:
            return None
        if rendered[at:]:
            segments.append(Segment(SegmentKind.TEMPLATE, rendered[at:]))
        return segments

    def _found(self, rendered: str) -> Iterator[re.Match[str]]:
        return filter(self._is_mine, _MARK.finditer(rendered))

    def _is_mine(self, match: re.Match[str]) -> bool:
        return match[1].lower() == self._word

    def _mark(self, number: int, end: str) -> str:
        return f"kv{self._word}{number:08x}{end}"


def align(segments: list[Segment], unmarked: str) -> list[Segment] | None:
    """`segments` of a marked render laid over the unmarked one, whose contents the template has altered.

    Every content must stand exactly between the same template texts, in one of the forms that templates make of it;
    None otherwise. Searching freely would be unsafe: a document can hold the template's own words.
    """
    aligned: list[Segment] = []
    at = 0
    for place, segment in enumerate(segments):
        if segment.kind is SegmentKind.TEMPLATE:
            forms: tuple[str, ...] = (segment.text,)
        else:
            forms = _forms(segment.text)
        follow = segments[place + 1] if place + 1 < len(segments) else None
        fence = follow.text if follow is not None and follow.kind is SegmentKind.TEMPLATE else ""
        ends = follow is None
        form = next(
            (f for f in forms if unmarked.startswith(f + fence, at) and not (ends and at + len(f) != len(unmarked))),
            None,
        )
        if form is None:
            return None
        aligned.append(Segment(segment.kind, form, segment.index))
        at += len(form)
    return aligned


def _forms(text: str) -> tuple[str, ...]:
    """What templates make of a content: trimmed, or without the reasoning in front of it."""
    after = text.rsplit("</think>", 1)[-1]
    forms = (text, text.strip(), text.lstrip(), text.rstrip(), after, after.lstrip("\n"), after.strip())
    return tuple(dict.fromkeys(forms))
