"""Turns a conversation of any shape into runs of token ids, exactly as the model's own chat template writes it.

Every content (texts, tool results, schemas, arguments, names) is data: only the template's text yields special tokens.
Knows no sessions and no KV.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvloom.errors import TemplateError
from kvloom.text.conversation import Conversation, TemplateMessage
from kvloom.text.marks import Segment, SegmentKind, Side, align
from kvloom.text.reasoning import tags_of
from kvloom.text.request_runs import Run, RunAssembly, Sampled
from kvloom.text.telling import Dialect, Manner, Place, Telling, dialects, manners
from kvloom.text.template import ChatTemplate, Marking
from kvloom.text.tokenizer import PieceTokenizer

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_OWN_VALUES = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})
_FRAMES = ("{}", "<{}>", "</{}>", "<|{}|>", "<|{}", "{}|>", "[{}]", "[/{}]")
"""Words that templates write around a name. A string is plain where none of them makes a special token of it."""
_TEXTS = (Place.TEXT, Place.REASONING)
_EDGE = "\x0b"
"""White space that no template writes itself."""
_MAX_FRAMED_CHARS = 64
"""No vocabulary has a special token longer than this and its frame."""


@dataclass(frozen=True)
class RequestPrompt:
    """A prompt in runs. See `template.Marking` for `marking` and `reason`. `notices`: what the template left out."""

    runs: tuple[Run, ...]
    marking: Marking = Marking.MARKED
    reason: str = ""
    notices: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for run in self.runs for token in run.tokens)


class _NoToolsError(TemplateError):
    """Says more than what else a template may complain of."""


@dataclass(frozen=True)
class _Cut:
    """A conversation as the template wrote it, in segments whose indices are those of the telling's fields."""

    telling: Telling
    segments: list[Segment]
    notices: tuple[str, ...]
    marking: Marking = Marking.MARKED
    reason: str = ""
    tails: Mapping[int, str] = field(default_factory=dict)
    """White space at the end of a message that stands outside of its marks and is kept, by the message."""


