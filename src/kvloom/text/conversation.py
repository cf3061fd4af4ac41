"""A conversation of any shape, as chat templates know them: values only. Knows no template and no tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ChunkText:
    """A chunk in the place of its text: `runs` are the ids of its parts, in order; `text` is what they spell."""

    ref: str
    runs: tuple[tuple[int, ...], ...] = field(repr=False)
    text: str = field(repr=False)


TemplatePart = str | ChunkText


@dataclass(frozen=True)
class TemplateCall:
    """A tool call that an earlier reply made. `arguments` is JSON, as text."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class TemplateMessage:
    """One message. `call_id` is that of the call whose result it is."""

    role: str
    parts: tuple[TemplatePart, ...] = ()
    name: str = ""
    calls: tuple[TemplateCall, ...] = ()
    call_id: str = ""
    reasoning: str = ""

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)


@dataclass(frozen=True)
class Conversation:
    """What a prompt is written from. `tools` are schemas as the template wants them, `values` what else it is handed.

    Where `continues` is set, the prompt ends inside of its last message, which is the assistant's.
    """

    messages: tuple[TemplateMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
