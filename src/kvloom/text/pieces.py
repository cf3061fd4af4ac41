"""Turns text into the pieces of a prompt: HEAD, CHUNKs, and for every turn its TURN and REPLY. Knows no KV.

Every run of a piece is tokenized on its own, so equal content gives equal ids wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from kvloom.engine.base import Vocabulary
from kvloom.errors import TemplateError
from kvloom.text.marks import Segment, SegmentKind
from kvloom.text.reasoning import TAGS, ReasoningTags, tags_of
from kvloom.text.splitter import SplitSizes, split
from kvloom.text.template import ChatTemplate, Marking, Message
from kvloom.text.tokenizer import PieceTokenizer

DEFAULT_SYSTEM = (
    "You are a helpful assistant. The user's files, if any, follow as <file> blocks. Answer briefly and from them."
)
"""Used where a session sets none: some templates would put a long text of their own, and small models babble on it."""

_MARKUP = re.compile(r"<[^\s<>'\"]{1,48}>|\[/?[A-Z_]{1,32}\]")


class PieceKind(Enum):
    """A prompt is one HEAD, a block of CHUNKs, then TURN and REPLY in turns."""

    HEAD = "head"
    CHUNK = "chunk"
    TURN = "turn"
    REPLY = "reply"


@dataclass(frozen=True)
class Piece:
    """A run of token ids and its text.

    `ref` is the chunk's name, or the number of the turn from 0; `part` counts the parts of a split chunk.
    """

    kind: PieceKind
    tokens: tuple[int, ...] = field(repr=False)
    text: str = field(repr=False)
    ref: str = ""
    part: int = 0


@dataclass(frozen=True)
class RenderedPrompt:
    """A whole context in pieces. See `template.Marking` for what `marking` and `reason` say."""

    pieces: tuple[Piece, ...]
    marking: Marking
    reason: str

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for piece in self.pieces for token in piece.tokens)


def num_equal_pieces(old: Sequence[Piece], new: Sequence[Piece]) -> int:
    """How many leading pieces have the same token ids: what may be kept of `old`."""
    equal = 0
    for a, b in zip(old, new, strict=False):
        if a.tokens != b.tokens:
            break
        equal += 1
    return equal


class PromptBuilder:
    """Pieces for one model. `notes` says where its template falls short. Safe for several threads.

    Raises TemplateError where the template refuses a conversation.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: str | None = None,
        *,
        default_system: str = DEFAULT_SYSTEM,
        sizes: SplitSizes | None = None,
        now: datetime | None = None,
        values: Mapping[str, object] | None = None,
    ) -> None:
        self._template = ChatTemplate(vocabulary, template, now=now, values=values)
        self.tokenizer = PieceTokenizer(vocabulary, _markup_of(self._template.source))
        self._default_system = default_system.strip() or DEFAULT_SYSTEM
        self._sizes = sizes or SplitSizes()
        self.notes = self._template.notes
        probe = self._template.render(self._default_system, (), [Message("user", "a")]).segments
        tail = probe[-1]
        self._reply_opening = tail.text if tail.kind is SegmentKind.TEMPLATE else ""
        """Template text between a question and its reply."""
        self.reasoning_tags: ReasoningTags = tags_of(self._template.source, self._reply_opening)

    @property
    def has_system_role(self) -> bool:
        return self._template.has_system_role

    @property
    def chat_template(self) -> ChatTemplate:
        """The template in use: the model's own, or the fallback that `notes` speaks of."""
        return self._template

    @property
    def template_source(self) -> str:
        """The jinja2 source in use: the model's own, or the fallback that `notes` speaks of."""
        return self._template.source

    def system_text(self, system: str) -> str:
        """The system text that is really used for `system`: trimmed, and the default where it is blank."""
        return system.strip() or self._default_system

    def head(self, system: str = "") -> Piece:
        """BOS, the template's opening and the system text."""
        return self.render(system, (), [Message("user", "a")]).pieces[0]

    def chunk_pieces(self, name: str, text: str) -> tuple[Piece, ...]:
        """One CHUNK piece for each part of `text`: header, body and separator as one run without special tokens."""
        parts = split(text, self._sizes)
        texts = [_chunk_text(name, part, is_continued=number > 0) for number, part in enumerate(parts)]
        return tuple(self._chunk_piece(body, name, number) for number, body in enumerate(texts))

    def text_pieces(self, text: str) -> tuple[tuple[int, ...], ...]:
        """The ids of each part of `text` as it stands, without header or separator."""
        return tuple(self.tokenizer.content(part) for part in split(text, self._sizes))

    def turn_prompt(self, history: Sequence[Message], user: str) -> Piece:
        """The TURN piece for a new question behind `history` (user and assistant messages, alternating)."""
        return self.render("", (), [*history, Message("user", user)]).pieces[-1]

    def render(
        self,
        system: str,
        chunks: Sequence[Piece],
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
    ) -> RenderedPrompt:
        """The whole context as the template wants it now; what it drops of earlier replies is gone here too.

        Where the last message is a reply, the template text behind it is left to the next turn.
        """
        rendered = self._template.render(
            self.system_text(system), [c.text for c in chunks], messages, add_generation_prompt=add_generation_prompt
        )
        assembly = _Assembly(self.tokenizer, chunks, messages, self._reply_opening)
        for segment in rendered.segments:
            assembly.add(segment)
        return RenderedPrompt(assembly.finish(), rendered.marking, rendered.reason)

    def _chunk_piece(self, text: str, name: str, part: int) -> Piece:
        return Piece(PieceKind.CHUNK, self.tokenizer.content(text), text, name, part)


