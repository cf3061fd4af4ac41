"""Renders a conversation with the model's chat template and cuts it into template text and content.

Knows the vocabulary only for its template and BOS; tokenizes nothing but a probe. See `marks` for how it cuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from kvloom.engine.base import Vocabulary
from kvloom.errors import TemplateError
from kvloom.text.jinja import JinjaTemplate
from kvloom.text.marks import Content, Marks, Segment, SegmentKind, Side, align

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% else %}{{ ('User: ' if message['role'] == 'user' else 'Assistant: ') + message['content'] + '\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_JOINT = "\n\n"
"""Between the system text (with its chunks) and the first question, where both share the first user message."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation. `tokens`: the ids sampled for it, without the end token (replies only)."""

    role: str
    content: str
    reasoning: str = ""
    tokens: tuple[int, ...] = field(default=(), repr=False)


class Marking(Enum):
    """How a render was cut."""

    MARKED = "marked"
    ALIGNED = "aligned"
    FORCED = "forced"


@dataclass(frozen=True)
class Rendered:
    """A prompt in segments, in order. Joined, their texts are the prompt.

    MARKED: exactly what the template makes of the contents. ALIGNED: the template alters contents, and so do the
    segments. FORCED: it makes something else of them, and they stand here as they were given. `reason` says why.
    """

    segments: tuple[Segment, ...]
    marking: Marking = Marking.MARKED
    reason: str = ""

    @property
    def is_marked(self) -> bool:
        return self.marking is Marking.MARKED

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


