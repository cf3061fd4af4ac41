"""Names a model by what it computes: SHA-256 of its weights, adapters and RoPE overrides. Hashes a file only once.

Known hashes lie in `model-hashes.json` in the home, by device, inode, size, mtime and ctime. Losing it costs time only.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvloom.errors import ModelFormatError, ModelNotFoundError
from kvloom.types import ModelFingerprint

__all__ = ["Adapter", "HashCache", "file_sha256", "model_fingerprint"]

READ_BYTES = 4 * 1024**2
RACY_NS = 2_000_000_000
"""A file changed within its clock's last tick could change again unseen: such a young file's hash is not remembered."""
MAX_REMEMBERED = 256
FINGERPRINT_VERSION = "kvloom-model-1"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter laid over the weights."""

    sha256: str
    scale: float = 1.0


@dataclass(frozen=True)
class HashCache:
    """Remembers hashes of large files. Safe with several processes: the file is replaced whole; the last one wins."""

    home: Path

    @property
    def path(self) -> Path:
        return self.home / "model-hashes.json"

    def get(self, identity: str) -> str | None:
        return self._read().get(identity)

    def put(self, identity: str, sha256: str) -> None:
        """Remember a hash; a home that cannot be written costs the next hashing, nothing else."""
        known = self._read()
        known.pop(identity, None)
        kept = dict([*known.items(), (identity, sha256)][-MAX_REMEMBERED:])
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.home, prefix=".hashes-", suffix=".tmp")
            with os.fdopen(handle, "wb") as sink:
                sink.write(msgspec.json.encode(kept))
                sink.flush()
                os.fsync(sink.fileno())
            Path(temporary).replace(self.path)
        except OSError:
            return

    def _read(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError):
            return {}


def _identity(path: Path) -> tuple[str, os.stat_result]:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {path}") from error
    fields = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "-".join(map(str, fields)), status


def file_sha256(
    path: Path, cache: HashCache | None = None, on_progress: Callable[[int, int], None] | None = None
) -> str:
    """SHA-256 of a file, from the cache where it is unchanged. `on_progress(done_bytes, total_bytes)` while it reads.

    Raises ModelNotFoundError; ModelFormatError where it cannot be read or changes meanwhile.
    """
    identity, status = _identity(path)
    if cache is not None and (known := cache.get(identity)) is not None:
        return known
    digest, done = hashlib.sha256(), 0
    try:
        with path.open("rb", buffering=0) as source:
            while block := source.read(READ_BYTES):
                digest.update(block)
                done += len(block)
                if on_progress is not None:
                    on_progress(done, status.st_size)
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror or error}") from error
    after, _ = _identity(path)
    if after != identity:
        raise ModelFormatError(f"{path} changed while it was hashed; try again when it is complete")
    newest_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    if cache is not None and time.time_ns() - newest_ns > RACY_NS:
        cache.put(identity, digest.hexdigest())
    return digest.hexdigest()


def model_fingerprint(
    weights: Sequence[str], adapters: Sequence[Adapter] = (), rope: Mapping[str, object] | None = None
) -> ModelFingerprint:
    """Names what a model computes. `weights`: SHA-256 of each file in order; `rope`: overrides by name.

    Overrides that are None count as absent, and numbers by value: 1 and 1.0 are one setting.
    """
    overrides = {
        name: float(value) if isinstance(value, int | float) else str(value)
        for name, value in (rope or {}).items()
        if value is not None
    }
    named = [FINGERPRINT_VERSION, list(weights), [[adapter.sha256, adapter.scale] for adapter in adapters], overrides]
    return ModelFingerprint(hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest())