class RequestPrompts:
    """Prompts of one model. Safe for several threads, as its parts are.

    Runs end where a fresh prompt ended before each reply, where a reply ends, behind every other message and around
    chunks: a conversation that grows keeps the runs of what it had, as far as its template writes that alike.
    """

    def __init__(self, template: ChatTemplate, tokenizer: PieceTokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        self._tags = tags_of(template.source)

    def render(self, conversation: Conversation, sampled: Sampled | None = None) -> RequestPrompt:
        """The prompt. `sampled` gives the ids of earlier replies: they stand where they spell what the template says.

        Raises TemplateError where the template refuses the conversation, or would lose a message, a call or a tool.
        """
        try:
            return self._render(self._prepared(conversation), sampled or (lambda _: None))
        except RecursionError as exc:
            raise TemplateError("a tool's schema or a call's arguments are nested too deeply to be written") from exc

    # -- inside -------------------------------------------------------------------------------------------------

    def _render(self, conversation: Conversation, sampled: Sampled) -> RequestPrompt:
        refusals: dict[Dialect, TemplateError] = {}
        for dialect in dialects(conversation):
            try:
                cut = self._cut(conversation, dialect)
            except TemplateError as exc:
                refusals[dialect] = exc
                continue
            openings = _Openings(self, conversation, cut)
            assembly = RunAssembly(self._tokenizer, conversation, openings.before, sampled)
            runs = assembly.runs(cut.segments, cut.telling.fields)
            return RequestPrompt(runs, cut.marking, cut.reason, cut.notices)
        for refusal in refusals.values():
            if isinstance(refusal, _NoToolsError):
                raise refusal
        # What is still wrong once system texts are out of the way says more than that they are in the way.
        raise refusals.get(Dialect(joins_system=True), refusals[Dialect()])

    def _prepared(self, conversation: Conversation) -> Conversation:
        """Checked, with roles and names as templates expect them."""
        messages = conversation.messages
        if not messages:
            raise TemplateError("a conversation needs at least one message")
        last = messages[-1]
        if conversation.continues and (last.role != "assistant" or last.calls or not last.text):
            raise TemplateError(
                "only a last message of the assistant that has text and no tool calls can be gone on with"
            )
        for name, value in conversation.values.items():
            if name in _OWN_VALUES:
                raise TemplateError(f"the template value {name!r} is not a request's to set")
            if not self._holds_no_special(value):
                raise TemplateError(f"the template value {name!r} holds a special token of the model")
        named: list[TemplateMessage] = []
        calls: dict[str, str] = {}
        for index, message in enumerate(messages):
            calls |= {call.id: call.name for call in message.calls if call.id}
            name = message.name or (calls.get(message.call_id, "") if message.role == "tool" else "")
            named.append(replace(message, role=self._role(message.role, index), name=name))
        return replace(conversation, messages=tuple(named))

    def _role(self, role: str, index: int) -> str:
        source = self._template.source
        is_known = f"'{role}'" in source or f'"{role}"' in source
        if role == "developer" and not is_known:
            return "system"
        if role not in _ROLES and not (is_known and role.isidentifier()):
            raise TemplateError(
                f"message {index + 1} has the role {role!r}, which the model's chat template does not know"
            )
        return role

    def _holds_no_special(self, value: Any) -> bool:
        if isinstance(value, str):
            return not self._tokenizer.specials(value)
        if isinstance(value, Mapping):
            return all(self._holds_no_special(part) for pair in value.items() for part in pair)
        if isinstance(value, list | tuple):
            return all(self._holds_no_special(part) for part in value)
        return True

    def _is_plain(self, text: str) -> bool:
        frames = _FRAMES if len(text) <= _MAX_FRAMED_CHARS else _FRAMES[:1]
        return not any(self._tokenizer.specials(frame.format(text)) for frame in frames)

    def _cut(self, conversation: Conversation, dialect: Dialect) -> _Cut:
        """Tries where marks may stand until they change nothing of what the template writes."""
        bare = Telling(conversation, dialect, None, self._tags, self._is_plain)
        unmarked = bare.marks.remove(self.write(bare, conversation, len(bare.entries)))
        segments: list[Segment] | None = None
        for manner in manners(conversation, self._tags):
            telling = Telling(conversation, dialect, manner, self._tags, self._is_plain)
            try:
                marked = self.write(telling, conversation, len(telling.entries))
            except TemplateError:
                continue  # it looks at what is marked, and the next manner marks less
            segments = telling.marks.cut(marked)
            if segments is None:
                continue
            if manner.side is Side.BARE:
                return self._altered(telling, segments, unmarked, conversation)
            if telling.marks.remove(marked) == unmarked:
                notices = self._lost(telling, segments, conversation)
                if manner.side is Side.OUTSIDE:
                    return _Cut(telling, segments, notices)
                whole, tails = self._with_edges(telling, segments, conversation, dialect, manner)
                return _Cut(telling, whole, notices, tails=tails)
        raise TemplateError("the model's chat template tears its messages apart; this conversation cannot be cut")

    def _altered(self, telling: Telling, segments: list[Segment], unmarked: str, conversation: Conversation) -> _Cut:
        """A template that makes something else of a content than what was given."""
        notices = self._lost(telling, segments, conversation)
        aligned = align(segments, unmarked)
        if aligned is not None:
            reason = "the template shortens a message (trims it, or drops its reasoning)"
            return _Cut(telling, aligned, notices, Marking.ALIGNED, reason)
        reason = "the template looks into a message and writes it differently; it is used as it was given"
        return _Cut(telling, segments, notices, Marking.FORCED, reason)

    def _with_edges(
        self, telling: Telling, segments: list[Segment], conversation: Conversation, dialect: Dialect, manner: Manner
    ) -> tuple[list[Segment], dict[int, str]]:
        """White space around marks goes back to its content wherever the template keeps it: equal content has equal
        ids then, whichever side the marks of a conversation stand on."""
        if not any(f.place in _TEXTS and (f.before or f.after) for f in telling.fields):
            return segments, {}
        probe = Telling(conversation, dialect, replace(manner, edge=_EDGE), self._tags, self._is_plain)
        try:
            probed = probe.marks.cut(self.write(probe, conversation, len(probe.entries))) or []
        except TemplateError:
            return segments, {}
        if [s.index for s in probed if _is_content(s)] != [s.index for s in segments if _is_content(s)]:
            return segments, {}
        kept = _kept(probed)
        out: list[Segment] = []
        tails: dict[int, str] = {}
        after, number = "", -1
        for segment in segments:
            if not _is_content(segment):
                out.append(replace(segment, text=segment.text.removeprefix(after)))
                after = ""
                continue
            number += 1
            place = telling.fields[segment.index]
            text, is_text = segment.text, place.place in _TEXTS
            before = place.before if is_text and kept[number][0] else ""
            if before and out and not _is_content(out[-1]) and out[-1].text.endswith(before):
                out[-1] = replace(out[-1], text=out[-1].text.removesuffix(before))
                text = before + text
            after = place.after if is_text and kept[number][1] else ""
            tails[place.message] = after
            out.append(replace(segment, text=text + after))
        return [segment for segment in out if segment.text or _is_content(segment)], tails

    def write(self, telling: Telling, conversation: Conversation, num_entries: int) -> str:
        """What the template makes of the first entries."""
        values = dict(conversation.values)
        if telling.tools:
            values["tools"] = telling.tools
        is_whole = num_entries == len(telling.entries)
        asks = not (is_whole and conversation.continues)
        return self._template.write(telling.entries[:num_entries], add_generation_prompt=asks, values=values)

    def _lost(self, telling: Telling, segments: list[Segment], conversation: Conversation) -> tuple[str, ...]:
        """Nothing may be lost on the way, but for reasoning and labels, which templates drop by design."""
        found = {_key(telling, index) for index in {s.index for s in segments if _is_content(s)}}
        told = {_key(telling, index) for index, field in enumerate(telling.fields) if field.text.strip()}
        lost = sorted(told - found, key=lambda key: key[1:])
        tools = [message for place, message, _ in lost if place is Place.TOOLS]
        if tools:
            names = ", ".join(_tool_name(conversation.tools[number]) for number in tools[:8])
            if len(tools) == len(conversation.tools):
                raise _NoToolsError(
                    f"the model's chat template has no place for tools, and {len(tools)} were given ({names}); "
                    "leave them out, or use a model whose template knows tools"
                )
            raise TemplateError(f"the model's chat template drops {len(tools)} of its tools ({names})")
        notices: list[str] = []
        for place, index, item in lost:
            role = conversation.messages[index].role
            if place is Place.CALL:
                raise TemplateError(
                    f"the model's chat template drops tool call {item + 1} of message {index + 1} (role {role!r})"
                )
            if place is not Place.TEXT:
                continue
            if not conversation.messages[index].calls:
                raise TemplateError(f"the model's chat template drops message {index + 1} (role {role!r})")
            notices.append(f"the model's chat template drops the text of message {index + 1} beside its tool calls")
        return tuple(dict.fromkeys(notices))


def _is_content(segment: Segment) -> bool:
    return segment.kind is not SegmentKind.TEMPLATE


def _kept(probed: list[Segment]) -> list[tuple[bool, bool]]:
    """For each content: whether the probe's white space in front of it and behind it is still there."""
    kept: list[tuple[bool, bool]] = []
    for place, segment in enumerate(probed):
        if _is_content(segment):
            before = probed[place - 1].text if place and not _is_content(probed[place - 1]) else ""
            follow = probed[place + 1] if place + 1 < len(probed) else segment
            kept.append((before.endswith(_EDGE), not _is_content(follow) and follow.text.startswith(_EDGE)))
    return kept


class _Openings:
    """The template text between what stands before a reply and the reply, as a fresh prompt had it.

    It is the same behind every message of one role, so it is rendered once for each role.
    """

    def __init__(self, prompts: RequestPrompts, conversation: Conversation, cut: _Cut) -> None:
        self._prompts, self._conversation = prompts, conversation
        self._telling, self._tails = cut.telling, cut.tails
        self._known: dict[str, str] = {}

    def before(self, index: int) -> str:
        num_entries = self._telling.num_entries_before[index]
        if num_entries == 0:
            return ""
        role = str(self._telling.entries[num_entries - 1]["role"])
        if role not in self._known:
            try:
                rendered = self._prompts.write(self._telling, self._conversation, num_entries)
                blank = self._tails.get(index - 1, "")
                self._known[role] = self._telling.marks.tail(rendered).removeprefix(blank)
            except TemplateError:
                self._known[role] = ""  # no fresh prompt ever ended there
        return self._known[role]


def _key(telling: Telling, index: int) -> tuple[Place, int, int]:
    field = telling.fields[index]
    # Strings of one tool or call stand for each other: templates leave some of a schema out.
    return (field.place, field.message, 0 if field.place is Place.TOOLS else field.item)


def _tool_name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else tool.get("name")
    return name if isinstance(name, str) else "without a name"
