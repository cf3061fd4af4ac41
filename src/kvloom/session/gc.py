"""Collecting: stored entries that nothing names any more. Knows no tier's files."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from kvloom.chunk.catalog import Catalog
from kvloom.chunk.database import Database
from kvloom.context.manifest import Manifest, Tokens
from kvloom.session.log import SessionLog
from kvloom.session.purge import MAX_CACHED_RUNS
from kvloom.session.tenant_homes import tenant_homes
from kvloom.session.values import GcReport
from kvloom.types import EntryId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


def collect(loom: Loom) -> GcReport:
    """Remove what neither a chunk nor a session names, under whatever model, KV type or RoPE it was computed.

    Sessions name tokens and lineages; which entries these are under another model only the entries can say.
    """
    named = _named(loom.log)
    composers = [loom.composer, *(tenant.composer for tenant in loom.open_tenants())]
    keep = {*(composer.weaver.alone_prefix().entry for composer in composers), *loom.catalog.all_entries()}
    for home in tenant_homes(loom.home):
        database = Database(home)
        try:
            named |= _named(SessionLog(database))
            keep |= Catalog(database).all_entries()
        finally:
            database.close()
    for entry in loom.store.ids():
        key = loom.store.key_of(entry) if entry not in keep else None
        if key is not None and (Tokens(key.tokens).digest, key.lineage) in named:
            keep.add(entry)
    removed = loom.store.gc(keep)
    for one in (loom, *loom.open_tenants()):
        forget_traces(one)
    return GcReport(removed.num_entries, removed.nbytes)


def forget_traces(loom: Loom) -> int:
    """Forget what was computed behind chunks and is held nowhere any more; how many. Nothing else bounds their number.

    Of the looms of this process only: what another holds in its memory alone, a purge here does not reach anyway.
    """
    looms, held = loom.neighbourhood.looms(), set[EntryId]()
    for one in looms:
        one.shelf.forget_recorded()  # whatever is woven from now on is recorded again, as young
        with one.device.lock:
            held.update(resident.entry for _, resident in one.device.residents())
            held.update(one.composer.weaver.woven_now())
    return loom.shelf.traces.prune(lambda entry: entry in held or any(one.store.contains(entry) for one in looms))


def _named(log: SessionLog) -> set[tuple[str, str]]:
    """The tokens and lineages that the sessions of a home name."""
    tokens = lru_cache(MAX_CACHED_RUNS)(log.tokens)
    named: set[tuple[str, str]] = set()
    for info in log.list():
        for record in log.manifests(info.id):
            manifest = Manifest.decode(record.body, tokens)
            named.update((slot.tokens.digest, slot.lineage) for slot in manifest.slots)
    return named
