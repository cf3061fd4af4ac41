"""Every error kvloom raises, drawn as one tree. Knows nothing of where they are raised.

KvloomError
├── ConfigError                 a setting is wrong: names the key, the place, the nearest valid name
├── ModelError
│   ├── ModelNotFoundError      no such file, registry id or hub name
│   ├── ModelFormatError        not a GGUF, truncated, or of an unsupported kind
│   └── ModelFetchError         a download failed, or its SHA-256 differs
├── EngineError
│   ├── EngineUnsupportedError  the engine or model lacks a capability
│   ├── EngineMemoryError       the native context or its cells could not be had
│   └── EngineStateError        a native call refused what was asked of it
├── ContentError                a file or text that cannot become a chunk (missing, binary, empty, …)
├── ChunkError
│   ├── UnknownChunkError       no chunk of that id or name
│   └── AmbiguousChunkError     a prefix names several; lists them
├── ContextOverflowError        what was asked does not fit the window; carries the numbers
├── TemplateError               the model's chat template cannot be rendered
├── StoreError
│   ├── StoreFullError          no space left in a tier or on the device behind it
│   ├── StoreReadOnlyError      the home cannot be written
│   ├── IndexDamagedError       a library's index cannot be used any more: it is removed and built anew
│   └── EntryCorruptError       a stored entry failed its check (inside kvloom this becomes a miss)
├── SessionError
│   ├── UnknownSessionError     no session of that id or name
│   ├── SessionBusyError        another process or thread is writing it
│   ├── SessionClosedError      used after close()
│   ├── NothingToUndoError      the session's log has no earlier manifest
│   ├── SnapshotError           a snapshot is damaged, or of a newer version
│   │   └── UnknownSnapshotError no snapshot of that id or title
│   └── CompressionError        nothing could be compressed, or it gained too little; the context is as before
├── AccountError
│   ├── InvalidKeyError         an API key that is not known, or was revoked
│   ├── UnknownKeyError         no API key of that id or name
│   └── QuotaExceededError      a key's limit has no room for the request; carries the numbers
├── MemoryPressureError         memory is critically short: new work is refused, nothing is lost
├── LoomClosedError             the loom was closed
├── CancelledError              a running generation was cancelled (the context is as before the turn)
└── UsageError                  a command or call was given arguments that make no sense
"""

from __future__ import annotations

from collections.abc import Sequence


class KvloomError(Exception):
    """Base of every error that kvloom raises on purpose."""


class ConfigError(KvloomError):
    """A setting is unknown or has a wrong value."""


class ModelError(KvloomError):
    """Something about the model file or its origin."""


class ModelNotFoundError(ModelError):
    """No model of that name, path or registry id."""


class ModelFormatError(ModelError):
    """The file is not a GGUF, is truncated, or is of a kind that cannot be run."""


class ModelFetchError(ModelError):
    """A model could not be fetched, or what came is not what was expected."""


class EngineError(KvloomError):
    """The engine refused or failed."""


class EngineUnsupportedError(EngineError):
    """The engine or the loaded model lacks the capability that was asked for."""


class EngineMemoryError(EngineError):
    """The engine could not get the memory or the cells it needs."""


class EngineStateError(EngineError):
    """A native call was refused: the sequence or its state is not as required."""


class ContentError(KvloomError):
    """A file or text cannot become a chunk."""


class ChunkError(KvloomError):
    """Something about a chunk's name or id."""


class UnknownChunkError(ChunkError):
    """No chunk has that id, prefix or name."""


class AmbiguousChunkError(ChunkError):
    """A prefix or name fits several chunks.

    `candidates` holds (chunk id, name) of each.
    """

    def __init__(self, message: str, candidates: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class ContextOverflowError(KvloomError):
    """What was asked does not fit the window.

    `num_needed_tokens` and `num_window_tokens` carry the numbers of the message.
    """

    def __init__(self, message: str, *, num_needed_tokens: int, num_window_tokens: int) -> None:
        super().__init__(message)
        self.num_needed_tokens = num_needed_tokens
        self.num_window_tokens = num_window_tokens


class TemplateError(KvloomError):
    """The model's chat template could not be rendered."""


class StoreError(KvloomError):
    """Something about the home or a tier."""


class StoreFullError(StoreError):
    """No space is left in a tier, or on the device behind it."""


class StoreReadOnlyError(StoreError):
    """The home cannot be written."""


class IndexDamagedError(StoreError):
    """A library's index is damaged. Removing it loses nothing: its documents are added again."""


class PurgeIncompleteError(StoreError):
    """A chunk is purged, but a library is damaged and may still hold its text: it has to be deleted."""


class EntryCorruptError(StoreError):
    """A stored entry failed a check. `reason` is a short, countable word."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class SessionError(KvloomError):
    """Something about a session."""


class UnknownSessionError(SessionError):
    """No session has that id or name."""


class SessionBusyError(SessionError):
    """Another writer holds the session."""


class SessionClosedError(SessionError):
    """The session was used after it was closed."""


class NothingToUndoError(SessionError):
    """There is no earlier manifest in the session's log."""


class NothingFoundError(SessionError):
    """The libraries have nothing relevant to a question that was only to be answered from them."""


class SnapshotError(SessionError):
    """A snapshot cannot be used: damaged, or written by a newer version."""


class UnknownSnapshotError(SnapshotError):
    """The session has no snapshot of that id or title."""


class CompressionError(SessionError):
    """Nothing could be compressed, or it gained too little; the context is as it was before."""


class AccountError(KvloomError):
    """Something about an API key or its limits."""


class InvalidKeyError(AccountError):
    """The API key is not known, or was revoked."""


class UnknownKeyError(AccountError):
    """No API key has that id or name."""


class QuotaExceededError(AccountError):
    """One of a key's limits has no room for the request, and nothing was reserved.

    `limit_name`, `limit` and `remaining` say which one and how much of it is free. `retry_after_s`: the earliest moment
    at which the request may pass; None: never, it is larger than the limit. `is_spent`: a day's quota is used up, so
    that asking again soon makes no sense.
    """

    def __init__(
        self,
        message: str,
        *,
        limit_name: str,
        limit: int,
        remaining: int,
        retry_after_s: float | None,
        is_spent: bool = False,
    ) -> None:
        super().__init__(message)
        self.limit_name = limit_name
        self.limit = limit
        self.remaining = remaining
        self.retry_after_s = retry_after_s
        self.is_spent = is_spent

    @property
    def should_retry(self) -> bool:
        """Whether the same request may pass after a wait that a program would take."""
        return self.retry_after_s is not None and not self.is_spent


class MemoryPressureError(KvloomError):
    """Memory is critically short: new work is refused until there is more, and nothing is lost."""


class LoomClosedError(KvloomError):
    """The loom was used after it was closed."""


class CancelledError(KvloomError):
    """A running generation was cancelled; the context is as it was before the turn."""


class UsageError(KvloomError):
    """A command or call was given arguments that make no sense."""
