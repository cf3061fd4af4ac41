"""Cuts a document into passages: small enough to choose between, each with its lines and heading. Knows no index."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvloom.read.document import DocumentKind
from kvloom.text.splitter import SplitSizes, split

PASSAGE_SIZES = SplitSizes(whole_tokens=1024, least_tokens=256, rank_chars=48)
"""About 550 tokens. Of half the size twice as many are needed, and in splice more of them has not been read behind
anything (docs/decisions/libraries.md)."""

_MAX_HEADING_CHARS = 120
_MAX_LEVEL = 3
"""Deeper headings take the place of each other: a way of three names says where one is."""
_JOINT = " › "
_LINE_END = re.compile(r"\r\n|\r|\n")

_MARKDOWN_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.+?)\s*#*\s*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_UNDERLINE = re.compile(r"(=|-|~|\^|\*)\1{2,}\s*$")
_CHAPTER = re.compile(r"\s*((?:chapter|part|book|act|scene|section|appendix)\s+\w+\b.{0,80})$", re.IGNORECASE)
_DEFINITION = re.compile(
    r"(\s*)(?:(?:export|default|pub|public|private|protected|static|final|abstract|async|inline|unsafe|extern)\s+)*"
    r"((?:def|class|func|fn|function|struct|impl|interface|enum|trait|module|namespace)\s+[^\s({:<]+)"
)


@dataclass(frozen=True)
class Passage:
    """A part of a document. `heading`: the way to it by headings, definitions or pages; empty before the first."""

    text: str = field(repr=False)
    first_line: int
    last_line: int
    heading: str


def passages(
    text: str, kind: DocumentKind = DocumentKind.PROSE, sizes: SplitSizes | None = None
) -> tuple[Passage, ...]:
    """The passages of `text`; joined, they are `text`. Borders follow its structure, so edits stay local."""
    ends = [match.end() for match in _LINE_END.finditer(text)]
    marks = list(_headings(text, kind))
    mark_places = [place for place, _ in marks]
    found: list[Passage] = []
    start = 0
    for part in split(text, sizes or PASSAGE_SIZES):
        stop = start + len(part)
        # What it opens with counts, even behind empty lines.
        first_word = start + len(part) - len(part.lstrip())
        number = bisect_right(mark_places, first_word) - 1
        heading = marks[number][1] if number >= 0 else ""
        if kind is DocumentKind.PDF:
            last_number = bisect_right(mark_places, start + len(part.rstrip()) - 1) - 1
            heading = f"pages {number + 1}-{last_number + 1}" if last_number > number else heading
        last = max(start, stop - 1)
        found.append(Passage(part, bisect_right(ends, start) + 1, bisect_right(ends, last) + 1, heading))
        start = stop
    return tuple(found)


def _headings(text: str, kind: DocumentKind) -> Iterator[tuple[int, str]]:
    """Where each heading begins, and the way of headings that holds from there."""
    if kind is DocumentKind.PDF:
        yield from _pages(text)
        return
    find = {DocumentKind.CODE: _definitions, DocumentKind.PROSE: _titles}.get(kind, _marked)
    way: list[tuple[int, str]] = []
    for place, level, title in find(text):
        way = [(above, name) for above, name in way if above < level][: _MAX_LEVEL - 1]
        way.append((level, title[:_MAX_HEADING_CHARS]))
        yield place, _JOINT.join(name for _, name in way)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    place = 0
    for line in text.splitlines(keepends=True):
        yield place, line
        place += len(line)


def _marked(text: str) -> Iterator[tuple[int, int, str]]:
    """Markdown's headings, by `#` and by underlines; what stands in fenced code is none."""
    fence = ""
    before, before_place = "", 0
    for place, line in _lines(text):
        if mark := _FENCE.match(line):
            fence = "" if fence == mark[1] else fence or mark[1]
        elif not fence:
            if heading := _MARKDOWN_HEADING.match(line):
                yield place, len(heading[1]), heading[2]
            elif (
                before.strip() and _UNDERLINE.match(line) and line[0] in "=-" and not before.startswith(("-", "|", " "))
            ):
                yield before_place, 1 if line[0] == "=" else 2, before.strip()
        before, before_place = line, place


def _titles(text: str) -> Iterator[tuple[int, int, str]]:
    """Underlined lines, as reStructuredText has them, and lines that say that they open a chapter."""
    levels: dict[str, int] = {}
    before, before_place = "", 0
    for place, line in _lines(text):
        if _UNDERLINE.match(line) and 0 < len(before.strip()) <= len(line.strip()) + 2 and before[0] not in " =-~^*|+":
            yield before_place, levels.setdefault(line[0], len(levels) + 1), before.strip()
        elif not before.strip() and (chapter := _CHAPTER.match(line)):
            yield place, levels.setdefault("chapter", 0), chapter[1].strip()
        before, before_place = line, place


def _definitions(text: str) -> Iterator[tuple[int, int, str]]:
    for place, line in _lines(text):
        if definition := _DEFINITION.match(line):
            yield place, 1 + len(definition[1].expandtabs(4)), definition[2]


def _pages(text: str) -> Iterator[tuple[int, str]]:
    yield 0, "page 1"
    for number, match in enumerate(re.finditer("\f", text), start=2):
        yield match.start(), f"page {number}"
