"""Takes the text out of HTML with Beautiful Soup over lxml: headings, lists, tables and code as Markdown writes them.

Knows no style sheets and runs no scripts: what a page shows only by those is not seen.
"""

from __future__ import annotations

import re

from bs4 import BeautifulSoup, UnicodeDammit
from bs4.element import NavigableString, PageElement, PreformattedString, Tag

from kvloom.errors import ContentError
from kvloom.read.document import DocumentKind, Extract, ReadLimits

_DROPPED_TAGS = (
    "script style noscript template head title nav svg math iframe object canvas button select textarea datalist"
)
_DROPPED = frozenset(_DROPPED_TAGS.split())
_PARAGRAPH_TAGS = (
    "p div section article main header footer aside blockquote ul ol dl table figure figcaption details summary "
    "form fieldset legend address hr body pre h1 h2 h3 h4 h5 h6"
)
_PARAGRAPHS = frozenset(_PARAGRAPH_TAGS.split())
_LINES = frozenset({"li", "tr", "dt", "dd", "br", "caption"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_PERMALINK = "headerlink"
"""The class of the link to itself that Sphinx and MkDocs put behind a heading: a sign, no word of it."""
_SPACES = re.compile(r"[ \t\r\n\f]+")
_EMPTY_LINES = re.compile(r"\n{3,}")
_FENCE = "```"
_PARSER = "lxml"
"""Linear in the page whatever is in it: Python's own parser begins anew at every tag that is not closed."""


def read_html(data: bytes, name: str, limits: ReadLimits) -> Extract:
    """The text of a page. Raises ContentError for one without text. Its encoding is told by itself, or guessed."""
    num_tags = data.count(b"<")
    if num_tags > limits.max_html_tags:
        raise ContentError(f"{name} has some {num_tags:,} tags, the limit is {limits.max_html_tags:,}: split it")
    decoded = UnicodeDammit(data, is_html=True)
    if decoded.unicode_markup is None:
        raise ContentError(f"{name} is in an encoding that cannot be told: save it as UTF-8")
    # Decoded here, since libxml2 follows what a page says of its encoding even against its byte order mark.
    soup = BeautifulSoup(decoded.unicode_markup.replace("\x00", ""), _PARSER)
    text = _text(soup)
    title = _SPACES.sub(" ", soup.title.get_text()).strip() if soup.title else ""
    if title and not text.startswith("# "):
        text = f"# {title}\n\n{text}"
    text = text.encode(errors="replace").decode()
    if len(text) > limits.max_text_chars:
        raise ContentError(
            f"{name} holds {len(text):,} characters of text, the limit is {limits.max_text_chars:,}: split it"
        )
    if not text.strip():
        raise ContentError(
            f"{name} holds no text outside of scripts and fields to fill in: save the page as it is shown"
        )
    encoding = decoded.original_encoding
    note = "" if encoding in (None, "utf-8", "ascii") else f"read as {encoding}"
    return Extract(text, DocumentKind.HTML, note)


def _text(soup: BeautifulSoup) -> str:
    """Walks without recursion: pages may nest deeper than Python's stack."""
    out = _Lines()
    waiting: list[tuple[PageElement, bool]] = [(soup, False)]
    while waiting:
        element, is_end = waiting.pop()
        if isinstance(element, Tag):
            if is_end:
                out.end(element.name)
            elif element.name not in _DROPPED and not _is_permalink(element):
                out.begin(element.name)
                waiting.append((element, True))
                waiting += [(child, False) for child in reversed(element.contents)]
        elif isinstance(element, NavigableString) and not isinstance(element, PreformattedString):
            out.add(str(element))
    return out.text()


def _is_permalink(element: Tag) -> bool:
    return element.name == "a" and _PERMALINK in element.get_attribute_list("class")


class _Lines:
    """Gathers text, white space as a browser shows it."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._gap = ""
        """What stands between what was written and what comes; only written once something comes."""
        self._pending = ""
        """A heading's or list's mark, written with the text behind it; where none comes, there is no mark."""
        self._num_pre = 0
        self._is_cell_open = False

    def begin(self, name: str) -> None:
        if name in _PARAGRAPHS:
            self._break("\n\n")
        elif name in _LINES:
            self._break("\n")
        if name == "pre":
            self._num_pre += 1
            if self._num_pre == 1:
                self._write(f"{_FENCE}\n")
        elif name in _HEADINGS:
            self._pending = "#" * int(name[1]) + " "
        elif name == "li":
            self._pending = "- "
        elif name in ("td", "th"):
            if self._is_cell_open:
                self._gap = self._gap if "\n" in self._gap else " | "
            self._is_cell_open = True
        elif name == "tr":
            self._is_cell_open = False

    def end(self, name: str) -> None:
        if name == "li" or name in _HEADINGS:
            self._pending = ""
        if name == "pre" and self._num_pre:
            self._num_pre -= 1
            if not self._num_pre:
                self._gap = ""
                self._parts.append(f"\n{_FENCE}")
        if name in _PARAGRAPHS:
            self._break("\n\n")
        elif name in _LINES and name != "br":
            self._break("\n")

    def add(self, text: str) -> None:
        if self._num_pre:
            self._write(text)
            return
        text = _SPACES.sub(" ", text)
        if text.startswith(" ") and not self._gap:
            self._gap = " "
        if stripped := text.strip(" "):
            self._write(stripped)
            self._gap = " " if text.endswith(" ") else ""

    def text(self) -> str:
        return _EMPTY_LINES.sub("\n\n", "".join(self._parts)).strip("\n") + "\n" if self._parts else ""

    def _break(self, ends: str) -> None:
        self._gap = max(self._gap, ends, key=lambda gap: (gap.count("\n"), len(gap)))

    def _write(self, text: str) -> None:
        if self._parts:
            self._parts.append(self._gap)
        self._parts.append(self._pending + text)
        self._gap = self._pending = ""
