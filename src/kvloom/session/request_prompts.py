"""From a request to what is woven for it: runs of ids, the manifest of all but the last, what a policy left out.

Knows tokens and chunks, no engine work. A prompt is cut into blocks, so that prompts with a beginning in common share
it, whatever they are made of.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest, Slot, SlotKind, Tokens
from kvloom.context.policies.base import Need, PolicySettings, find_policy
from kvloom.context.relevance import RelevanceIndex
from kvloom.errors import ContextOverflowError, TemplateError
from kvloom.session.requests import ChatMessage, ChatPrompt, ChunkPart, Dropped, RawPrompt, Request
from kvloom.text.conversation import ChunkText, Conversation, TemplateCall, TemplateMessage, TemplatePart
from kvloom.text.known_texts import MIN_KNOWN_CHARS
from kvloom.text.request_prompt import RequestPrompts
from kvloom.text.request_runs import Run, RunKind
from kvloom.types import ALONE, ChunkId, Fidelity, Lineage

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

BLOCK_TOKENS = 256
"""A run is cut into blocks of so many tokens: what prompts have in common is shared by whole blocks."""
MAX_REPLIES = 4096
"""Replies whose sampled ids are remembered: a client sends them back as text."""


@dataclass(frozen=True)
class Prepared:
    """A request ready to be woven: `manifest` first, then `question`, the last block, is prefilled for its logits."""

    request: Request
    manifest: Manifest
    question: tuple[int, ...] = field(repr=False)
    max_tokens: int
    num_window_tokens: int
    dropped: tuple[Dropped, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def num_prompt_tokens(self) -> int:
        return self.manifest.num_tokens + len(self.question)


class Replies:
    """The ids of replies by their text, so that a conversation that comes back is made of the ids that were sampled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def add(self, text: str, tokens: Sequence[int]) -> None:
        with self._lock:
            self._ids[text.strip()] = tuple(tokens)
            self._ids.move_to_end(text.strip())
            while len(self._ids) > MAX_REPLIES:
                self._ids.popitem(last=False)

    def get(self, text: str) -> tuple[int, ...] | None:
        with self._lock:
            return self._ids.get(text)

    def clear(self) -> None:
        with self._lock:
            self._ids.clear()


