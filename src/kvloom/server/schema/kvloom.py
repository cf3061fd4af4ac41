"""Shapes of kvloom's own API: chunks, profiles and the status. Those of sessions stand in `kvloom_sessions`.

Knows no endpoint. Views are read off the session room's values field by field.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from kvloom.server.schema.base import ReplyModel, RequestModel
from kvloom.server.schema.extension import FidelityName
from kvloom.types import TierName

MAX_NAME_CHARS = 256
"""A label of a chunk, session, snapshot or file."""

MAX_REFS = 256
"""Chunks or turns named in one request."""

MAX_METADATA = 32
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_CHARS = 2048

Label = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line of text. It is a name and never a path: nothing is opened by it."""

Ref = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
"""A chunk's id, at least six digits of its beginning, or its name."""


def shown_model(name: str) -> str:
    """A model's name as others may see it: one that was opened by its path goes by the file's."""
    return PurePath(name).stem if name.lower().endswith(".gguf") else name


ModelId = Annotated[str, BeforeValidator(shown_model)]

MetadataKey = Annotated[str, Field(min_length=1, max_length=MAX_METADATA_KEY_CHARS)]
MetadataValue = Annotated[str, Field(max_length=MAX_METADATA_CHARS)]


class View(ReplyModel):
    """A value of the session room, written out whole."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    def to_json(self) -> str:
        return self.model_dump_json()


# --- chunks ----------------------------------------------------------------------------------------------------------

CHUNK_ID = "d2a84f4b8b650937ec8f73cd8be2c74add5a911ba64df27458ed8229da804a26"


class ChunkUpload(RequestModel):
    """A text as a chunk. Its id is the SHA-256 of its UTF-8 bytes: the same text again stores nothing twice."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "notes.txt", "text": "The meeting is on Tuesday at ten."}]}
    )

    name: Label
    text: str = Field(min_length=1)
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=MAX_METADATA)


class UploadedChunk(View):
    """A chunk that was uploaded. `is_new`: its content was not known."""

    id: str = Field(examples=[CHUNK_ID])
    name: str
    num_tokens: int
    num_parts: int
    size_bytes: int
    is_new: bool
    is_estimate: bool


class ChunkView(View):
    """A chunk and where its KV is. `tier`: the coldest that any part of it has to come from."""

    id: str = Field(examples=[CHUNK_ID])
    name: str
    num_tokens: int
    size_bytes: int
    tier: TierName
    kv_bytes: int
    is_erased: bool
    is_estimate: bool


class ChunkPage(View):
    object: Literal["list"] = "list"
    data: list[ChunkView]
    has_more: bool = Field(description="ask again with `after` set to the last one's id")


class ChunkPartView(View):
    """A part's KV entry, and how many native cells hold it."""

    part: int
    entry: str
    num_tokens: int
    tier: TierName
    kv_bytes: int
    num_cells: int


class ChunkPlaceView(View):
    """A chunk in a session's context. Positions are [start, stop)."""

    session: str
    session_name: str
    is_active: bool
    is_pinned: bool
    start: int
    stop: int


class ChunkDetailView(View):
    status: ChunkView
    parts: list[ChunkPartView]
    places: list[ChunkPlaceView]
    num_references: int
    metadata: dict[str, str]


class MetadataChange(RequestModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"metadata": {"project": "atlas", "draft": None}}]})

    metadata: dict[MetadataKey, MetadataValue | None] = Field(
        max_length=MAX_METADATA, description="null or an empty text takes a key away"
    )


class ErasedChunk(View):
    """`freed_bytes`: of its KV and its text, where it was purged."""

    id: str
    is_erased: Literal[True] = True
    is_purged: bool
    freed_bytes: int


class MovedBytes(View):
    """Bytes of KV that are where they were wanted now."""

    id: str
    moved_bytes: int


class CheckedEntry(View):
    entry: str
    size_bytes: int
    fault: str = Field(description="empty where the entry is whole")


class ChunkCheck(View):
    """The text was read and hashed, and every stored entry checked. A damaged entry is computed again when wanted."""

    id: str
    is_whole: bool
    entries: list[CheckedEntry]


# --- profiles --------------------------------------------------------------------------------------------------------


class ProfileSave(RequestModel):
    """A session's chunks, system prompt and fidelity under a name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"session": "9f86d081884c7d65"}]})

    session: str = Field(max_length=MAX_NAME_CHARS, description="the session's id")
    chunks: list[Ref] | None = Field(
        None,
        max_length=MAX_REFS,
        description="default: those that are on in the session; `{slot}` stands for one that is named on use",
    )


class ProfileUse(RequestModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "review", "slots": {}}]})

    name: str = Field(min_length=1, max_length=64)
    slots: dict[str, Ref] | None = Field(None, max_length=MAX_REFS)


class ProfileView(View):
    """`num_files`: sources that are files of the server; they can be used on its command line only."""

    name: str
    chunks: list[str]
    num_files: int
    system: str
    fidelity: FidelityName | None
    slots: list[str]


class ProfileList(View):
    object: Literal["list"] = "list"
    data: list[ProfileView]


class Deleted(View):
    id: str
    deleted: Literal[True] = True


# --- status ----------------------------------------------------------------------------------------------------------


class TierView(View):
    """`budget_bytes` null: what there is (the device's limit is its cells)."""

    tier: TierName
    num_entries: int
    used_bytes: int
    budget_bytes: int | None


class OwnUse(View):
    """What the caller has here. `kv_bytes`: of its chunks, by the coldest tier of each."""

    num_chunks: int
    num_sessions: int
    num_open_sessions: int
    kv_bytes: dict[TierName, int]


class GuardView(View):
    """The memory guard: "normal", "soft", "hard" or "critical"; `is_refusing`: new work gets 503."""

    level: str
    is_refusing: bool


class ServerView(View):
    """The whole server's: tells of all tenants together, so callers by key do not get it."""

    num_cells: int
    used_cells: int
    tiers: list[TierView]
    faults: dict[str, int]


class StatusView(View):
    model: ModelId
    fingerprint: str
    engine: str
    kv_type: str
    window: int
    train_context: int
    fidelity: FidelityName
    can_move_kv: bool
    can_rotate: bool
    why_not: str
    guard: GuardView
    own: OwnUse
    server: ServerView | None
