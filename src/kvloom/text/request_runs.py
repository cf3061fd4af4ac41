"""Collects the segments of a marked conversation into runs of token ids, cut so that a growing one keeps them.

Knows no template: what it needs of one (where a fresh prompt ended before a reply) is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kvloom.text.conversation import Conversation
from kvloom.text.marks import Segment, SegmentKind
from kvloom.text.telling import Field, Place
from kvloom.text.tokenizer import PieceTokenizer

Sampled = Callable[[str], tuple[int, ...] | None]
"""The ids as sampled of an earlier reply, by its whole text without outer white space; None where it is not known."""


class RunKind(Enum):
    TEXT = "text"
    CHUNK = "chunk"


@dataclass(frozen=True)
class Run:
    """A run of token ids. `message_index`: the message that its content is of; for template text and tools, the one in
    front of them (0 before the first). `ref` and `part` say which part of which chunk a CHUNK is."""

    kind: RunKind
    tokens: tuple[int, ...] = field(repr=False)
    message_index: int
    ref: str = ""
    part: int = 0


@dataclass(frozen=True)
class _Bit:
    """A text on its way into a run. Strings of JSON are `is_structured`: they melt with the plain text around them, so
    that JSON is tokenized as one text; a message's content is tokenized on its own."""

    text: str
    is_template: bool = False
    is_structured: bool = False


class RunAssembly:
    """One use each. `openings`: for an assistant message's index, the template text in front of a fresh reply."""

    def __init__(
        self,
        tokenizer: PieceTokenizer,
        conversation: Conversation,
        openings: Callable[[int], str],
        sampled: Sampled,
    ) -> None:
        self._tokenizer, self._conversation = tokenizer, conversation
        self._openings, self._sampled = openings, sampled
        self._runs: list[Run] = []
        self._open: list[_Bit] = []
        self._owner: int | None = None
        self._in_tools = False
        self._has_chunk = False
        self._trailing = ""

    def runs(self, segments: Sequence[Segment], fields: Sequence[Field]) -> tuple[Run, ...]:
        between = ""
        for segment in segments:
            if segment.kind is SegmentKind.TEMPLATE:
                between += segment.text
                continue
            self._content(between, segment.text, fields[segment.index])
            between = ""
        self._finish(between)
        return tuple(self._runs)

    # -- cutting ------------------------------------------------------------------------------------------------

    def _content(self, between: str, text: str, place: Field) -> None:
        is_tools = place.place is Place.TOOLS
        owner = (self._owner or 0) if is_tools else place.message
        if self._owner is None or owner != self._owner or is_tools != self._in_tools:
            self._turn_over(between, owner, is_tools)
        elif between:
            self._open.append(_Bit(between, is_template=True))
        self._owner, self._in_tools = owner, is_tools
        if place.chunk is not None and place.chunk.runs and text == place.chunk.text:
            self._emit_open()
            for number, tokens in enumerate(place.chunk.runs):
                self._runs.append(Run(RunKind.CHUNK, tokens, owner, place.chunk.ref, number))
            self._has_chunk = True
        elif text:
            is_structured = place.place in (Place.TOOLS, Place.CALL, Place.LABEL)
            self._open.append(_Bit(text, is_structured=is_structured))

    def _turn_over(self, between: str, owner: int, is_tools: bool) -> None:
        """Deals out the template text between two messages: to the old one, to the reply's prompt, to the new one."""
        is_reply = not is_tools and self._conversation.messages[owner].role == "assistant"
        head = self._ending(between)
        if head:
            self._open.append(_Bit(head, is_template=True))
        if self._is_in_reply() or not is_reply:
            self._emit_open()
        rest = between[len(head) :]
        if is_reply:
            opening = self._openings(owner)
            is_cut = bool(opening) and between.startswith(opening) and len(opening) >= len(head)
            prompt = between[len(head) : len(opening)] if is_cut else rest
            self._open += [_Bit(prompt, is_template=True)] if prompt else []
            self._emit_open(owner if self._owner is None or self._is_in_reply() else self._owner)
            rest = rest[len(prompt) :]
        self._open += [_Bit(rest, is_template=True)] if rest else []
        self._has_chunk = False

    def _finish(self, between: str) -> None:
        if self._conversation.continues:
            self._emit_open()
            return
        head = self._ending(between) if self._is_in_reply() else ""
        if self._is_in_reply():
            self._open += [_Bit(head, is_template=True)] if head else []
            self._emit_open()
            self._in_tools = True  # what follows is no part of the reply
        rest = between[len(head) :]
        self._open += [_Bit(rest, is_template=True)] if rest else []
        self._emit_open()

    def _is_in_reply(self) -> bool:
        if self._owner is None or self._in_tools:
            return False
        return self._conversation.messages[self._owner].role == "assistant"

    def _ending(self, between: str) -> str:
        """What of the template text behind a content still belongs to it: the rest of its JSON."""
        if self._owner is None:
            return ""
        specials = self._tokenizer.specials(between) if self._in_tools or self._is_in_reply() else ()
        if self._in_tools:
            return between[: specials[0].start] if specials else between
        if not self._is_in_reply():
            return ""
        if not self._conversation.messages[self._owner].calls:
            return ""
        ends = [s.start for s in specials if self._tokenizer.vocabulary.is_end(s.token)]
        return between[: ends[0]] if ends else ""

    # -- ids ----------------------------------------------------------------------------------------------------

    def _emit_open(self, owner: int | None = None) -> None:
        """Ends the run. The first one opens with BOS where prompts do."""
        vocabulary = self._tokenizer.vocabulary
        opening = (vocabulary.bos,) if not self._runs and vocabulary.bos is not None else ()
        if self._open or opening:
            tokens = self._as_sampled() or self._ids()
            index = owner if owner is not None else self._owner or 0
            self._runs.append(Run(RunKind.TEXT, (*opening, *tokens), index))
        self._open = []

    def _as_sampled(self) -> tuple[int, ...] | None:
        """The reply's ids as they were sampled, where they still spell what the template says."""
        if not self._is_in_reply() or self._has_chunk or not self._open or all(bit.is_template for bit in self._open):
            return None
        text = "".join(bit.text for bit in self._open).strip()
        tokens = self._sampled(text) if text else None
        if not tokens or any(self._tokenizer.vocabulary.is_end(token) for token in tokens):
            return None
        return tokens if self._tokenizer.text(tokens).strip() == text else None

    def _ids(self) -> tuple[int, ...]:
        ids: list[int] = []
        melted = ""
        for place, bit in enumerate(self._open):
            if not bit.is_template:
                if bit.is_structured:
                    melted += bit.text
                else:
                    ids += self._tokenizer.content(melted)
                    ids += self._tokenizer.content(bit.text)
                    melted = ""
                continue
            is_behind = place > 0 and self._open[place - 1].is_structured
            is_before = place + 1 < len(self._open) and self._open[place + 1].is_structured
            specials = self._tokenizer.specials(bit.text) if is_behind or is_before else ()
            if (is_behind or is_before) and not specials:
                melted += bit.text
                continue
            start = specials[0].start if is_behind else 0
            stop = specials[-1].stop if is_before else len(bit.text)
            ids += self._tokenizer.content(melted + bit.text[:start])
            ids += self._tokenizer.template(bit.text[start:stop])
            melted = bit.text[stop:]
        return (*ids, *self._tokenizer.content(melted))
