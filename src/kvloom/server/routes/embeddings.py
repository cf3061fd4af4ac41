"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable
from typing import Any

from fastapi import Request, Response

from kvloom.errors import CancelledError
from kvloom.server.auth import Reservation
from kvloom.server.backend import ModelLease
from kvloom.server.errors import context_overflow, unsupported
from kvloom.server.routes.base import caller_of, json_answer, notes, router, service_of
from kvloom.server.schema.lists import Embedding, EmbeddingReply, EmbeddingRequest, EmbeddingUsage
from kvloom.server.service import Call
from kvloom.types import F32Array

routes = router("embeddings")


@routes.post("/v1/embeddings", response_model=EmbeddingReply)
async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """A vector for each text, where the model can make them."""
    service = service_of(request)
    async with service.call(body.model, caller_of(request), notes(request, user=body.user)) as call:
        lease = call.lease
        if not lease.info.has_embeddings:
            raise unsupported("model", f"{lease.info.id} makes no embeddings; GET /v1/models says which model does")
        tokens = await service.aside(_tokens, body, lease)
        call.notes.tell(prompt_tokens=sum(map(len, tokens)))
        reservation = await call.reserve(sum(map(len, tokens)))
        has_left = threading.Event()
        call.is_started = True  # the lease is the work's from here on
        work = service.lifecycle.run(_embedded(call, tokens, reservation, has_left.is_set))
        try:
            vectors = await asyncio.shield(work)
        except asyncio.CancelledError:
            has_left.set()  # the work ends behind its native batch, and settles
            work.add_done_callback(lambda task: task.cancelled() or task.exception())
            raise
    num_tokens = sum(map(len, tokens))
    reply = EmbeddingReply(
        object="list",
        model=lease.info.id,
        data=[
            Embedding(object="embedding", index=i, embedding=_written(vector, body.encoding_format))
            for i, vector in enumerate(vectors)
        ],
        usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )
    return json_answer(reply.to_json(), call.headers)


async def _embedded(
    call: Call, tokens: list[list[int]], reservation: Reservation, is_cancelled: Callable[[], bool]
) -> list[F32Array]:
    try:
        (ticket,) = call.service.admission.enter(call.caller.tenant)
        try:
            await ticket.admitted()
            if is_cancelled():
                return []  # nobody reads it, and nothing was computed
            vectors = await call.service.in_slot(call.lease.embed, tokens, is_cancelled)
        except CancelledError:
            await reservation.settle(sum(map(len, tokens)))  # how far it came is not counted
            raise
        finally:
            ticket.leave()
        await reservation.settle(sum(map(len, tokens)))
        return vectors
    finally:
        await reservation.release()  # changes nothing where it was settled
        call.lease.release()


def _tokens(body: EmbeddingRequest, lease: ModelLease) -> list[list[int]]:
    """What is to be read of each text. Raises ApiError for one that is longer than the window."""
    found = lease.embedding_tokens(_texts(body.input))
    longest = max(map(len, found))
    if longest > lease.info.window:
        raise context_overflow(f"A text has {longest} tokens.", longest, lease.info.window)
    return found


def _texts(given: Any) -> list[str | list[int]]:
    """One text or many, one list of ids or many."""
    if isinstance(given, str):
        return [given]
    return [given] if isinstance(given[0], int) else list(given)


def _written(vector: F32Array, encoding: str | None) -> list[float] | str:
    """base64: the little-endian float32 bytes, as OpenAI's clients ask for by default."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]
