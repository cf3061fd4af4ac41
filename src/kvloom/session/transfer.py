"""Sessions as JSON-able values, the texts of their chunks included, and back. Knows no engine."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kvloom.chunk.content import Content, Encoding, content_id, decode_content
from kvloom.context.manifest import Manifest
from kvloom.errors import ContentError, UnknownChunkError, UsageError
from kvloom.types import ChunkId, SessionId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


def export_session(loom: Loom, session: SessionId) -> dict[str, Any]:
    """A chunk's `text` where its UTF-8 bytes are the chunk's own, else its `data` in base64."""
    exported = loom.log.export(session)
    chunks: dict[str, dict[str, str]] = {}
    for record in loom.log.manifests(session):
        for slot in Manifest.decode(record.body, loom.log.tokens).chunks:
            if slot.ref not in chunks:
                content = loom.catalog.content(ChunkId(slot.ref))
                chunks[slot.ref] = {"name": slot.name, **_packed(content)}
    return {**exported, "chunks": chunks, "fingerprint": loom.engine.fingerprint}


def import_session(loom: Loom, data: Mapping[str, Any]) -> SessionId:
    """The new session. Names that other chunks have here stay theirs. Raises UsageError where the values are none."""
    try:
        contents = [_content(chunk, item) for chunk, item in data.get("chunks", {}).items()]
        names = [str(item["name"]) for item in data.get("chunks", {}).values()]
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise UsageError(f"this is not an exported session ({type(exc).__name__}: {exc})") from exc
    session = loom.log.load(data)
    for content, name in zip(contents, names, strict=True):
        loom.shelf.add(content, _free_name(loom, name, content.id))
    return session


def _packed(content: Content) -> dict[str, str]:
    if content.text.encode() == content.data:
        return {"text": content.text}
    return {"data": base64.b64encode(content.data).decode()}


def _content(chunk: str, item: Mapping[str, Any]) -> Content:
    data = base64.b64decode(item["data"], validate=True) if "data" in item else str(item["text"]).encode()
    if content_id(data) != chunk:
        raise ContentError(f"the text of chunk {chunk[:12]} is not what was exported: the file was changed")
    text = decode_content(data)
    return Content(content_id(data), data, text, Encoding.UTF8 if text.encode() == data else Encoding.UTF8_BOM)


def _free_name(loom: Loom, name: str, chunk: ChunkId) -> str:
    try:
        taken = loom.catalog.name(name).chunk_id != chunk
    except UnknownChunkError:
        taken = False
    return f"{name} ({chunk[:8]})" if taken else name
