"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64

from fastapi import Request, Response

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
        texts = await service.aside(_texts, body, lease)
        reservation = await call.reserve(await service.aside(_counted, texts, lease))
        # Where the client leaves, the work goes on to its end: it cannot be cut, and is accounted for.
        vectors, num_tokens = await asyncio.shield(service.lifecycle.run(_embedded(call, texts, reservation)))
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


async def _embedded(call: Call, texts: list[str], reservation: Reservation) -> tuple[list[F32Array], int]:
    call.is_started = True
    try:
        (ticket,) = call.service.admission.enter(call.caller.tenant)
        try:
            await ticket.admitted()
            vectors, num_tokens = await call.service.aside(call.lease.embed, texts)
        finally:
            ticket.leave()
        await reservation.settle(num_tokens)
        return vectors, num_tokens
    finally:
        await reservation.release()  # changes nothing where it was settled
        call.lease.release()


def _texts(body: EmbeddingRequest, lease: ModelLease) -> list[str]:
    given = body.input
    if isinstance(given, str):
        return [given]
    texts = [item for item in given if isinstance(item, str)]
    runs = [item for item in given if isinstance(item, list)]
    if texts:
        return texts
    if runs:
        return [lease.detokenize(run) for run in runs]
    return [lease.detokenize([item for item in given if isinstance(item, int)])]


def _counted(texts: list[str], lease: ModelLease) -> int:
    counts = [len(lease.tokenize(text, add_special=True)) for text in texts]
    longest = max(counts)
    if longest > lease.info.window:
        raise context_overflow(f"A text has {longest} tokens.", longest, lease.info.window)
    return sum(counts)


def _written(vector: F32Array, encoding: str | None) -> list[float] | str:
    """base64: the little-endian float32 bytes, as OpenAI's clients ask for by default."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]