class ChatTemplate:
    """A model's chat template, ready to cut. `notes` says in what it falls short of a usual one.

    `now` is what the template's date functions see; `values` are handed to it as they are (`enable_thinking`, …).
    Raises TemplateError where a conversation cannot be rendered.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        source: str | None = None,
        *,
        now: datetime | None = None,
        values: Mapping[str, object] | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._values = {"bos_token": vocabulary.bos_text, "eos_token": vocabulary.eos_text, **(values or {})}
        self._now = now or datetime.now().astimezone()
        notes: list[str] = []
        self.source, self._template = self._usable(source or vocabulary.chat_template, notes)
        self.has_system_role = self._tries_system_role()
        if not self.has_system_role:
            notes.append("the template has no system role: system text and chunks open the first user message")
        self.notes: tuple[str, ...] = tuple(notes)

    def render(
        self, system: str, chunks: Sequence[str], messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> Rendered:
        """The prompt: system text, one block of chunks, the messages; cut where each begins and ends.

        `system` must not be blank nor have outer white space, `messages` must open with the user's.
        """
        if not system or system != system.strip():
            raise TemplateError("the system text must not be blank, nor begin or end with white space")
        if not messages or messages[0].role != "user":
            raise TemplateError("a conversation opens with a message of the user")
        opening = [Content(SegmentKind.SYSTEM, 0, system)]
        opening += [Content(SegmentKind.CHUNK, index, text) for index, text in enumerate(chunks)]
        unmarked = self._run(self._messages(opening, messages, None), add_generation_prompt)
        segments: list[Segment] | None = None
        for side in (Side.OUTSIDE, Side.INSIDE, Side.BARE):
            marks = Marks([system, *chunks, *(m.content + m.reasoning for m in messages)])
            marked = self._run(self._messages(opening, messages, (marks, side)), add_generation_prompt)
            segments = marks.cut(marked)
            if segments is None or side is Side.BARE:
                continue
            if marks.remove(marked) == unmarked:
                self._check_whole(segments, messages)
                return Rendered(tuple(segments))
        return self._altered(segments, unmarked, messages)

    def write(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, values: Mapping[str, object]
    ) -> str:
        """What the template itself makes of `messages`, without BOS where the vocabulary adds it.

        `values` go before those of this object. Raises TemplateError where the template refuses them.
        """
        return self._strip_bos(
            self._template.render(messages, add_generation_prompt=add_generation_prompt, **{**self._values, **values})
        )

    # -- inside -------------------------------------------------------------------------------------------------

    def _altered(self, segments: list[Segment] | None, unmarked: str, messages: Sequence[Message]) -> Rendered:
        """What to do with a template that makes something else of a content than what was given."""
        if segments is None:
            raise TemplateError("the model's chat template tears its messages apart; this conversation cannot be cut")
        self._check_whole(segments, messages)
        aligned = align(segments, unmarked)
        if aligned is not None:
            return Rendered(
                tuple(aligned), Marking.ALIGNED, "the template shortens a message (trims it, or drops its reasoning)"
            )
        reason = "the template looks into a message and writes it differently; it is used as it was given"
        return Rendered(tuple(segments), Marking.FORCED, reason)

    def _messages(
        self, opening: Sequence[Content], messages: Sequence[Message], marking: tuple[Marks, Side] | None
    ) -> list[dict[str, str]]:
        """What the template gets. The opening is never trimmed, so its marks stand outside."""

        def put(content: Content, side: Side | None = None) -> str:
            return content.text if marking is None else marking[0].wrap(content, side or marking[1])

        bare = marking is not None and marking[1] is Side.BARE
        head = "".join(put(content, Side.BARE if bare else Side.OUTSIDE) for content in opening)
        out: list[dict[str, str]] = [{"role": "system", "content": head}] if self.has_system_role else []
        for index, message in enumerate(messages):
            text = put(Content(_kind(message.role), index, message.content))
            if index == 0 and not self.has_system_role:
                text = head + _JOINT + text
            entry = {"role": message.role, "content": text}
            if message.reasoning:
                entry["reasoning_content"] = put(Content(SegmentKind.REASONING, index, message.reasoning))
            out.append(entry)
        return out

    def _run(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        return self.write(messages, add_generation_prompt=add_generation_prompt, values={})

    def _strip_bos(self, rendered: str) -> str:
        """BOS is ours to add, once, where the vocabulary wants it."""
        bos = self._vocabulary.bos_text
        return rendered.removeprefix(bos) if self._vocabulary.bos is not None and bos else rendered

    def _check_whole(self, segments: Sequence[Segment], messages: Sequence[Message]) -> None:
        """No message may be lost on the way (reasoning may: templates drop it from earlier turns)."""
        found = {(segment.kind, segment.index) for segment in segments}
        for index, message in enumerate(messages):
            if (_kind(message.role), index) not in found:
                raise TemplateError(f"the model's chat template drops message {index + 1} (role {message.role!r})")

    def _usable(self, source: str | None, notes: list[str]) -> tuple[str, JinjaTemplate]:
        """The model's own template where it can be used, else ChatML or a plain one, with a note."""
        why = "the model has no chat template"
        if source:
            try:
                template = JinjaTemplate(source, self._now)
                template.render([{"role": "user", "content": "a"}], add_generation_prompt=True, **self._values)
                return source, template
            except TemplateError as exc:
                why = str(exc)
        has_chatml = len(self._vocabulary.tokenize(b"<|im_start|>", parse_special=True)) == 1
        name, fallback = ("ChatML", _CHATML) if has_chatml else ("a plain 'User: … Assistant: …'", _PLAIN)
        notes.append(f"{why}: {name} is used instead")
        return fallback, JinjaTemplate(fallback, self._now)

    def _tries_system_role(self) -> bool:
        """Whether a system message comes out whole, in front of everything, and stays there as turns follow."""
        self.has_system_role = True
        opening = [Content(SegmentKind.SYSTEM, 0, "probe")]
        talk = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
        for messages in (talk[:1], talk):
            marks = Marks(())
            try:
                rendered = self._run(self._messages(opening, messages, (marks, Side.OUTSIDE)), True)
            except TemplateError:
                return False
            contents = [s.kind for s in marks.cut(rendered) or [] if s.kind is not SegmentKind.TEMPLATE]
            if contents[:1] != [SegmentKind.SYSTEM] or SegmentKind.SYSTEM in contents[1:]:
                return False
        return True


def _kind(role: str) -> SegmentKind:
    return {"user": SegmentKind.USER, "assistant": SegmentKind.ASSISTANT}.get(role, SegmentKind.OTHER)
