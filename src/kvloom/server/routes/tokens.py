"""`POST /tokenize` and `/detokenize`, as llama.cpp's and vLLM's clients know them."""

from __future__ import annotations

from functools import partial

from fastapi import Request, Response

from kvloom.server.errors import ApiError, invalid_value
from kvloom.server.routes.base import caller_of, json_answer, notes, router, service_of
from kvloom.server.schema.lists import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from kvloom.server.service import Service

routes = router("tokens")


@routes.post("/tokenize", response_model=TokenizeReply)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The token ids of a text. It is content: no special token comes out of it."""
    if (body.content is None) == (body.prompt is None):
        raise invalid_value("content", "send the text as `content` or as `prompt`, one of them")
    text = body.content if body.content is not None else body.prompt or ""
    service = service_of(request)
    async with service.call(_model(body.model, service), caller_of(request), notes(request)) as call:
        work = partial(call.lease.tokenize, text, add_special=bool(body.add_special))
        tokens = await service.aside(work)
        reply = TokenizeReply(tokens=tokens, count=len(tokens), max_model_len=call.lease.info.window)
    return json_answer(reply.to_json(), {})


@routes.post("/detokenize", response_model=DetokenizeReply)
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text that token ids spell; bytes that are no UTF-8 show U+FFFD."""
    service = service_of(request)
    async with service.call(_model(body.model, service), caller_of(request), notes(request)) as call:
        text = await service.aside(call.lease.detokenize, body.tokens)
    return json_answer(DetokenizeReply(content=text, prompt=text).to_json(), {})


def _model(named: str | None, service: Service) -> str:
    if named is not None:
        return named
    models = service.backend.models()
    if not models:
        raise ApiError(404, "this server has no model", code="model_not_found", param="model")
    return models[0].id
