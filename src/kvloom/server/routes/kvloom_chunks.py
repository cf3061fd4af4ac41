"""`/v1/kvloom/chunks`: texts whose KV is computed once, uploaded, looked at, moved between tiers, erased."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response

from kvloom.server.errors import invalid_value
from kvloom.server.routes.base import caller_of, service_of
from kvloom.server.routes.kvloom_base import (
    PREFIX,
    After,
    ChunkPath,
    Limit,
    ModelName,
    answer,
    chunk_id,
    kvloom_router,
    loom_call,
    page,
)
from kvloom.server.schema.kvloom import (
    MAX_METADATA,
    CheckedEntry,
    ChunkCheck,
    ChunkDetailView,
    ChunkPage,
    ChunkUpload,
    ChunkView,
    ErasedChunk,
    MetadataChange,
    MovedBytes,
    UploadedChunk,
)
from kvloom.server.uploads import Upload, read_upload
from kvloom.session.loom import Loom
from kvloom.session.values import Chunk, ChunkStatus

routes = kvloom_router("chunks")

CHUNKS = f"{PREFIX}/chunks"

_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "a text file, UTF-8"},
        "name": {"type": "string", "description": "default: the file's own name"},
        "repair": {"type": "boolean", "description": "invalid UTF-8 becomes U+FFFD"},
    },
}
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": ChunkUpload.model_json_schema()},
            "multipart/form-data": {"schema": _FORM},
        },
    }
}


@routes.post(CHUNKS, response_model=UploadedChunk, openapi_extra=_UPLOAD)
async def upload_chunk(request: Request, model: ModelName = None) -> Response:
    """Upload a text as a chunk, as a file of a form or as JSON. The same text again stores nothing twice."""
    upload = await read_upload(request, service_of(request).settings)
    async with loom_call(request, model) as call:
        chunk = await call.run(_load, call.loom, upload)
    return answer(UploadedChunk.model_validate(chunk))


@routes.get(CHUNKS, response_model=ChunkPage)
async def list_chunks(
    request: Request,
    limit: Limit = 100,
    after: After = None,
    name: Annotated[str | None, Query(max_length=256, description="only the chunk of this name")] = None,
    erased: Annotated[bool, Query(description="the erased ones instead")] = False,
    model: ModelName = None,
) -> Response:
    """The caller's chunks in the order of their upload, with the tier of their KV."""
    async with loom_call(request, model) as call:
        found: list[ChunkStatus] = await call.run(call.loom.chunks, erased=erased)
    wanted = [status for status in found if name is None or status.name == name]
    shown, has_more = page(wanted, lambda status: status.id, limit, after)
    return answer(ChunkPage(data=[ChunkView.model_validate(status) for status in shown], has_more=has_more))


@routes.get(f"{CHUNKS}/{{chunk}}", response_model=ChunkDetailView)
async def show_chunk(chunk: ChunkPath, request: Request, model: ModelName = None) -> Response:
    """Everything about one chunk: its parts and their tiers, the sessions that hold it, its metadata."""
    async with loom_call(request, model) as call:
        detail = await call.run(call.loom.chunk, await call.known(chunk_id(chunk)))
    return answer(ChunkDetailView.model_validate(detail))


@routes.patch(f"{CHUNKS}/{{chunk}}", response_model=ChunkDetailView)
async def set_chunk_metadata(
    chunk: ChunkPath, body: MetadataChange, request: Request, model: ModelName = None
) -> Response:
    """Set or take away keys of a chunk's metadata; the others stay."""
    async with loom_call(request, model) as call:
        known = await call.known(chunk_id(chunk))
        await call.run(_set_metadata, call.loom, known, body.metadata)
        detail = await call.run(call.loom.chunk, known)
    return answer(ChunkDetailView.model_validate(detail))


@routes.delete(f"{CHUNKS}/{{chunk}}", response_model=ErasedChunk)
async def erase_chunk(
    chunk: ChunkPath,
    request: Request,
    purge: Annotated[bool, Query(description="really gone, from every tier, session and snapshot; for good")] = False,
    model: ModelName = None,
) -> Response:
    """Hide a chunk; `restore` brings it back, and contexts that hold it keep it. With `purge` it is gone for good."""
    async with loom_call(request, model) as call:
        known = await call.known(chunk_id(chunk), erased=purge)
        freed = 0
        if purge:
            call.open_sessions.check_nobody_asks(caller_of(request).tenant)
            freed = await call.open_sessions.whole(call.run(call.loom.purge, known))
        else:
            await call.run(call.loom.erase, known)
    return answer(ErasedChunk(id=known, is_purged=purge, freed_bytes=freed))


@routes.post(f"{CHUNKS}/{{chunk}}/restore", response_model=MovedBytes)
async def restore_chunk(chunk: ChunkPath, request: Request, model: ModelName = None) -> Response:
    """An erased chunk back into the list, and a chunk's stored KV back into RAM."""
    async with loom_call(request, model) as call:
        known = await call.known(chunk_id(chunk), erased=True)
        moved = await call.run(call.loom.restore, known)
    return answer(MovedBytes(id=known, moved_bytes=moved))


@routes.post(f"{CHUNKS}/{{chunk}}/offload", response_model=MovedBytes)
async def offload_chunk(chunk: ChunkPath, request: Request, model: ModelName = None) -> Response:
    """A chunk's KV from the device and RAM to disk. It comes back when it is used."""
    async with loom_call(request, model) as call:
        known = await call.known(chunk_id(chunk))
        moved = await call.run(call.loom.offload, known)
    return answer(MovedBytes(id=known, moved_bytes=moved))


@routes.post(f"{CHUNKS}/{{chunk}}/save", response_model=MovedBytes)
async def save_chunk(chunk: ChunkPath, request: Request, model: ModelName = None) -> Response:
    """A chunk's KV on disk now, synced; it stays where it is, too."""
    async with loom_call(request, model) as call:
        known = await call.known(chunk_id(chunk))
        saved = await call.run(call.loom.save, known)
    return answer(MovedBytes(id=known, moved_bytes=saved))


@routes.post(f"{CHUNKS}/{{chunk}}/verify", response_model=ChunkCheck)
async def verify_chunk(chunk: ChunkPath, request: Request, model: ModelName = None) -> Response:
    """Read a chunk's text and every stored entry of it, and check them against their hashes."""
    async with loom_call(request, model) as call:
        known = await call.known(chunk_id(chunk))
        found = await call.run(call.loom.verify_chunk, known)
    entries = [CheckedEntry.model_validate(one) for one in found]
    return answer(ChunkCheck(id=known, is_whole=not any(one.fault for one in found), entries=entries))


def _load(loom: Loom, upload: Upload) -> Chunk:
    chunk = loom.load_bytes(upload.data, name=upload.name, repair=upload.repair)
    for key, value in upload.metadata.items():
        loom.set_metadata(chunk.id, key, value)
    return chunk


def _set_metadata(loom: Loom, chunk: str, changes: dict[str, str | None]) -> None:
    after = dict(loom.chunk(chunk).metadata)
    for key, value in changes.items():
        after.pop(key, None)
        if value:
            after[key] = value
    if len(after) > MAX_METADATA:
        raise invalid_value("metadata", f"a chunk would have {len(after)} keys of metadata; at most {MAX_METADATA}")
    for key, value in changes.items():
        loom.set_metadata(chunk, key, value)
