"""`POST /v1/responses`: the shapes of its reply and the order of its events. How a reply is run is the service's."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import Request, Response

from kvloom.server import prompts, sse
from kvloom.server.errors import to_api_error
from kvloom.server.forms import text_form
from kvloom.server.logs import RequestNotes, log_failure
from kvloom.server.replies import DeltaEvent, Replies
from kvloom.server.reports import chat_logprobs, dropped_header, kvloom_report
from kvloom.server.routes.base import EVENT_STREAM, caller_of, event_answer, json_answer, notes, router, service_of
from kvloom.server.routes.completions import finish_reason
from kvloom.server.schema.responses import (
    IncompleteDetails,
    InputDetails,
    MessageItem,
    OutputDetails,
    OutputTextReply,
    ReasoningItem,
    ReasoningTextReply,
    ResponseError,
    ResponseLogprob,
    ResponseReply,
    ResponseRequest,
    ResponseUsage,
)
from kvloom.server.schema.sampling import engine_seed
from kvloom.session.requests import Completion, TextDelta, TokenLogprob
from kvloom.session.requests import Request as Ask

routes = router("responses")

Status = Literal["in_progress", "completed", "incomplete", "failed"]


@routes.post(
    "/v1/responses",
    response_model=ResponseReply,
    responses={200: {"description": "The reply, or its events.", "content": EVENT_STREAM}},
)
async def create_response(body: ResponseRequest, request: Request) -> Response:
    """Answer a text or a conversation, in the shapes of OpenAI's Responses API."""
    service = service_of(request)
    prompt = prompts.response_prompt(body, service.settings)
    policy = prompts.OLDEST_FIRST if body.truncation == "auto" else prompts.overflow(body.kvloom)
    told = notes(request, stream=bool(body.stream), user=body.user)
    async with service.call(body.model, caller_of(request), told) as call:
        form = await service.aside(text_form, body.text.format if body.text else None, call.lease)
        ask = Ask(
            prompt=prompt,
            max_tokens=body.max_output_tokens,
            sampling=prompts.sampling(body, service.settings, form.grammar),
            top_logprobs=body.top_logprobs,
            fidelity=prompts.fidelity(body.kvloom, service.settings),
            recognises=service.settings.reuse != "off",
            overflow=policy,
        )
        shape = _Shape(body, call.lease.info.id)
        replies = await call.start([ask], [engine_seed(body.seed, 0)])
        if body.stream:
            events = shape.events(replies, told)
            return await event_answer(call, replies, events, ends_with_done=False)
        (completion,) = await replies.completions()
    whole = shape.ended(completion, replies.num_reasoning_tokens)
    return json_answer(whole.to_json(), {**call.headers, **dropped_header(completion.dropped)})


