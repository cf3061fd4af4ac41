"""`POST /v1/chat/completions`: the shapes of its reply and of its events. How a reply is run is the service's."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fastapi import Request, Response

from kvloom.server import prompts, sse
from kvloom.server.backend import ReadText, ToolReader
from kvloom.server.forms import Form, call_id, chat_form, read_reply
from kvloom.server.replies import DeltaEvent, EndEvent, Replies
from kvloom.server.reports import chat_logprobs, dropped_header, kvloom_report, usage_of
from kvloom.server.routes.base import EVENT_STREAM, caller_of, event_answer, json_answer, notes, router, service_of
from kvloom.server.routes.completions import finish_reason
from kvloom.server.schema.chat import (
    ChatChoice,
    ChatDelta,
    ChatDeltaChoice,
    ChatEvent,
    ChatMessageReply,
    ChatReply,
    ChatRequest,
    FinishReason,
    FunctionCallReply,
    FunctionDelta,
    ToolCallDelta,
    ToolCallReply,
)
from kvloom.session.requests import Completion, TextDelta
from kvloom.session.requests import Request as Ask

routes = router("chat")


@routes.post(
    "/v1/chat/completions",
    response_model=ChatReply,
    responses={200: {"description": "The reply, or its events.", "content": EVENT_STREAM}},
)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation. A message may carry chunks in the place of their text."""
    service = service_of(request)
    prompt = prompts.chat_prompt(body, service.settings)
    told = notes(request, stream=bool(body.stream), user=body.user)
    async with service.call(body.model, caller_of(request), told) as call:
        form = await service.aside(chat_form, body, call.lease)
        ask = Ask(
            prompt=prompt,
            max_tokens=body.longest,
            sampling=prompts.sampling(body, service.settings, form.grammar),
            stop=body.stops,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            fidelity=prompts.fidelity(body.kvloom, service.settings),
            recognises=service.settings.reuse != "off",
            overflow=prompts.overflow(body.kvloom),
        )
        shape = _Shape(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), call.lease.info.id, body, form)
        replies = await call.start([ask], body.seeds)
        if body.stream:
            return await event_answer(call, replies, shape.events(replies))
        completions = await replies.completions()
    text = shape.whole(completions, replies.num_reasoning_tokens).to_json()
    return json_answer(text, {**call.headers, **dropped_header(completions[0].dropped)})


@dataclass(frozen=True)
class _Shape:
    """How one request's replies are written."""

    id: str
    created: int
    model: str
    body: ChatRequest
    form: Form

    # -- whole --------------------------------------------------------------------------------------------------

    def whole(self, completions: Sequence[Completion], num_reasoning_tokens: int) -> ChatReply:
        return ChatReply(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=[self._choice(i, completion) for i, completion in enumerate(completions)],
            usage=usage_of(completions, len(completions), num_reasoning_tokens),
            kvloom=kvloom_report(completions),
        )

    def _choice(self, index: int, completion: Completion) -> ChatChoice:
        read = read_reply(completion.text, self.form.reader())
        message = ChatMessageReply(role="assistant", content=read.text, refusal=None)
        if completion.reasoning:
            message.reasoning_content = completion.reasoning
        if read.calls:
            message.content = read.text or None
            message.tool_calls = [
                ToolCallReply(
                    id=call_id(), type="function", function=FunctionCallReply(name=call.name, arguments=call.arguments)
                )
                for call in read.calls
            ]
        logprobs = chat_logprobs(completion.logprobs) if self.body.logprobs else None
        return ChatChoice(
            index=index, message=message, logprobs=logprobs, finish_reason=_finish(completion, bool(read.calls))
        )

    # -- events -------------------------------------------------------------------------------------------------

    async def events(self, replies: Replies) -> AsyncIterator[bytes]:
        writers = [_ChoiceWriter(self, i, self.form.reader()) for i in range(replies.num_choices)]
        completions: dict[int, Completion] = {}
        for writer in writers:
            yield self.event([writer.first()])
        async for event in replies.events():
            writer = writers[event.choice]
            if isinstance(event, DeltaEvent):
                if writer.is_plain(event.delta):
                    yield writer.plain(event.delta)
                    continue
                for choice in writer.more(event.delta):
                    yield self.event([choice])
                continue
            completions[event.choice] = event.completion
            ends = writer.end(event)
            for choice in ends[:-1]:
                yield self.event([choice])
            is_last = len(completions) == replies.num_choices
            yield self.event(ends[-1:], _in_order(completions) if is_last else ())
        if self.body.wants_usage:
            last = self._bare([])
            last.usage = usage_of(_in_order(completions), replies.num_choices, replies.num_reasoning_tokens)
            yield sse.event(last.to_json())

    def event(self, choices: list[ChatDeltaChoice], ended: Sequence[Completion] = ()) -> bytes:
        event = self._bare(choices)
        if self.body.wants_usage:
            event.usage = None  # set: it stands there as null, as OpenAI's does
        if ended:
            event.kvloom = kvloom_report(ended)
        return sse.event(event.to_json())

    def _bare(self, choices: list[ChatDeltaChoice]) -> ChatEvent:
        return ChatEvent(
            id=self.id, object="chat.completion.chunk", created=self.created, model=self.model, choices=choices
        )