def _markup_of(template_source: str) -> set[str]:
    """Words like `<tool_call>` or `[INST]` that a template writes, or reads in a reply."""
    return set(_MARKUP.findall(template_source)) | {tag for tags in TAGS for tag in tags}


def _chunk_text(name: str, body: str, *, is_continued: bool) -> str:
    """A part with its header and separator. No number stands in it: an edit must not change the parts behind it.

    The separator comes first: templates that trim a message would eat it at the end.
    """
    label = " ".join(name.replace('"', "'").split())
    more = " continued" if is_continued else ""
    end = "" if body.endswith("\n") else "\n"
    return f'\n\n<file name="{label}"{more}>\n{body}{end}</file>'


class _Assembly:
    """Collects segments into pieces."""

    def __init__(
        self, tokenizer: PieceTokenizer, chunks: Sequence[Piece], messages: Sequence[Message], reply_opening: str
    ) -> None:
        self._tokenizer, self._chunks, self._messages = tokenizer, chunks, messages
        self._reply_opening = reply_opening
        self._pieces: list[Piece] = []
        self._open: list[Segment] = []
        self._num_turns = 0
        self._in_reply = False

    def add(self, segment: Segment) -> None:
        if segment.kind is SegmentKind.CHUNK:
            self._pieces.append(self._chunks[segment.index])
            return
        if segment.kind is SegmentKind.REASONING or segment.kind is SegmentKind.ASSISTANT:
            self._close_turn()
        self._open.append(segment)
        if segment.kind is SegmentKind.SYSTEM:
            self._close_head()
        elif segment.kind is SegmentKind.ASSISTANT:
            self._close_reply(segment.index)

    def finish(self) -> tuple[Piece, ...]:
        if any(segment.kind is not SegmentKind.TEMPLATE for segment in self._open):
            self._emit(PieceKind.TURN, self._open)
        return tuple(self._pieces)

    def _close_head(self) -> None:
        bos, text = self._tokenizer.vocabulary.bos, "".join(s.text for s in self._open)
        tokens = self._ids(self._open)
        if bos is not None:
            tokens, text = (bos, *tokens), self._tokenizer.vocabulary.bos_text + text
        if self._pieces:
            raise TemplateError("the model's chat template does not put the system text first")
        self._pieces.append(Piece(PieceKind.HEAD, tokens, text))
        self._open = []

    def _close_turn(self) -> None:
        """Ends the TURN where its reply begins: where a fresh prompt ended when the reply was sampled."""
        if self._in_reply or not self._open:
            return
        self._in_reply = True
        last = self._open[-1]
        rest: list[Segment] = []
        opening = self._reply_opening
        if last.kind is SegmentKind.TEMPLATE and opening and last.text.startswith(opening) and last.text != opening:
            rest = [Segment(SegmentKind.TEMPLATE, last.text[len(opening) :])]
            self._open[-1] = Segment(SegmentKind.TEMPLATE, opening)
        self._emit(PieceKind.TURN, self._open)
        self._open = rest

    def _close_reply(self, index: int) -> None:
        """The ids that were sampled, where they still say what the template says; its own text otherwise."""
        self._in_reply = False
        text = "".join(segment.text for segment in self._open)
        sampled = self._messages[index].tokens
        if sampled and self._tokenizer.text(sampled).strip() == text.strip():
            self._pieces.append(
                Piece(PieceKind.REPLY, sampled, self._tokenizer.text(sampled), str(self._num_turns - 1))
            )
            self._open = []
            return
        self._emit(PieceKind.REPLY, self._open)

    def _emit(self, kind: PieceKind, segments: list[Segment]) -> None:
        if kind is PieceKind.TURN:
            self._num_turns += 1
        text = "".join(segment.text for segment in segments)
        self._pieces.append(Piece(kind, self._ids(segments), text, str(self._num_turns - 1)))
        self._open = []

    def _ids(self, segments: Sequence[Segment]) -> tuple[int, ...]:
        ids: list[int] = []
        for segment in segments:
            is_template = segment.kind is SegmentKind.TEMPLATE
            ids += self._tokenizer.template(segment.text) if is_template else self._tokenizer.content(segment.text)
        return tuple(ids)