@dataclass
class _Shape:
    """How one request's reply is written, whole or as events. `output`: the items so far."""

    body: ResponseRequest
    model: str
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created_at: int = field(default_factory=lambda: int(time.time()))
    _sequence: int = 0

    def reply(self, status: Status, output: list[ReasoningItem | MessageItem]) -> ResponseReply:
        body = self.body
        return ResponseReply(
            id=self.id,
            object="response",
            created_at=self.created_at,
            completed_at=None,
            status=status,
            error=None,
            incomplete_details=None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=self.model,
            output=output,
            parallel_tool_calls=True,
            previous_response_id=None,
            store=False,
            temperature=body.temperature,
            top_p=body.top_p,
            tool_choice="auto",
            tools=[],
            truncation=body.truncation or "disabled",
            metadata=body.metadata or {},
            usage=None,
            kvloom=None,
        )

    def ended(self, completion: Completion, num_reasoning_tokens: int, items: _Items | None = None) -> ResponseReply:
        is_whole = finish_reason(completion) == "stop"
        items = items or _Items()
        status: Literal["completed", "incomplete"] = "completed" if is_whole else "incomplete"
        reply = self.reply(status, items.of(completion, status))
        reply.completed_at = int(time.time()) if is_whole else None
        reply.incomplete_details = None if is_whole else IncompleteDetails(reason="max_output_tokens")
        reply.usage = _usage(completion, num_reasoning_tokens)
        reply.kvloom = kvloom_report([completion])
        return reply

    # -- events -------------------------------------------------------------------------------------------------

    async def events(self, replies: Replies, told: RequestNotes) -> AsyncIterator[bytes]:
        begun = self.reply("in_progress", [])
        yield self._event("response.created", response=_plain(begun))
        yield self._event("response.in_progress", response=_plain(begun))
        writer = _Items()
        try:
            async for event in replies.events():
                if isinstance(event, DeltaEvent):
                    for name, fields in writer.more(event.delta):
                        yield self._event(name, **fields)
                    continue
                reply = self.ended(event.completion, replies.num_reasoning_tokens, writer)
                for name, fields in writer.closed(reply):
                    yield self._event(name, **fields)
                yield self._event(f"response.{reply.status}", response=_plain(reply))
        except Exception as error:  # noqa: BLE001 - the HTTP edge: the status is out, the error becomes an event
            answer = to_api_error(error)
            log_failure(answer, error, told)
            failed = self.reply("failed", [])
            failed.error = ResponseError(code=answer.code, message=str(answer))
            yield self._event("response.failed", response=_plain(failed))

    def _event(self, name: str, **fields: Any) -> bytes:
        data = {"type": name, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return sse.event(json.dumps(data, ensure_ascii=False, separators=(",", ":")), name)


_Named = tuple[str, dict[str, Any]]


class _Items:
    """The output items of one reply: reasoning first where there is any, then the message."""

    def __init__(self) -> None:
        self.reasoning_id = f"rs_{uuid.uuid4().hex}"
        self.message_id = f"msg_{uuid.uuid4().hex}"
        self._open: Literal["", "reasoning", "message"] = ""
        self._reasoning = ""
        self._text = ""
        self._logprobs: list[TokenLogprob] = []

    def of(
        self, completion: Completion, status: Literal["completed", "incomplete"]
    ) -> list[ReasoningItem | MessageItem]:
        """A whole reply's items."""
        items: list[ReasoningItem | MessageItem] = []
        if completion.reasoning:
            items.append(self._reasoning_item(completion.reasoning, "completed" if completion.text else status))
        if completion.text or not items:
            items.append(self._message_item(completion.text, completion.logprobs, status))
        return items

    # -- events -------------------------------------------------------------------------------------------------

    def more(self, delta: TextDelta) -> Iterator[_Named]:
        if delta.is_reasoning:
            if not self._open:
                yield from self._open_reasoning()
            self._reasoning += delta.text
            yield "response.reasoning_text.delta", {**self._place(), "delta": delta.text}
            return
        if self._open != "message":
            yield from self._close_reasoning()
            yield from self._open_message()
        self._text += delta.text
        self._logprobs += delta.logprobs
        yield (
            "response.output_text.delta",
            {
                **self._place(),
                "delta": delta.text,
                "logprobs": [_plain(item) for item in _logprobs(delta.logprobs)],
            },
        )

    def closed(self, reply: ResponseReply) -> Iterator[_Named]:
        """The last events of the items; `reply` holds them whole."""
        if self._open == "reasoning" and not isinstance(reply.output[-1], MessageItem):
            yield from self._close_reasoning()
            return
        if self._open != "message":
            yield from self._close_reasoning()
            yield from self._open_message()
        item = reply.output[-1]
        assert isinstance(item, MessageItem)
        part = item.content[0]
        logprobs = [_plain(one) for one in part.logprobs]
        yield "response.output_text.done", {**self._place(), "text": part.text, "logprobs": logprobs}
        yield "response.content_part.done", {**self._place(), "part": _plain(part)}
        yield "response.output_item.done", {"output_index": self._place()["output_index"], "item": _plain(item)}

    def _open_reasoning(self) -> Iterator[_Named]:
        self._open = "reasoning"
        item = self._reasoning_item("", "in_progress")
        item.content = []
        yield "response.output_item.added", {"output_index": 0, "item": _plain(item)}

    def _close_reasoning(self) -> Iterator[_Named]:
        if self._open != "reasoning":
            return
        item = self._reasoning_item(self._reasoning, "completed")
        yield "response.reasoning_text.done", {**self._place(), "text": self._reasoning}
        yield "response.output_item.done", {"output_index": 0, "item": _plain(item)}

    def _open_message(self) -> Iterator[_Named]:
        self._open = "message"
        item = self._message_item("", (), "in_progress")
        part, item.content = item.content[0], []
        yield "response.output_item.added", {"output_index": self._place()["output_index"], "item": _plain(item)}
        yield "response.content_part.added", {**self._place(), "part": _plain(part)}

    def _place(self) -> dict[str, Any]:
        if self._open == "reasoning":
            return {"item_id": self.reasoning_id, "output_index": 0, "content_index": 0}
        return {"item_id": self.message_id, "output_index": 1 if self._reasoning else 0, "content_index": 0}

    def _reasoning_item(self, text: str, status: Literal["in_progress", "completed", "incomplete"]) -> ReasoningItem:
        content = [ReasoningTextReply(type="reasoning_text", text=text)]
        return ReasoningItem(id=self.reasoning_id, type="reasoning", status=status, summary=[], content=content)

    def _message_item(
        self,
        text: str,
        logprobs: tuple[TokenLogprob, ...],
        status: Literal["in_progress", "completed", "incomplete"],
    ) -> MessageItem:
        part = OutputTextReply(type="output_text", text=text, annotations=[], logprobs=_logprobs(logprobs))
        return MessageItem(id=self.message_id, type="message", role="assistant", status=status, content=[part])


def _logprobs(items: tuple[TokenLogprob, ...]) -> list[ResponseLogprob]:
    return [ResponseLogprob.model_validate(item.model_dump()) for item in chat_logprobs(items).content]


def _usage(completion: Completion, num_reasoning_tokens: int) -> ResponseUsage:
    usage = completion.usage
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=usage.reused_tokens + usage.loaded_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=num_reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_unset=True)
