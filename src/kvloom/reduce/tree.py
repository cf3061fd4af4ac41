"""Summarizes documents of any length: notes of every part, notes of notes, and one summary at the top, as a tree.

Pure orchestration: who asks, who counts, who cuts and who remembers are given. Every node is known by what it was made
of, and borders of groups by the notes beside them: after an edit only the branches above it are computed again.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kvloom.errors import UsageError
from kvloom.reduce.asking import Asker, MemoryResults, Results, TextModel, grouped
from kvloom.reduce.extract import extract, shortened
from kvloom.reduce.fit import Count, parts
from kvloom.reduce.prompts import DOCUMENT, NOTES, Unusable, Wording, abstract_of_notes, abstract_of_text, flaw, tidy
from kvloom.reduce.spans import opening
from kvloom.reduce.summarize import MAX_PIECE_TOKENS, Watch

DEFAULT_WORDS = 200
MIN_WORDS = 10
MAX_NOTE_TOKENS = 384
"""Of the notes of one part or group: more of them and a small model begins to repeat itself."""
MIN_ROOM_TOKENS = 128
"""A window that leaves less for the text, beside the instruction and the reply, is too small to summarize in."""

_TOKENS_PER_WORD = 1.5
"""Of prose; a reply that needs more ends with its last whole sentence."""
_SEAM_TOKENS = 16
_NOTE_SHARE = 4
"""Notes take at most one part in so many of what a prompt shows, so that a group is never less than a pair."""
_BORDER_EVERY = 4
"""About one note in so many ends its group, whatever stands in front of it."""
_MAX_NAME_CHARS = 80
_TAGS = re.compile(r"^[ \t]*</?(?:text|notes)>[ \t]*$", re.MULTILINE)
"""Small models close what a prompt opened."""
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_SENTENCE_ENDS = re.compile(r"[.!?][\"')\]]*(?=\s|$)|[。！？]")

Split = Callable[[str, int], Sequence[str]]
"""Cuts a text into parts of about at most so many tokens that, joined, are the text, at places that its content alone
decides."""


@dataclass(frozen=True)
class TextSource:
    """A document under the name that its summary is shown with."""

    name: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class Node:
    """A summary of lines `first_line` to `last_line` of a document, or of several documents (`name` is empty then).

    `num_tokens`: of the text or the notes that it was made of. `is_new`: a prompt was computed for it now.
    `is_fallback`: the model gave nothing usable, and first sentences stand in for it.
    """

    text: str
    name: str
    first_line: int
    last_line: int
    num_tokens: int
    is_new: bool
    is_fallback: bool
    children: tuple[Node, ...] = field(default=(), repr=False)

    @property
    def num_nodes(self) -> int:
        return 1 + sum(child.num_nodes for child in self.children)


@dataclass(frozen=True)
class TreeSummary:
    """`num_asked` prompts were computed for it, `num_found` were known from before."""

    text: str
    num_words: int
    root: Node = field(repr=False)
    num_asked: int
    num_found: int

    @property
    def is_fallback(self) -> bool:
        return _has_fallback(self.root)


def summarize_tree(
    sources: Sequence[TextSource],
    model: TextModel,
    split: Split,
    *,
    words: int = DEFAULT_WORDS,
    results: Results | None = None,
    watch: Watch | None = None,
) -> TreeSummary:
    """One summary of all the documents in at most `words` words, and how it came about.

    Raises UsageError where there is nothing to summarize, or the model's window is too small for so many words, before
    anything is computed; CancelledError between two prompts: what was asked is found when it is asked again.
    """
    told = _named([source for source in sources if source.text.strip()])
    if not told:
        raise UsageError("there is nothing to summarize: no text was given, or only empty ones")
    rooms = _rooms(model, words)
    asker = Asker(model, MemoryResults() if results is None else results, watch or Watch())
    root = _Tree(asker, split, rooms, words).made(told)
    return TreeSummary(root.text, len(root.text.split()), root, asker.num_asked, asker.num_found)


@dataclass(frozen=True)
class _Rooms:
    """Tokens: of a text or of notes in one prompt, and of the notes made of it; the same for the last prompt."""

    text_tokens: int
    note_tokens: int
    last_text_tokens: int
    last_tokens: int


def _rooms(model: TextModel, words: int) -> _Rooms:
    if words < MIN_WORDS:
        raise UsageError(f"a summary of {words} words says nothing; give {MIN_WORDS} or more")
    window = model.window_tokens
    overhead = _overhead(model.count, (*DOCUMENT, *NOTES))
    note_tokens = min(MAX_NOTE_TOKENS, (window - overhead) // (_NOTE_SHARE + 1))
    text_tokens = min(MAX_PIECE_TOKENS, window - overhead - note_tokens)
    if text_tokens < MIN_ROOM_TOKENS:
        raise UsageError(
            f"a window of {window} tokens leaves {max(0, text_tokens)} for the text, beside the prompt and the reply; "
            f"{MIN_ROOM_TOKENS} are needed: give a larger context"
        )
    last_overhead = _overhead(model.count, (*abstract_of_text(words), *abstract_of_notes(words)))
    last_tokens = int(words * _TOKENS_PER_WORD) + _SEAM_TOKENS
    needed = max(MIN_ROOM_TOKENS, 2 * note_tokens)
    left = window - last_overhead - last_tokens
    if left < needed:
        most = int((window - last_overhead - needed - _SEAM_TOKENS) / _TOKENS_PER_WORD)
        raise UsageError(
            f"a summary of {words} words takes about {last_tokens} tokens, and the notes for it {needed}: a window of "
            f"{window} tokens makes {max(MIN_WORDS, most)} words at most; ask for fewer, or give a larger context"
        )
    return _Rooms(text_tokens, note_tokens, min(MAX_PIECE_TOKENS, left), last_tokens)


def _overhead(count: Count, wordings: Sequence[Wording]) -> int:
    return max(count(wording.prompt("")) for wording in wordings) + _SEAM_TOKENS


class _Tree:
    """The nodes of one summary, made from the leaves up."""

    def __init__(self, asker: Asker, split: Split, rooms: _Rooms, words: int) -> None:
        self._asker, self._split, self._rooms, self._words = asker, split, rooms, words
        self._count = asker.model.count

    def made(self, sources: Sequence[TextSource]) -> Node:
        leaves = [self._leaves(source) for source in sources]
        if len(sources) == 1 and len(leaves[0]) == 1 and leaves[0][0].num_tokens <= self._rooms.last_text_tokens:
            self._asker.expect(1)
            return self._abstract(leaves[0][0], abstract_of_text(self._words))
        self._asker.expect(sum(map(len, leaves)) + 1)
        noted = [[self._noted(leaf) for leaf in one] for one in leaves]
        if len(sources) == 1:
            top = self._reduced(noted[0], self._rooms.last_text_tokens)
        else:
            top = self._reduced([self._joined(nodes) for nodes in noted], self._rooms.last_text_tokens)
        return self._abstract(_over(top, _told(top)), abstract_of_notes(self._words))

    def _leaves(self, source: TextSource) -> list[Node]:
        """The parts of a document as nodes whose text is not summarized yet."""
        found: list[Node] = []
        line = 1
        for piece in self._split(source.text, self._rooms.text_tokens):
            for part in parts(piece, self._rooms.text_tokens, self._count):
                num_breaks = part.count("\n")
                last = max(line, line + num_breaks - part.endswith("\n"))
                if part.strip():
                    num_tokens = self._count(part)
                    found.append(Node(part, source.name, line, last, num_tokens, is_new=False, is_fallback=False))
                line += num_breaks
        return found

    def _joined(self, nodes: Sequence[Node]) -> Node:
        """One node for one document."""
        while len(nodes) > 1:
            nodes = self._level(nodes)
        return nodes[0]

    def _reduced(self, nodes: Sequence[Node], max_tokens: int) -> Sequence[Node]:
        """As few levels as it takes until the notes of all nodes stand in one prompt."""
        while len(nodes) > 1 and self._count(_told(nodes)) > max_tokens:
            nodes = self._level(nodes)
        return nodes

    def _level(self, nodes: Sequence[Node]) -> list[Node]:
        """The next level: groups of neighbours become a node each."""
        texts = [_entry(node, nodes) for node in nodes]
        groups = grouped(texts, self._rooms.text_tokens, self._count, _is_border)
        self._asker.expect(sum(len(group) > 1 for group in groups))
        return [self._merged([nodes[number] for number in group]) for group in groups]

    def _merged(self, nodes: Sequence[Node]) -> Node:
        if len(nodes) == 1:
            return nodes[0]
        text = _told(nodes)
        if self._count(text) > self._rooms.text_tokens:
            text = shortened(text.splitlines(), self._rooms.text_tokens, self._count)
        return self._summed(_over(nodes, text), NOTES)

    def _noted(self, leaf: Node) -> Node:
        return self._summed(leaf, DOCUMENT)

    def _summed(self, shown: Node, wordings: Sequence[Wording]) -> Node:
        """Notes of what a node shows. A reply that ends at its limit says little of the end of it: the first sentences
        of its later half stand below."""
        num_tokens = self._count(shown.text)
        limit = max(1, min(self._rooms.note_tokens, num_tokens - 1))
        num_asked = self._asker.num_asked
        note, is_cut_off = "", False
        for wording in wordings:
            reply = self._asker.ask(wording.prompt(shown.text), limit)
            is_cut_off = self._count(reply) >= limit
            note = tidy(_TAGS.sub("", reply), is_cut_off=is_cut_off)
            if flaw(note, shown.text, self._count) is None:
                break
            note = ""
        self._asker.step()
        openings = _openings(shown.text)
        end = self._sentences(openings[len(openings) // 2 :], limit // _NOTE_SHARE) if is_cut_off else ""
        if not note:
            note = self._sentences(openings, limit)
            is_fallback = True
        elif end:
            note = f"{shortened(note.splitlines(), limit - self._count(end) - 1, self._count)}\n{end}".strip()
            is_fallback = True
        else:
            is_fallback = False
        is_new = self._asker.num_asked > num_asked
        return replace(shown, text=note, num_tokens=num_tokens, is_new=is_new, is_fallback=is_fallback)

    def _abstract(self, shown: Node, wordings: Sequence[Wording]) -> Node:
        """The summary itself, of what the last node shows."""
        num_tokens, num_asked = self._count(shown.text), self._asker.num_asked
        text, is_fallback = "", True
        for wording in wordings:
            reply = self._asker.ask(wording.prompt(shown.text), self._rooms.last_tokens)
            is_cut_off = self._count(reply) >= self._rooms.last_tokens - 1
            text = within_words(_TAGS.sub("", reply).strip(), self._words, is_cut_off=is_cut_off)
            # Of few notes many words may be asked for: more than them is no flaw here.
            if flaw(text, shown.text, self._count) in (None, Unusable.TOO_LONG):
                is_fallback = False
                break
        if is_fallback:
            text = self._sentences(_openings(shown.text), self._rooms.last_tokens, self._words)
        self._asker.step()
        is_new = self._asker.num_asked > num_asked
        return replace(shown, text=text, num_tokens=num_tokens, is_new=is_new, is_fallback=is_fallback)

    def _sentences(self, sentences: Sequence[str], max_tokens: int, words: int | None = None) -> str:
        """Whole sentences as a list, evenly chosen where all are too much; of a single one that is, its beginning."""
        num_kept = len(sentences)
        while num_kept > 1:
            kept = [sentences[number * len(sentences) // num_kept] for number in range(num_kept)]
            text = extract(kept, sys.maxsize, self._count)
            if self._count(text) <= max_tokens and (words is None or len(text.split()) <= words):
                return text
            num_kept = num_kept * 3 // 4
        text = extract(sentences[:1], max_tokens, self._count)
        return text if words is None else within_words(text, words)


def _named(sources: Sequence[TextSource]) -> list[TextSource]:
    """Each under a name of its own: notes are told apart by it."""
    found: dict[str, TextSource] = {}
    for source in sources:
        wanted = name = source.name.strip()[:_MAX_NAME_CHARS] or "text"
        number = 1
        while name in found:
            number += 1
            name = f"{wanted} ({number})"
        found[name] = TextSource(name, source.text)
    return list(found.values())


def within_words(text: str, words: int, *, is_cut_off: bool = False) -> str:
    """The whole sentences of `text` within so many words; of a longer first sentence, its words.

    `is_cut_off`: it does not end where it should, so what stands behind its last sentence goes, too.
    """
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    if len(ends) <= words and not is_cut_off:
        return text
    limit = ends[words - 1] if len(ends) > words else len(text)
    sentences = [match.end() for match in _SENTENCE_ENDS.finditer(text, 0, limit)]
    return text[: sentences[-1]] if sentences else f"{text[:limit].rstrip()}…"


def _over(nodes: Sequence[Node], text: str) -> Node:
    """A node above others that shows `text`."""
    names = {node.name for node in nodes}
    if len(names) == 1:
        name, first, last = nodes[0].name, nodes[0].first_line, nodes[-1].last_line
    else:
        name, first, last = "", 0, 0
    return Node(text, name, first, last, 0, is_new=False, is_fallback=False, children=tuple(nodes))


def _told(nodes: Sequence[Node]) -> str:
    """The notes of neighbours, one below the other; of several documents each under its name."""
    return "\n".join(_entry(node, nodes) for node in nodes)


def _entry(node: Node, among: Sequence[Node]) -> str:
    is_alone = not node.name or all(one.name == node.name for one in among)
    return node.text if is_alone else f"{node.name}:\n{node.text}"


def _is_border(text: str) -> bool:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % _BORDER_EVERY == 0


def _openings(text: str) -> list[str]:
    """The first sentence of each paragraph; of notes, which have no paragraphs, of each line."""
    pieces = _PARAGRAPHS.split(text)
    if len(pieces) == 1:
        pieces = text.splitlines()
    return [first for piece in pieces if (first := opening(piece).removeprefix("- "))]


def _has_fallback(node: Node) -> bool:
    return node.is_fallback or any(map(_has_fallback, node.children))
