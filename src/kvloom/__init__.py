"""kvloom: a context manager for local LLMs. Chunks whose KV cache is computed once, stored, and woven into any context.

import kvloom
with kvloom.open() as loom:
    chunk = loom.load("utils.py")
    chat = loom.session(system="Answer briefly.")
    chat.activate(chunk.id)
    print(chat.generate("What does it do?").text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kvloom.errors import (
    AmbiguousChunkError,
    CancelledError,
    ChunkError,
    CompressionError,
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
    MemoryPressureError,
    ModelError,
    ModelFetchError,
    ModelFormatError,
    ModelNotFoundError,
    NothingFoundError,
    NothingToUndoError,
    SessionBusyError,
    SessionClosedError,
    SessionError,
    SnapshotError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    TemplateError,
    UnknownChunkError,
    UnknownSessionError,
    UnknownSnapshotError,
    UsageError,
)
from kvloom.types import Fidelity, KVType, TierName, Usage

if TYPE_CHECKING:
    from kvloom.context.policies.base import policy_names as policies
    from kvloom.reduce.asking import TextModel
    from kvloom.reduce.tree import TreeSummary
    from kvloom.reduce.truncate import Keep, Truncated, truncate
    from kvloom.reduce.window_answers import WindowAnswers
    from kvloom.reduce.windows import Window, windows
    from kvloom.session.long_texts import ask_windows, summarize
    from kvloom.session.loom import Loom
    from kvloom.session.rooms import open_loom as open  # noqa: A004 - `kvloom.open` is the public name
    from kvloom.session.session import Session

__version__ = "0.1.0"

__all__ = [
    "AmbiguousChunkError",
    "CancelledError",
    "ChunkError",
    "CompressionError",
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
    "Keep",
    "KvloomError",
    "Loom",
    "LoomClosedError",
    "MemoryPressureError",
    "ModelError",
    "ModelFetchError",
    "ModelFormatError",
    "ModelNotFoundError",
    "NothingFoundError",
    "NothingToUndoError",
    "Session",
    "SessionBusyError",
    "SessionClosedError",
    "SessionError",
    "SnapshotError",
    "StoreError",
    "StoreFullError",
    "StoreReadOnlyError",
    "TemplateError",
    "TextModel",
    "TierName",
    "TreeSummary",
    "Truncated",
    "UnknownChunkError",
    "UnknownSessionError",
    "UnknownSnapshotError",
    "Usage",
    "UsageError",
    "Window",
    "WindowAnswers",
    "ask_windows",
    "open",
    "policies",
    "summarize",
    "truncate",
    "windows",
]


_LAZY = {
    "Keep": ("kvloom.reduce.truncate", "Keep"),
    "Loom": ("kvloom.session.loom", "Loom"),
    "Session": ("kvloom.session.session", "Session"),
    "TextModel": ("kvloom.reduce.asking", "TextModel"),
    "TreeSummary": ("kvloom.reduce.tree", "TreeSummary"),
    "Truncated": ("kvloom.reduce.truncate", "Truncated"),
    "Window": ("kvloom.reduce.windows", "Window"),
    "WindowAnswers": ("kvloom.reduce.window_answers", "WindowAnswers"),
    "ask_windows": ("kvloom.session.long_texts", "ask_windows"),
    "open": ("kvloom.session.rooms", "open_loom"),
    "policies": ("kvloom.context.policies.base", "policy_names"),
    "summarize": ("kvloom.session.long_texts", "summarize"),
    "truncate": ("kvloom.reduce.truncate", "truncate"),
    "windows": ("kvloom.reduce.windows", "windows"),
}
"""What loads numpy and the engine is imported when it is first used: `kvloom --help` must not wait for it."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'kvloom' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)
