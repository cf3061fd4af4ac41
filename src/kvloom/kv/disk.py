"""Entries as files: `<directory>/<first two digits of the id>/<id>.kve`. Knows the entry file only as a whole.

The order of use is the files' modification time, so it survives restarts and is shared with other processes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from kvloom.errors import EntryCorruptError, StoreError, StoreFullError
from kvloom.kv import entry_file
from kvloom.kv.codec import Codec
from kvloom.kv.disk_files import FileBay, as_store_error, sync_directory
from kvloom.kv.lru import LruBook
from kvloom.kv.quantize import RowCaster
from kvloom.kv.tier import Removed, Tier, VerifyResult
from kvloom.types import ALONE, Entry, EntryId, EntryKey, RopeSpec, TierName

SUFFIX = ".kve"
_SETTLED_NS = 100_000_000
"""A folder changed less than this before it was scanned may change again within one tick of its time stamp."""


@dataclass(frozen=True)
class DiskCoding:
    """How entries are written. A lossy codec needs the RoPE of the entry's model among `ropes`, else it is lossless.

    Lossy codecs are used for entries computed alone only: those with a Merkle lineage are what exact restores use.
    `provenance` goes into every file's header: library builds and the like, no times. `packed_codec` is for those that
    `pack` names.
    """

    codec: Codec = Codec.OFF
    ropes: tuple[RopeSpec, ...] = ()
    caster: RowCaster | None = None
    provenance: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    packed_codec: Codec = Codec.OFF


class DiskTier(Tier):
    """Files in one folder, which other processes may use at the same time.

    What another process adds, uses or deletes is seen at the next call that needs it. Construction never fails for
    what the folder is like: a missing one is made by the first `put`.
    """

    name = TierName.DISK

    def __init__(self, directory: Path, budget_bytes: int, coding: DiskCoding | None = None) -> None:
        self._directory = directory
        self._budget_bytes = budget_bytes
        self._coding = coding or DiskCoding()
        self._ropes = {rope.canonical(): rope for rope in self._coding.ropes}
        self._bay = FileBay(directory)
        self._put_turn = threading.Lock()
        self._lock = threading.RLock()
        self._book = LruBook()
        self._packed: set[EntryId] = set()
        self._used_ns: dict[EntryId, int] = {}
        # Folder -> (its modification time when it was read, 0 if that may not have settled; what was in it).
        self._shards: dict[str, tuple[int, set[EntryId]]] = {}
        if directory.is_dir():
            self._bay.remove_stale()
            self._refresh()

    def add_ropes(self, ropes: Iterable[RopeSpec]) -> None:
        """Make the RoPE of one more model known, for lossy codecs."""
        with self._lock:
            self._ropes = {**self._ropes, **{rope.canonical(): rope for rope in ropes}}

    def pack(self, entries: Iterable[EntryId]) -> None:
        with self._lock:
            self._packed.update(entries)

    def path_of(self, entry_id: EntryId) -> Path:
        """Where the file of an entry is, or would be."""
        return self._directory / entry_id[:2] / f"{entry_id}{SUFFIX}"

    def get(self, entry_id: EntryId) -> Entry | None:
        path = self.path_of(entry_id)
        try:
            entry = entry_file.read(path, entry_id, self._coding.caster)
        except FileNotFoundError:
            self._forget(entry_id)
            return None
        except OSError as exc:
            raise StoreError(f"entry {entry_id[:12]} could not be read: {exc}") from exc
        self._use(entry_id, path)
        return entry

    def put(self, entry: Entry) -> None:
        entry_id = entry.id
        path = self.path_of(entry_id)
        codec = self._codec_for(entry)
        if self._is_held_as_well(path, entry_id, is_lossy=entry.is_lossy or codec.is_lossy):
            self._use(entry_id, path)
            return
        rope = self._ropes.get(entry.key.rope) if codec.is_lossy else None
        coding = self._coding
        image = entry_file.build(entry, codec, rope=rope, caster=coding.caster, provenance=coding.provenance)
        if image.nbytes > self._budget_bytes:
            raise self._full(image.nbytes)

        def commit(temporary: Path) -> None:
            with self._bay.exclusive(), self._lock:
                self._make_room(entry_id, image.nbytes)  # another process may have written meanwhile
                self._bay.put_in_place(temporary, path)
                self._record(entry_id, image.nbytes, path.stat().st_mtime_ns)

        # The file grows beside the others: what must go for it goes before, and one grows at a time.
        with self._put_turn:
            with self._bay.exclusive(), self._lock:
                self._make_room(entry_id, image.nbytes)
            self._bay.write(path, image.write_to, commit)

    def key_of(self, entry_id: EntryId) -> EntryKey | None:
        try:
            return entry_file.read_key(self.path_of(entry_id))
        except (EntryCorruptError, OSError):
            return None

    def contains(self, entry_id: EntryId) -> bool:
        return self.size_of(entry_id) > 0

    def delete(self, entry_id: EntryId) -> bool:
        if not os.path.lexists(self.path_of(entry_id)):  # nothing to lock for; a read-only folder may stay so
            self._forget(entry_id)
            return False
        with self._bay.exclusive():
            return self._remove(entry_id, durably=True)

    def delete_corrupt(self, entry_id: EntryId) -> bool:
        with self._bay.exclusive():
            try:
                entry_file.read(self.path_of(entry_id), entry_id, self._coding.caster)
            except EntryCorruptError:
                return self._remove(entry_id, durably=True)
            except OSError:
                return False
        return False

    def ids(self) -> list[EntryId]:
        with self._lock:
            self._refresh()
            return self._book.ids()

    def size_of(self, entry_id: EntryId) -> int:
        try:
            return self.path_of(entry_id).stat().st_size
        except OSError:
            return 0

    def pin(self, entry_id: EntryId) -> None:
        """As in `Tier`, against evictions by this process only."""
        with self._lock:
            self._book.pin(entry_id)

    def unpin(self, entry_id: EntryId) -> None:
        with self._lock:
            self._book.unpin(entry_id)

    def is_pinned(self, entry_id: EntryId) -> bool:
        with self._lock:
            return self._book.is_pinned(entry_id)

    @property
    def nbytes(self) -> int:
        with self._lock:
            self._refresh()
            return self._book.total_bytes

    @property
    def budget_bytes(self) -> int:
        return self._budget_bytes

    def set_budget(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        if self.nbytes <= budget_bytes:
            return
        with self._bay.exclusive(), self._lock:
            self._learn_use(self._book.ids())
            for entry_id in self._book.ids():
                if self._book.total_bytes <= budget_bytes:
                    break
                if not self._book.is_pinned(entry_id):
                    self._remove(entry_id, durably=False)

    def verify(self, only: Collection[EntryId] | None = None) -> Iterator[VerifyResult]:
        for entry_id in self.ids() if only is None else filter(self.contains, only):
            try:
                info = entry_file.check(self.path_of(entry_id), entry_id)
            except FileNotFoundError:
                continue  # evicted or deleted since it was listed
            except EntryCorruptError as exc:
                yield VerifyResult(entry_id, self.size_of(entry_id), exc.reason, str(exc))
            except OSError as exc:
                yield VerifyResult(entry_id, self.size_of(entry_id), "unreadable", str(exc))
            else:
                yield VerifyResult(entry_id, info.file_bytes)

    def gc(self, keep: Set[EntryId]) -> Removed:
        """As in `Tier`, with no other process writing meanwhile; also removes what dead processes left behind."""
        if not self._directory.is_dir():
            return Removed(0, 0)
        with self._bay.exclusive():
            self._bay.remove_stale()
            doomed = [(entry_id, self.size_of(entry_id)) for entry_id in self.ids() if entry_id not in keep]
            removed = [size for entry_id, size in doomed if self._remove(entry_id, durably=False)]
            for shard in {entry_id[:2] for entry_id, _ in doomed}:
                sync_directory(self._directory / shard)
        return Removed(len(removed), sum(removed))

    def close(self) -> None:
        self._bay.close()

    def _codec_for(self, entry: Entry) -> Codec:
        codec = self._coding.packed_codec if entry.id in self._packed else self._coding.codec
        can_be_lossy = entry.key.lineage == ALONE and entry.key.rope in self._ropes
        return Codec.LOSSLESS if codec.is_lossy and not can_be_lossy else codec

    def _is_held_as_well(self, path: Path, entry_id: EntryId, *, is_lossy: bool) -> bool:
        """Whether a whole file is there that is at least as good as the one that would be written."""
        if not self.contains(entry_id):
            return False
        try:
            return is_lossy or not entry_file.check(path, entry_id).is_lossy
        except (EntryCorruptError, OSError):
            return False

    def _make_room(self, entry_id: EntryId, size_bytes: int) -> None:
        """Evict what must go, or raise with nothing evicted."""
        self._refresh()
        if self._book.total_bytes - self._book.size_of(entry_id) + size_bytes <= self._budget_bytes:
            return
        victims = self._book.victims(entry_id, size_bytes, self._budget_bytes)
        while victims is not None and self._learn_use(victims):
            victims = self._book.victims(entry_id, size_bytes, self._budget_bytes)
        if victims is None:
            raise self._full(size_bytes)
        for victim in victims:
            self._remove(victim, durably=False)

    def _full(self, size_bytes: int) -> StoreFullError:
        return StoreFullError(
            f"an entry of {size_bytes} bytes does not fit into {self._directory}: {self._book.total_bytes} of "
            f"{self._budget_bytes} bytes are taken, too many of them pinned; raise the disk budget or unpin"
        )

    def _use(self, entry_id: EntryId, path: Path) -> None:
        now = time.time_ns()
        with suppress(OSError):  # a folder that cannot be written, or a file deleted since
            os.utime(path, ns=(now, now))
        with self._lock:
            self._used_ns[entry_id] = now
            self._book.touch(entry_id)

    def _record(self, entry_id: EntryId, size_bytes: int, used_ns: int) -> None:
        self._book.record(entry_id, size_bytes)
        self._used_ns[entry_id] = used_ns
        self._shards.setdefault(entry_id[:2], (0, set()))[1].add(entry_id)

    def _forget(self, entry_id: EntryId) -> None:
        with self._lock:
            self._book.forget(entry_id)
            self._used_ns.pop(entry_id, None)
            self._shards.get(entry_id[:2], (0, set()))[1].discard(entry_id)

    def _remove(self, entry_id: EntryId, *, durably: bool) -> bool:
        """Delete the file. `durably`: it must not come back after a loss of power."""
        path = self.path_of(entry_id)
        try:
            path.unlink()
            if durably:
                sync_directory(path.parent)
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise as_store_error(exc, f"deleting entry {entry_id[:12]}", self._directory) from exc
        finally:
            self._forget(entry_id)
        return True

    def _refresh(self) -> None:
        """Bring the books up to date: only folders that changed since they were scanned are read again."""
        found: list[tuple[int, EntryId, int]] = []
        now = time.time_ns()
        shards = dict(self._list_shards())
        for missing in self._shards.keys() - shards.keys():
            for gone in set(self._shards.pop(missing)[1]):
                self._forget(gone)
        for shard, changed_ns in shards.items():
            seen_ns, known = self._shards.get(shard, (0, set()))
            if seen_ns == changed_ns:
                continue
            files = self._list_shard(shard)
            for gone in known - files.keys():
                self._forget(gone)
            found += [(used, one, size) for one, (size, used) in files.items() if self._book.size_of(one) != size]
            self._shards[shard] = (changed_ns if now - changed_ns > _SETTLED_NS else 0, set(files))
        for used_ns, entry_id, size in sorted(found):
            self._book.record(entry_id, size)
            self._used_ns[entry_id] = used_ns

    def _learn_use(self, entry_ids: list[EntryId]) -> bool:
        """Note which of these other processes have used or deleted since; whether there were any."""
        used: list[tuple[int, EntryId]] = []
        has_gone = False
        for entry_id in entry_ids:
            try:
                used_ns = self.path_of(entry_id).stat().st_mtime_ns
            except OSError:
                self._forget(entry_id)
                has_gone = True
                continue
            if used_ns > self._used_ns.get(entry_id, 0):
                used.append((used_ns, entry_id))
        for used_ns, entry_id in sorted(used):
            self._used_ns[entry_id] = used_ns
            self._book.touch(entry_id)
        return has_gone or bool(used)

    def _list_shards(self) -> list[tuple[str, int]]:
        try:
            with os.scandir(self._directory) as found:
                return [(e.name, e.stat().st_mtime_ns) for e in found if len(e.name) == 2 and e.is_dir()]
        except OSError:
            return []

    def _list_shard(self, shard: str) -> dict[EntryId, tuple[int, int]]:
        """Id -> (bytes, time of last use in ns)."""
        result: dict[EntryId, tuple[int, int]] = {}
        with suppress(OSError), os.scandir(self._directory / shard) as found:
            for one in found:
                if one.name.endswith(SUFFIX) and one.name.startswith(shard):
                    with suppress(FileNotFoundError):
                        status = one.stat()
                        result[EntryId(one.name.removesuffix(SUFFIX))] = (status.st_size, status.st_mtime_ns)
        return result
