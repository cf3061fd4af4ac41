"""`POST /v1/completions`: the shapes of its reply and of its events. How a reply is run is the service's."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from fastapi import Request, Response

from kvloom.config import ServerSettings
from kvloom.server import prompts, sse
from kvloom.server.errors import invalid_value, unsupported
from kvloom.server.replies import DeltaEvent, Replies
from kvloom.server.reports import dropped_header, kvloom_report, number, token_text, usage_of
from kvloom.server.routes.base import EVENT_STREAM, caller_of, event_answer, json_answer, notes, router, service_of
from kvloom.server.schema.completions import CompletionChoice, CompletionLogprobs, CompletionReply, CompletionRequest
from kvloom.server.service import Call
from kvloom.session.requests import Completion, RawPrompt, TokenLogprob
from kvloom.session.requests import Request as Ask

routes = router("completions")


@dataclass(frozen=True)
class _Head:
    """What all events of a reply share. `echoes`: texts before the replies, one for each prompt; none without echo."""

    id: str
    created: int
    model: str
    choices_each: int
    echoes: tuple[str, ...]
    wants_logprobs: bool
    wants_usage: bool

    def echo(self, choice: int) -> str:
        return self.echoes[choice // self.choices_each] if self.echoes else ""

    def reply(self, choices: list[CompletionChoice]) -> CompletionReply:
        return CompletionReply(
            id=self.id, object="text_completion", created=self.created, model=self.model, choices=choices
        )


@routes.post(
    "/v1/completions",
    response_model=CompletionReply,
    responses={200: {"description": "The reply, or its events.", "content": EVENT_STREAM}},
)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Go on with a text, or with token ids."""
    service = service_of(request)
    if body.echo and body.logprobs is not None:
        raise unsupported("echo", "log-probabilities of a prompt are not computed; ask for one of echo and logprobs")
    raws = prompts.raw_prompts(body, service.settings)
    if len(raws) * body.num_choices > service.settings.max_choices:
        most = service.settings.max_choices
        message = f"{len(raws)} prompts times n = {body.num_choices} is more than {most} replies"
        raise invalid_value("n", f"{message} (setting server.max_choices)")
    told = notes(request, stream=bool(body.stream), user=body.user)
    async with service.call(body.model, caller_of(request), told) as call:
        asks = _asks(body, raws, service.settings)
        head = _Head(
            id=f"cmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=call.lease.info.id,
            choices_each=body.num_choices,
            echoes=await _echoes(call, raws) if body.echo else (),
            wants_logprobs=body.logprobs is not None,
            wants_usage=body.wants_usage,
        )
        replies = await call.start(asks, body.seeds)
        if body.stream:
            return await event_answer(call, replies, _events(head, replies))
        completions = await replies.completions()
    whole = head.reply([_choice(head, i, completion) for i, completion in enumerate(completions)])
    whole.usage = usage_of(completions, head.choices_each, replies.num_reasoning_tokens)
    whole.kvloom = kvloom_report(completions)
    return json_answer(whole.to_json(), {**call.headers, **dropped_header(completions[0].dropped)})


def _asks(body: CompletionRequest, raws: Sequence[RawPrompt], limits: ServerSettings) -> list[Ask]:
    params = prompts.sampling(body, limits)
    first = Ask(
        prompt=raws[0],
        max_tokens=body.max_tokens,
        sampling=params,
        stop=body.stops,
        top_logprobs=body.logprobs,
        fidelity=prompts.fidelity(body.kvloom, limits),
        overflow=prompts.overflow(body.kvloom),
    )
    return [replace(first, prompt=raw) for raw in raws]


async def _echoes(call: Call, raws: Sequence[RawPrompt]) -> tuple[str, ...]:
    detokenize = call.lease.detokenize
    return tuple([await call.service.aside(detokenize, raw.tokens) if raw.tokens else raw.text for raw in raws])


def _choice(head: _Head, index: int, completion: Completion) -> CompletionChoice:
    return CompletionChoice(
        index=index,
        text=head.echo(index) + completion.reasoning + completion.text,
        logprobs=_logprobs(completion.logprobs, 0) if head.wants_logprobs else None,
        finish_reason=finish_reason(completion),
    )


def finish_reason(completion: Completion) -> Literal["stop", "length"]:
    """A reply that was cancelled has no reader; it says the nearest."""
    return "stop" if completion.finish_reason == "stop" else "length"


def _logprobs(items: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs:
    """`offset`: characters of the reply before the first of these tokens."""
    tokens = [token_text(item) for item in items]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[number(item.logprob) for item in items],
        top_logprobs=[{token_text(top): number(top.logprob) for top in item.top} for item in items],
        text_offset=offsets,
    )


async def _events(head: _Head, replies: Replies) -> AsyncIterator[bytes]:
    completions: dict[int, Completion] = {}
    offsets = dict.fromkeys(range(replies.num_choices), 0)
    plain = [sse.EventTemplate(partial(_text_event, head, index)) for index in offsets]
    for index in offsets if head.echoes else ():
        yield _text_event(head, index, head.echo(index))
    async for event in replies.events():
        if isinstance(event, DeltaEvent):
            delta = event.delta
            if not head.wants_logprobs:
                yield plain[event.choice].of(delta.text)
                continue
            logprobs = _logprobs(delta.logprobs, offsets[event.choice])
            offsets[event.choice] += sum(len(token_text(item)) for item in delta.logprobs)
            choice = CompletionChoice(index=event.choice, text=delta.text, logprobs=logprobs, finish_reason=None)
            yield _event(head, [choice])
            continue
        completions[event.choice] = event.completion
        end = CompletionChoice(
            index=event.choice, text="", logprobs=None, finish_reason=finish_reason(event.completion)
        )
        is_last = len(completions) == replies.num_choices
        yield _event(head, [end], [completions[i] for i in sorted(completions)] if is_last else ())
    if head.wants_usage:
        last = head.reply([])
        in_order = [completions[i] for i in sorted(completions)]
        last.usage = usage_of(in_order, head.choices_each, replies.num_reasoning_tokens)
        yield sse.event(last.to_json())


def _text_event(head: _Head, index: int, text: str) -> bytes:
    return _event(head, [CompletionChoice(index=index, text=text, logprobs=None, finish_reason=None)])


def _event(head: _Head, choices: list[CompletionChoice], ended: Sequence[Completion] = ()) -> bytes:
    """`ended`: all completions, with the last of their ends; they carry kvloom's report."""
    reply = head.reply(choices)
    if head.wants_usage:
        reply.usage = None  # set: it stands there as null, as OpenAI's does
    if ended:
        reply.kvloom = kvloom_report(ended)
    return sse.event(reply.to_json())
