"""Tells a conversation to a chat template: builds what the template is handed, with marks around every content.

Knows no tokens and renders nothing. Templates differ in what they take (`Dialect`) and look into (`Manner`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from kvloom.text.conversation import ChunkText, Conversation, TemplateCall, TemplateMessage, TemplatePart
from kvloom.text.marks import Content, Marks, SegmentKind, Side
from kvloom.text.reasoning import ReasoningTags, split_reply

JOINT = "\n\n"
"""Between system texts and the user's message that they open, for templates without a system role."""
_SHORT_ID_CHARS = 9
"""Some templates (Mistral's) refuse ids of any other length."""
_SHORT_ID = re.compile(f"[A-Za-z0-9]{{{_SHORT_ID_CHARS}}}")
_SYSTEM_ROLES = ("system", "developer")

# Words of the schema language. Templates look them up by name, and they are not the caller's words: they bear no marks.
_TYPE_WORDS = frozenset({"string", "number", "integer", "boolean", "object", "array", "null", "function"})
_SCHEMA_WORDS = frozenset(
    re.findall(
        r"\S+",
        "type function name description parameters properties required items enum const default title format examples "
        "anyOf oneOf allOf not additionalProperties additional_properties nullable strict return returns response "
        "minimum maximum minLength maxLength pattern minItems maxItems uniqueItems $ref $defs definitions $schema",
    )
)


class Place(Enum):
    """What a content is: of a message, or of the tools."""

    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"
    LABEL = "label"
    """A message's name, the id of a call: templates may leave it out."""
    TOOLS = "tools"


@dataclass(frozen=True)
class Field:
    """One marked content. `message`: its message (or tool, for TOOLS). `item`: which part or call of it.

    `before` and `after`: white space of it that stands outside of its marks.
    """

    place: Place
    message: int
    item: int
    text: str
    chunk: ChunkText | None = None
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Dialect:
    """How to say things that templates want differently. The first that a template takes whole is used."""

    arguments_as_text: bool = False
    null_content: bool = False
    short_ids: bool = False
    joins_system: bool = False


@dataclass(frozen=True)
class Manner:
    """Where marks stand. `leaves_plain`: not around strings of schemas, arguments and labels that cannot hold a special
    token. `splits_replies`: reasoning that stands in a reply's text is handed over apart from it. `edge`: stands in the
    place of all white space outside of marks, to see where a template trims it. `marks_empty`: an empty text bears
    marks too, which show where its message stands."""

    side: Side
    leaves_plain: bool = False
    splits_replies: bool = False
    edge: str = ""
    marks_empty: bool = True


def dialects(conversation: Conversation) -> Iterator[Dialect]:
    """Those that make a difference for this conversation, from the usual one to the oddest."""
    messages = conversation.messages
    ids = [call.id for m in messages for call in m.calls if call.id] + [m.call_id for m in messages if m.call_id]
    has_calls = any(m.calls for m in messages)
    switches = (
        has_calls,
        any(m.calls and not m.text for m in messages),
        any(not _SHORT_ID.fullmatch(i) for i in ids),
        any(m.role in _SYSTEM_ROLES for m in messages),
    )
    choices = itertools.product(*((False, True) if is_open else (False,) for is_open in switches))
    yield from (Dialect(*choice) for choice in sorted(choices, key=sum))


def manners(conversation: Conversation, tags: ReasoningTags) -> Iterator[Manner]:
    """From marks around everything to bare marks in place of the texts."""
    messages = conversation.messages
    has_labels = bool(conversation.tools) or any(m.name or m.calls or m.call_id for m in messages)
    has_tags = any(m.role == "assistant" and not m.reasoning and tags.closing in m.text for m in messages)
    has_empty = any(not m.text.strip() for m in messages)
    choices = itertools.product(
        (False, True)[: 1 + has_labels], (True, False)[: 1 + has_empty], (False, True)[: 1 + has_tags]
    )
    for leaves_plain, marks_empty, splits in choices:
        yield Manner(Side.OUTSIDE, leaves_plain, splits, marks_empty=marks_empty)
        yield Manner(Side.INSIDE, leaves_plain, splits, marks_empty=marks_empty)
    yield Manner(Side.BARE, leaves_plain=True)


@dataclass(frozen=True)
class _Item:
    """A part of a message on its way into a content string; a joint is of no message."""

    message: int
    part: TemplatePart
    number: int
    is_joint: bool = False

    @property
    def text(self) -> str:
        return self.part if isinstance(self.part, str) else self.part.text