class RequestPreparer:
    """Prepares the requests of one loom. Safe for several threads."""

    def __init__(self, loom: Loom) -> None:
        self._loom = loom
        self._prompts: RequestPrompts = RequestPrompts(loom.builder.chat_template, loom.builder.tokenizer)
        self.replies = Replies()

    def num_prompt_tokens(self, request: Request) -> int:
        """Tokens of the whole prompt; no policy is applied."""
        return sum(len(run.tokens) for run in self._runs(request)[0])

    def prepare(self, request: Request) -> Prepared:
        """Before any work. Raises ContextOverflowError (with the numbers), TemplateError, UnknownChunkError."""
        find_policy(request.overflow)
        runs, notices = self._runs(request)
        window = min(self._loom.window, self._loom.pool.window)
        wanted = request.max_tokens or 1
        num_prompt = sum(len(run.tokens) for run in runs)
        dropped: tuple[Dropped, ...] = ()
        if num_prompt + wanted > window:
            if request.overflow == "stop" or isinstance(request.prompt, RawPrompt):
                raise _overflow(num_prompt, request.max_tokens, window)
            wanted = request.max_tokens or min(self._loom.settings.reserve_tokens, window // 4)
            request, dropped = self._fitted(request, request.prompt, runs, window, wanted)
            runs, notices = self._runs(request)
            num_prompt = sum(len(run.tokens) for run in runs)
            if num_prompt + wanted > window:
                raise _overflow(num_prompt, request.max_tokens, window)
        free = window - num_prompt
        max_tokens = request.max_tokens or min(free, self._loom.settings.sampling.max_tokens)
        manifest, question = self._manifest(runs, request.fidelity)
        return Prepared(request, manifest, question, max_tokens, window, dropped, notices)

    # -- inside -------------------------------------------------------------------------------------------------

    def _runs(self, request: Request) -> tuple[tuple[Run, ...], tuple[str, ...]]:
        prompt = request.prompt
        if isinstance(prompt, RawPrompt):
            tokenizer = self._loom.builder.tokenizer
            bos = tokenizer.vocabulary.bos
            tokens = prompt.tokens or (*((bos,) if bos is not None else ()), *tokenizer.content(prompt.text))
            tokens = tokens or (self._loom.engine.sink_token,)  # nothing can be computed behind nothing
            return (Run(RunKind.TEXT, tuple(tokens), 0),), ()
        messages = tuple(self._told(message, request.recognises) for message in prompt.messages)
        found = self._prompts.render(
            Conversation(messages, prompt.tools, prompt.values, prompt.continues), self.replies.get
        )
        return found.runs, found.notices

    def _told(self, message: ChatMessage, recognises: bool = False) -> TemplateMessage:
        parts: list[TemplatePart] = []
        for part in message.parts:
            if isinstance(part, ChunkPart):
                parts.append(self._chunk(part.ref))
            else:
                parts += self._recognised(part.text) if recognises else [part.text]
        calls = tuple(TemplateCall(call.name, call.arguments, call.id) for call in message.tool_calls)
        return TemplateMessage(message.role, tuple(parts), message.name, calls, message.tool_call_id, message.reasoning)

    def _recognised(self, text: str) -> Iterator[TemplatePart]:
        """The text, with known chunks in it as chunks."""
        shelf, end = self._loom.shelf, 0
        for span in shelf.recognised(text) if len(text) >= MIN_KNOWN_CHARS else ():
            if span.start > end:
                yield text[end : span.start]
            chunk = ChunkId(span.chunk_id)
            yield ChunkText(chunk, shelf.bare_parts(chunk), text[span.start : span.stop])
            end = span.stop
        if end < len(text) or not end:
            yield text[end:]

    def _chunk(self, ref: str) -> ChunkText:
        chunk = self._loom.resolve(ref)
        name = self._loom.shelf.name_for(chunk, ref)
        parts = self._loom.shelf.parts(chunk, name)
        text = "".join(self._loom.builder.tokenizer.text(part.ids) for part in parts)
        return ChunkText(chunk, tuple(part.ids for part in parts), text)

    def _manifest(self, runs: Sequence[Run], fidelity: Fidelity) -> tuple[Manifest, tuple[int, ...]]:
        """All but the last block as slots, with what each is computed behind; and the last block's ids."""
        fidelity = self._loom.usable_fidelity(fidelity)
        blocks = list(_blocks(runs))
        if blocks[-1].kind is RunKind.CHUNK:  # never: a prompt ends in template text
            raise TemplateError("the prompt ends in a chunk: there is nothing to reply to")
        slots = tuple(
            Slot(SlotKind.CHUNK, Tokens(block.tokens), 0, ALONE, fidelity, ref=block.ref, part=block.part)
            if block.kind is RunKind.CHUNK
            else Slot(SlotKind.TURN, Tokens(block.tokens), 0, Lineage(""), Fidelity.EXACT, ref=f"block {number}")
            for number, block in enumerate(blocks[:-1])
        )
        manifest = Manifest(slots, fidelity=fidelity, model=self._loom.engine.fingerprint)
        return manifest.settled(dense=True).with_current_lineages(turns=True), blocks[-1].tokens

    def _fitted(
        self, request: Request, prompt: ChatPrompt, runs: Sequence[Run], window: int, wanted: int
    ) -> tuple[Request, tuple[Dropped, ...]]:
        """The request less the turns that the policy leaves out. What stands in front of the first question stays, and
        so does the last question with all that follows it."""
        turns = _turns_of(prompt.messages)
        sizes = [0] * len(prompt.messages)
        for run in runs:
            sizes[run.message_index] += len(run.tokens)
        head = sum(sizes[: turns[0].start]) if turns else sum(sizes)
        last = sum(sizes[turns[-1].start :]) if turns else 0
        if head + last + wanted > window:
            raise _overflow(head + last, request.max_tokens, window)
        slots = [Slot(SlotKind.HEAD, Tokens((0,) * head), 0, ALONE, Fidelity.EXACT)]
        for number, turn in enumerate(turns[:-1]):
            tokens = Tokens((0,) * sum(sizes[turn.start : turn.stop]), f"turn {number}")
            slots.append(Slot(SlotKind.TURN, tokens, 0, ALONE, Fidelity.EXACT, ref=str(number)))
        before = Manifest(tuple(slots)).settled(dense=True)
        settings = self._loom.settings.overflow
        need = Need(
            window - wanted - last,
            window,
            self._relevance(prompt, turns) if request.overflow == "adaptive" else {},
            order=int,
            settings=PolicySettings(settings.window_tokens, settings.sink_tokens),
        )
        kept = {slot.ref for slot in find_policy(request.overflow)(before, need).turns}
        gone = {
            index
            for number, turn in enumerate(turns[:-1])
            if str(number) not in kept
            for index in range(turn.start, turn.stop)
        }
        dropped = tuple(Dropped(index, prompt.messages[index].role, sizes[index]) for index in sorted(gone))
        messages = tuple(message for index, message in enumerate(prompt.messages) if index not in gone)
        return replace(request, prompt=replace(prompt, messages=messages)), dropped

    def _relevance(self, prompt: ChatPrompt, turns: Sequence[range]) -> dict[str, float]:
        index = RelevanceIndex()
        try:
            for number, turn in enumerate(turns[:-1]):
                index.add(str(number), partial(self._text_of, [prompt.messages[at] for at in turn]))
            return dict(index.scores(self._text_of([prompt.messages[turns[-1].start]])))
        finally:
            index.close()

    def _text_of(self, messages: Sequence[ChatMessage]) -> str:
        return "\n".join(self._told(message).text for message in messages)


def _turns_of(messages: Sequence[ChatMessage]) -> list[range]:
    """A turn is a question and all that follows it up to the next: so a tool's result never loses its call."""
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(messages)], strict=True)]


def _blocks(runs: Sequence[Run]) -> Iterator[Run]:
    for run in runs:
        if run.kind is RunKind.CHUNK or len(run.tokens) <= BLOCK_TOKENS:
            yield run
            continue
        for tokens in blocks_of(run.tokens):
            yield replace(run, tokens=tokens)


def blocks_of(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """A run's ids in blocks."""
    for start in range(0, len(tokens), BLOCK_TOKENS):
        yield tuple(tokens[start : start + BLOCK_TOKENS])


def _overflow(num_prompt: int, max_tokens: int | None, window: int) -> ContextOverflowError:
    reply = f" + {max_tokens} for the reply" if max_tokens else ""
    needed = num_prompt + (max_tokens or 1)
    return ContextOverflowError(
        f"maximum context length is {window} tokens: {num_prompt} in the prompt{reply} = {needed}; shorten it, ask "
        'for a shorter reply, or name a policy that may drop messages ("kvloom": {"overflow": "fifo"})',
        num_needed_tokens=needed,
        num_window_tokens=window,
    )