class _ChoiceWriter:
    """Writes one choice's events."""

    def __init__(self, shape: _Shape, index: int, reader: ToolReader | None) -> None:
        self._shape = shape
        self._index = index
        self._reader = reader
        self._wants_logprobs = bool(shape.body.logprobs)
        self._num_calls = 0
        self._template: sse.EventTemplate | None = None

    def first(self) -> ChatDeltaChoice:
        return self._choice(ChatDelta(role="assistant", content=""))

    def is_plain(self, delta: TextDelta) -> bool:
        """Whether only a text is told, as in nearly all events."""
        return self._reader is None and not self._wants_logprobs and not delta.is_reasoning

    def plain(self, delta: TextDelta) -> bytes:
        if self._template is None:
            self._template = sse.EventTemplate(lambda text: self._shape.event([self._choice(ChatDelta(content=text))]))
        return self._template.of(delta.text)

    def more(self, delta: TextDelta) -> list[ChatDeltaChoice]:
        if delta.is_reasoning:
            found = [self._choice(ChatDelta(reasoning_content=delta.text))]
        elif self._reader is None:
            found = [self._choice(ChatDelta(content=delta.text))]
        else:
            found = self._read(self._reader.push(delta.text))
        if self._wants_logprobs and delta.logprobs:
            # A reader may hold text back; what is told of the tokens is told now.
            found = found or [self._choice(ChatDelta())]
            found[0].logprobs = chat_logprobs(delta.logprobs)
        return found

    def end(self, event: EndEvent) -> list[ChatDeltaChoice]:
        """What was held back, and the end itself as the last."""
        found = self._read(self._reader.finish()) if self._reader is not None else []
        last = self._choice(ChatDelta())
        last.finish_reason = _finish(event.completion, self._num_calls > 0)
        return [*found, last]

    def _read(self, read: ReadText) -> list[ChatDeltaChoice]:
        found = [self._choice(ChatDelta(content=read.text))] if read.text else []
        for call in read.calls:
            function = FunctionDelta(name=call.name, arguments=call.arguments)
            whole = ToolCallDelta(index=self._num_calls, id=call_id(), type="function", function=function)
            self._num_calls += 1
            found.append(self._choice(ChatDelta(tool_calls=[whole])))
        return found

    def _choice(self, delta: ChatDelta) -> ChatDeltaChoice:
        return ChatDeltaChoice(index=self._index, delta=delta, logprobs=None, finish_reason=None)


def _finish(completion: Completion, has_calls: bool) -> FinishReason:
    reason = finish_reason(completion)
    return "tool_calls" if has_calls and reason == "stop" else reason


def _in_order(completions: dict[int, Completion]) -> list[Completion]:
    return [completions[i] for i in sorted(completions)]