class Telling:
    """One conversation told in one way. Without a manner no content bears marks, but for chunks at a message's edge:
    templates that trim a message are kept from trimming those, whose ids are made already."""

    def __init__(
        self,
        conversation: Conversation,
        dialect: Dialect,
        manner: Manner | None,
        tags: ReasoningTags,
        is_plain: Callable[[str], bool],
    ) -> None:
        self._dialect, self._manner, self._tags, self._is_plain = dialect, manner, tags, is_plain
        self.marks = Marks(_texts(conversation))
        self.fields: list[Field] = []
        self._told: dict[tuple[Place, int, int, str], str] = {}
        self.entries: list[dict[str, Any]] = []
        self.num_entries_before: list[int] = []
        """For each message: how many entries stand in front of it."""
        waiting: list[_Item] = []
        for index, message in enumerate(conversation.messages):
            self.num_entries_before.append(len(self.entries))
            items = _items(index, message)
            if dialect.joins_system and message.role in _SYSTEM_ROLES and self._has_user(conversation, index):
                waiting += [*items, _Item(index, JOINT, 0, is_joint=True)]
                continue
            if message.role == "user":
                items, waiting = [*waiting, *items], []
            self.entries.append(self._entry(index, message, items))
        self.tools: list[Any] = [self._schema(tool, number, "") for number, tool in enumerate(conversation.tools)]

    # -- messages -----------------------------------------------------------------------------------------------

    @staticmethod
    def _has_user(conversation: Conversation, index: int) -> bool:
        return any(m.role == "user" for m in conversation.messages[index + 1 :])

    def _entry(self, index: int, message: TemplateMessage, items: Sequence[_Item]) -> dict[str, Any]:
        reasoning = message.reasoning
        if self._manner is not None and self._manner.splits_replies and message.role == "assistant" and not reasoning:
            reasoning, items = self._split(index, items)
        entry: dict[str, Any] = {
            "role": message.role,
            "content": self._content(index, items, has_calls=bool(message.calls)),
        }
        if reasoning:
            entry["reasoning_content"] = self._mark(Field(Place.REASONING, index, 0, reasoning), self._trims())
        if message.name:
            entry["name"] = self._string(message.name, Place.LABEL, index)
        if message.calls:
            entry["tool_calls"] = [self._call(call, index, number) for number, call in enumerate(message.calls)]
            if self._dialect.null_content and not message.text:
                entry["content"] = None
        if message.call_id:
            entry["tool_call_id"] = self._string(self._id(message.call_id), Place.LABEL, index)
        return entry

    def _split(self, index: int, items: Sequence[_Item]) -> tuple[str, Sequence[_Item]]:
        """A reply's reasoning, and what it says."""
        if len(items) != 1 or not isinstance(items[0].part, str) or self._tags.closing not in items[0].part:
            return "", items
        whole = split_reply(items[0].part, replace(self._tags, starts_inside=False))
        if not whole.reasoning:
            whole = split_reply(items[0].part, replace(self._tags, starts_inside=True))
        return whole.reasoning, [_Item(index, whole.answer, 0)] if whole.answer else []

    def _content(self, index: int, items: Sequence[_Item], *, has_calls: bool) -> str:
        if not items:
            # Marks show where an empty message stands; one with calls is looked into, to see whether it is empty.
            is_shown = self._manner is not None and self._manner.marks_empty and not has_calls
            return self._mark(Field(Place.TEXT, index, 0, "")) if is_shown else ""
        out: list[str] = []
        for place, item in enumerate(items):
            is_first, is_last = place == 0, place == len(items) - 1
            if item.is_joint:
                out.append(item.text)
                continue
            if isinstance(item.part, str):
                trims = self._trims()
                edges = (trims[0] and is_first, trims[1] and is_last)
                out.append(self._mark(Field(Place.TEXT, item.message, item.number, item.part), edges))
                continue
            field = Field(Place.TEXT, item.message, item.number, item.text, item.part)
            at_edge = (is_first and item.text[:1].isspace()) or (is_last and item.text[-1:].isspace())
            out.append(self._mark(field, is_forced=at_edge))
        return "".join(out)

    def _call(self, call: TemplateCall, index: int, number: int) -> dict[str, Any]:
        name = self._string(call.name, Place.CALL, index, number, is_forced=True)
        arguments = None if self._dialect.arguments_as_text else _parsed(call.arguments)
        told: Any
        if isinstance(arguments, dict):
            told = self._value(arguments, index, number)
        else:
            told = self._mark(Field(Place.CALL, index, number, call.arguments)) if call.arguments else ""
        entry: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": told}}
        if call.id:
            entry["id"] = self._string(self._id(call.id), Place.LABEL, index)
        return entry

    def _value(self, value: Any, index: int, number: int) -> Any:
        """A call's arguments: every string in them is content."""
        if isinstance(value, str):
            return self._string(value, Place.CALL, index, number)
        if isinstance(value, Mapping):
            # Marks are numbered in the order of their names: templates sort arguments by them.
            keys = {key: self._value(key, index, number) for key in sorted(value, key=lambda key: str(key).lower())}
            return {keys[key]: self._value(v, index, number) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(v, index, number) for v in value]
        return value

    def _schema(self, value: Any, number: int, key: str) -> Any:
        if isinstance(value, str):
            if key == "type" and value in _TYPE_WORDS:
                return value
            return self._string(value, Place.TOOLS, number, is_forced=key == "name")
        if isinstance(value, Mapping):
            keys = {k: self._schema_key(k, number) for k in sorted(value, key=lambda k: str(k).lower())}
            return {keys[k]: self._schema(v, number, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._schema(v, number, key) for v in value]
        return value

    def _schema_key(self, key: Any, number: int) -> Any:
        is_content = isinstance(key, str) and key not in _SCHEMA_WORDS
        return self._string(key, Place.TOOLS, number) if is_content else key

    def _id(self, given: str) -> str:
        if not self._dialect.short_ids or _SHORT_ID.fullmatch(given):
            return given
        return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:_SHORT_ID_CHARS]

    # -- marks --------------------------------------------------------------------------------------------------

    def _trims(self) -> tuple[bool, bool]:
        inside = self._manner is not None and self._manner.side is Side.INSIDE
        return inside, inside

    def _string(self, text: str, place: Place, message: int, item: int = 0, *, is_forced: bool = False) -> str:
        """A string of a schema, of arguments, or a label. Equal ones get equal marks: templates look some up."""
        if self._manner is None or not text:
            return text
        if self._manner.leaves_plain and not is_forced and self._is_plain(text):
            return text
        key = (place, message, item, text)
        if key not in self._told:
            self._told[key] = self._mark(Field(place, message, item, text), self._trims())
        return self._told[key]

    def _mark(self, field: Field, trims: tuple[bool, bool] = (False, False), *, is_forced: bool = False) -> str:
        """The field's text with marks: outside of its outer white space, or inside of it where it is to be trimmed."""
        if self._manner is None and not is_forced:
            return field.text
        core = field.text.lstrip() if trims[0] else field.text
        before = field.text[: len(field.text) - len(core)]
        after = core[len(core.rstrip()) :] if trims[1] else ""
        core = core[: len(core) - len(after)]
        if not core and field.text and not (self._manner is not None and self._manner.marks_empty):
            return field.text
        # Bare marks stand for texts alone: what is written as JSON could not be put back as it was given.
        is_bare = self._manner is not None and self._manner.side is Side.BARE and field.place in _BARED
        number = len(self.fields)
        self.fields.append(replace(field, text=core, before=before, after=after))
        content = Content(SegmentKind.OTHER, number, core)
        edge = self._manner.edge if self._manner is not None else ""
        marked = self.marks.wrap(content, Side.BARE if is_bare else Side.OUTSIDE)
        return (before and (edge or before)) + marked + (after and (edge or after))


_BARED = (Place.TEXT, Place.REASONING)


def _items(index: int, message: TemplateMessage) -> list[_Item]:
    """The parts, neighbouring texts joined, empty ones left out."""
    items: list[_Item] = []
    for is_text, group in itertools.groupby(message.parts, key=lambda part: isinstance(part, str)):
        parts = list(group)
        if is_text:
            parts = ["".join(part for part in parts if isinstance(part, str))]
        items += [_Item(index, part, len(items) + n) for n, part in enumerate(parts) if part]
    return [item for item in items if item.text]


def _parsed(arguments: str) -> Any:
    if not arguments.strip():
        return {}
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _texts(conversation: Conversation) -> Iterator[str]:
    for message in conversation.messages:
        yield message.text
        yield message.reasoning
        yield from (call.arguments for call in message.calls)
    yield from (repr(tool) for tool in conversation.tools)
