"""Purging: a chunk really gone, from the catalog, every tier and every session's log. Knows no conversation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest, Slot, SlotKind
from kvloom.session.log import ManifestRecord
from kvloom.types import ALONE, ChunkId, EntryId, SessionId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

MAX_CACHED_RUNS = 4096
"""Token runs held while all logs are read: neighbouring manifests name nearly the same ones."""


@dataclass
class _Findings:
    """What carries the chunk, and which token runs others need."""

    sessions: set[SessionId] = field(default_factory=set)
    entries: set[EntryId] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    needed_digests: set[str] = field(default_factory=set)


def purge(loom: Loom, chunk: ChunkId) -> int:
    """Bytes freed. Raises SessionBusyError, with nothing changed, where another process has a session open that holds
    the chunk, or this thread is reading a reply.

    The catalog comes last: after a crash in between, the chunk is still known and can be purged again.
    """
    with _held_still(loom) as open_sessions:
        found = _find(loom, chunk)
        with ExitStack() as writers:
            for closed in sorted(found.sessions - {one.id for one in open_sessions}):
                writers.enter_context(loom.log.writer(closed))
            freed = _remove(loom, chunk, found)
        for session in open_sessions:
            session._desk.reread()
            session._budget.forget()
        return freed


@contextmanager
def _held_still(loom: Loom) -> Iterator[list[Session]]:
    """All open sessions, with nobody editing or asking in them, and none opened meanwhile."""
    while True:
        with ExitStack() as turns:
            sessions = loom.open_sessions()
            for session in sorted(sessions, key=lambda one: one.id):
                turns.enter_context(session._desk.turn())
            with loom._lock:
                if sessions == loom.open_sessions():
                    yield [session for session in sessions if not session.is_closed]
                    return


def _find(loom: Loom, chunk: ChunkId) -> _Findings:
    """Read every log. KV of other pieces that attended to the chunk carries its trace: it goes, too."""
    found = _Findings(entries={entry for _, entry in loom.library.entries(chunk)})
    tokens = lru_cache(MAX_CACHED_RUNS)(loom.log.tokens)
    for info in loom.log.list():
        for record in loom.log.manifests(info.id):
            manifest = Manifest.decode(record.body, tokens)
            own = [slot for slot in manifest.chunks if slot.ref == chunk]
            found.needed_digests.update(slot.tokens.digest for slot in manifest.slots if slot not in own)
            marked = [slot for slot in manifest.slots if slot in own or chunk in slot.seen]
            if not marked:
                continue
            found.sessions.add(info.id)
            found.digests.update(slot.tokens.digest for slot in own)
            if manifest.model == loom.engine.fingerprint:
                traced = {*marked, *_behind(manifest, own)}
                found.entries.update(loom.composer.entry_id(slot.tokens, slot.lineage) for slot in traced)
    return found


def _behind(manifest: Manifest, own: list[Slot]) -> Iterator[Slot]:
    """Slots whose KV was computed behind the chunk where it stands (exact)."""
    start = min((slot.position for slot in own if slot.active), default=manifest.span)
    for slot in manifest.active:
        if slot.position > start and slot.lineage != ALONE and slot.kind is not SlotKind.TURN:
            yield slot


def _remove(loom: Loom, chunk: ChunkId, found: _Findings) -> int:
    def scrub(record: ManifestRecord) -> bytes | None:
        manifest = Manifest.decode(record.body, loom.log.tokens)
        scrubbed = manifest.purged(chunk)
        return None if scrubbed == manifest else scrubbed.encode()

    digests = found.digests - found.needed_digests
    loom.log.rewrite(scrub)
    loom.log.purge_tokens(digests)
    with loom.device.lock:  # requests come and go: none of them may store it again in between
        loom.composer.weaver.wait_computed(found.entries)
        loom.device.purge_entries(found.entries)
        freed = sum(loom.store.size_of(entry) for entry in found.entries)
        for entry in found.entries:
            loom.store.purge(entry)
        freed += loom.catalog.get(chunk).size_bytes
        loom.catalog.purge(chunk)
        loom.library.forget(chunk)
        loom.composer.forget(digests)
    return freed
