"""Collecting: stored entries that nothing names any more. Knows no tier's files."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest, Tokens
from kvloom.session.purge import MAX_CACHED_RUNS
from kvloom.session.values import GcReport

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


def collect(loom: Loom) -> GcReport:
    """Remove what neither a chunk nor a session names, under whatever model, KV type or RoPE it was computed.

    Sessions name tokens and lineages; which entries these are under another model only the entries can say.
    """
    tokens = lru_cache(MAX_CACHED_RUNS)(loom.log.tokens)
    named: set[tuple[str, str]] = set()
    for info in loom.log.list():
        for record in loom.log.manifests(info.id):
            manifest = Manifest.decode(record.body, tokens)
            named.update((slot.tokens.digest, slot.lineage) for slot in manifest.slots)
    keep = loom.catalog.all_entries() | {loom.composer.weaver.alone_prefix().entry}
    for entry in loom.store.ids():
        key = loom.store.key_of(entry) if entry not in keep else None
        if key is not None and (Tokens(key.tokens).digest, key.lineage) in named:
            keep.add(entry)
    removed = loom.store.gc(keep)
    return GcReport(removed.num_entries, removed.nbytes)
