"""Purging: a chunk really gone, with all KV that carries its trace, from every tier, model and session's log.

Knows no conversation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest
from kvloom.errors import IndexDamagedError, PurgeIncompleteError, StoreError, UnknownSessionError
from kvloom.session.log import ManifestRecord
from kvloom.session.results import StoredResults
from kvloom.session.traces import traced_in
from kvloom.types import ChunkId, EntryId, SessionId

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
    damaged_libraries: list[str] = field(default_factory=list)
    """Nobody can say what these hold."""


def purge(loom: Loom, chunk: ChunkId) -> int:
    """Bytes freed. Raises SessionBusyError, with nothing changed, where another process has a session open that holds
    the chunk, or this thread is reading a reply; StoreError where a library is held by another process or cannot be
    written (the chunk stays known then, to be purged again); PurgeIncompleteError at the end where one is damaged.

    All looms of this process over the same home take part: each has cells, RAM and sessions of its own. The catalog
    comes last: after a crash in between, the chunk is still known and can be purged again.
    """
    with _held_still(loom) as open_sessions:
        found = _find(loom, chunk)
        try:
            with ExitStack() as writers:
                for closed in sorted(found.sessions - {one.id for one in open_sessions}):
                    writers.enter_context(loom.log.writer(closed))
                _scrub_logs(loom, chunk, found)
                freed = _remove(loom, chunk, found)
            with StoredResults(loom.home) as results:
                results.clear()  # any summary may quote it
        finally:
            # Where it broke off, too: what they hold in memory must not be written again.
            for session in open_sessions:
                session._desk.reread()
                session._budget.forget()
        if found.damaged_libraries:
            raise PurgeIncompleteError(
                f"the chunk is purged, but its text may still stand in {', '.join(found.damaged_libraries)}, whose "
                "index is damaged: delete that library (kvloom libraries delete) and add its files again"
            )
        return freed


@contextmanager
def _held_still(loom: Loom) -> Iterator[list[Session]]:
    """All open sessions of the home, with nobody editing or asking in them, and none opened meanwhile.

    Locks are taken in the desk's order: the desks' turns, then the looms', then (behind this) one device's at a time.
    """
    neighbourhood = loom.neighbourhood
    while True:
        with ExitStack() as turns:
            looms = neighbourhood.looms()
            sessions = [session for one in looms for session in one.own_sessions()]
            for session in sorted(sessions, key=lambda one: one.id):
                turns.enter_context(session._desk.turn())
            turns.enter_context(neighbourhood.staying())
            for one in looms:
                turns.enter_context(one._lock)
            if looms == neighbourhood.looms() and sessions == [s for one in looms for s in one.own_sessions()]:
                yield [session for session in sessions if not session.is_closed]
                return


def _find(loom: Loom, chunk: ChunkId) -> _Findings:
    """Read every log. KV of other pieces that attended to the chunk carries its trace: it goes, too."""
    found = _Findings()
    composers = [(one.engine.fingerprint, one.composer) for one in loom.neighbourhood.looms()]
    tokens = lru_cache(MAX_CACHED_RUNS)(loom.log.tokens)
    for info in loom.log.list():
        try:
            with loom.log.snapshot():
                manifests = [Manifest.decode(record.body, tokens) for record in loom.log.manifests(info.id)]
        except UnknownSessionError:  # deleted since it was listed, with all that it held
            continue
        for manifest in manifests:
            own = [slot for slot in manifest.chunks if slot.ref == chunk]
            found.needed_digests.update(slot.tokens.digest for slot in manifest.slots if slot not in own)
            marked = [slot for slot in manifest.slots if slot in own or chunk in slot.seen]
            if not marked:
                continue
            found.sessions.add(info.id)
            found.digests.update(slot.tokens.digest for slot in own)
            for composer in [one for fingerprint, one in composers if fingerprint == manifest.model]:
                traced = {entry for behind, entry in traced_in(manifest, composer.entry_id) if behind == chunk}
                found.entries |= traced | {composer.entry_id(slot.tokens, slot.lineage) for slot in marked}
    return found


def _scrub_logs(loom: Loom, chunk: ChunkId, found: _Findings) -> None:
    def scrub(record: ManifestRecord) -> bytes | None:
        manifest = Manifest.decode(record.body, loom.log.tokens)
        scrubbed = manifest.purged(chunk)
        return None if scrubbed == manifest else scrubbed.encode()

    loom.log.rewrite(scrub)
    loom.log.purge_tokens(found.digests - found.needed_digests)


def _remove(loom: Loom, chunk: ChunkId, found: _Findings) -> int:
    freed, done = 0, list["Loom"]()
    try:
        # One that is opened meanwhile may have begun with the chunk already.
        while fresh := [one for one in loom.neighbourhood.looms() if one not in done]:
            for one in fresh:
                one.shelf.refuse(chunk)
                done.append(one)
            freed += sum(_remove_under(one, chunk, found) for one in fresh)
        _forget_passage(loom, chunk, found)
        freed += loom.catalog.get(chunk).size_bytes
        loom.catalog.purge(chunk)
    finally:
        for one in done:
            one.shelf.refuse(chunk, refused=False)
    return freed


def _forget_passage(loom: Loom, chunk: ChunkId, found: _Findings) -> None:
    """Out of every library. Raises StoreError where one may let go of it another time."""
    kept = loom._forget_passage(chunk)
    found.damaged_libraries += [name for name, error in kept.items() if isinstance(error, IndexDamagedError)]
    held = [f"{name}: {error}" for name, error in kept.items() if not isinstance(error, IndexDamagedError)]
    if held:
        raise StoreError(f"the chunk is still in a library, and has to be purged again ({'; '.join(held)})")


def _remove_under(loom: Loom, chunk: ChunkId, found: _Findings) -> int:
    """Off one loom's device and out of its tiers; bytes freed."""
    shelf, composer = loom.shelf, loom.composer
    with loom.device.lock:  # requests come and go: none of them may store it again in between
        # What is under way has been recorded, and nothing more is: the chunk is refused.
        found.entries |= shelf.entries_anywhere(chunk)
        composer.weaver.wait_woven(found.entries)
        found.entries |= shelf.entries_anywhere(chunk)
        loom.device.purge_entries(found.entries)
        freed = sum(loom.store.size_of(entry) for entry in found.entries)
        for entry in found.entries:
            loom.store.purge(entry)
        composer.forget((found.digests - found.needed_digests) | shelf.digests(chunk))
        shelf.forget(chunk)
    loom.builder.tokenizer.forget()
    loom.forget_replies()
    return freed
