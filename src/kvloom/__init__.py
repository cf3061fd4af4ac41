"""kvloom: a context manager for local LLMs. Chunks whose KV cache is computed once, stored, and woven into any context.

import kvloom
with kvloom.open() as loom:
    chunk = loom.load("utils.py")
    chat = loom.session(system="Answer briefly.")
    chat.activate(chunk.id)
    print(chat.generate("What does it do?").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvloom.errors import (
    AmbiguousChunkError,
    CancelledError,
    ChunkError,
    ConfigError,
    ContentError,
    ContextOverflowError,
    EngineError,
    EngineMemoryError,
    EngineStateError,
    EngineUnsupportedError,
    EntryCorruptError,
    KvloomError,
    LoomClosedError,
    ModelError,
    ModelFetchError,
    ModelFormatError,
    ModelNotFoundError,
    NothingToUndoError,
    SessionBusyError,
    SessionClosedError,
    SessionError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    TemplateError,
    UnknownChunkError,
    UnknownSessionError,
    UsageError,
)
from kvloom.types import Fidelity, KVType, TierName, Usage

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.rooms import open_loom as open  # noqa: A004 - `kvloom.open` is the public name
    from kvloom.session.session import Session

__version__ = "0.1.0"

__all__ = [
    "AmbiguousChunkError",
    "CancelledError",
    "ChunkError",
    "ConfigError",
    "ContentError",
    "ContextOverflowError",
    "EngineError",
    "EngineMemoryError",
    "EngineStateError",
    "EngineUnsupportedError",
    "EntryCorruptError",
    "Fidelity",
    "KVType",
    "KvloomError",
    "Loom",
    "LoomClosedError",
    "ModelError",
    "ModelFetchError",
    "ModelFormatError",
    "ModelNotFoundError",
    "NothingToUndoError",
    "Session",
    "SessionBusyError",
    "SessionClosedError",
    "SessionError",
    "StoreError",
    "StoreFullError",
    "StoreReadOnlyError",
    "TemplateError",
    "TierName",
    "UnknownChunkError",
    "UnknownSessionError",
    "Usage",
    "UsageError",
    "open",
]


def __getattr__(name: str) -> Any:
    """What loads numpy and the engine is imported when it is first used: `kvloom --help` must not wait for it."""
    if name == "open":
        from kvloom.session.rooms import open_loom

        return open_loom
    if name == "Loom":
        from kvloom.session.loom import Loom

        return Loom
    if name == "Session":
        from kvloom.session.session import Session

        return Session
    raise AttributeError(f"module 'kvloom' has no attribute {name!r}")
