"""`bench codecs`: what stored KV costs and loses in each disk coding, through a disk tier: sizes, times, KL, top-1.

Every coding stores and loads the same draws in a loom of its own. Knows the façade, its store and its probe only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvloom.bench.asking import CONTEXT, DOCUMENT_TOKENS, NUM_DOCUMENTS, asked_in, chunks_of, session_with
from kvloom.bench.distance import Distance, distance, summary
from kvloom.bench.draws import draw
from kvloom.bench.report import Report, Row, compare
from kvloom.bench.setting import Request, open_loom, own_home, settings_for, setup_of
from kvloom.bench.teller import Teller
from kvloom.config import DiskCompression
from kvloom.errors import StoreError
from kvloom.session.probe import Probe
from kvloom.types import Entry, EntryId, Fidelity, KVType, TierName

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

NUM_DRAWS, QUICK_NUM_DRAWS = 12, 1
"""Twice every place of the draws' schedule. They are the first draws of `bench fidelity`."""
PER_TOKENS = 1000
"""Times are told for so many tokens."""
IDENTICAL = (DiskCompression.OFF, DiskCompression.LOSSLESS)
"""Codings that must give back every bit."""
COMPUTING = "computing the same tokens"


@dataclass(frozen=True)
class Trip:
    """One draw's documents: computed, written to disk, dropped everywhere else, read back. Seconds of all entries."""

    num_tokens: int
    rows_bytes: int
    file_bytes: int
    compute_s: float
    write_s: float
    read_s: float
    num_entries: int
    num_identical: int
    is_lossy: bool
    has_same_logits: bool
    distance: Distance


class Bench:
    """One coding: takes draw after draw."""

    def __init__(self, loom: Loom) -> None:
        self._loom = loom
        self._coding = loom.settings.disk_compression

    def take(self, number: int) -> Trip:
        """Raises StoreError where rows come back changed in a coding that must not change them."""
        loom = self._loom
        drawn = draw(number, NUM_DOCUMENTS, DOCUMENT_TOKENS, loom.count)
        with chunks_of(loom, drawn) as chunks, session_with(loom, chunks, Fidelity.SPLICE) as session:
            computed = session.warm()
            asked = asked_in(session, drawn)
            reference, _ = Probe(session).log_probs(asked.tokens, asked.num_rows)
            pristine = [self._entry(entry) for chunk in chunks for _, entry in loom.shelf.entries(chunk)]
            write_s = self._write(pristine)
            for chunk in chunks:
                loom.offload(chunk)
            file_bytes = sum(loom.store.size_of(entry.id) for entry in pristine)
            loaded, read_s = self._read(pristine)
            num_tokens = sum(entry.rows.num_tokens for entry in pristine)
            again = session.warm()
            if (again.loaded_tokens, again.computed_tokens) != (num_tokens, 0):
                raise AssertionError("every chunk, and nothing else, must come from the store")
            other, _ = Probe(session).log_probs(asked.tokens, asked.num_rows)
        return Trip(
            num_tokens=num_tokens,
            rows_bytes=sum(entry.rows.nbytes for entry in pristine),
            file_bytes=file_bytes,
            compute_s=computed.seconds * num_tokens / computed.computed_tokens,
            write_s=write_s,
            read_s=read_s,
            num_entries=len(pristine),
            num_identical=self._num_identical(pristine, loaded),
            is_lossy=any(entry.is_lossy for entry in loaded),
            has_same_logits=bool(np.array_equal(reference, other)),
            distance=distance(reference, other, asked.answer),
        )

    def _entry(self, entry_id: EntryId) -> Entry:
        entry = self._loom.store.get(entry_id)
        if entry is None or entry.is_lossy:
            raise StoreError(
                f"the rows of entry {entry_id[:12]} are not in RAM as they were computed; raise ram_budget_bytes above "
                f"{self._loom.settings.ram_budget_bytes}"
            )
        return entry

    def _write(self, entries: Sequence[Entry]) -> float:
        """Seconds for writing entries of which no tier holds a copy, synced."""
        for entry in entries:
            self._loom.store.purge(entry.id)
        began = time.perf_counter()
        for entry in entries:
            self._loom.store.put(entry)
        self._loom.flush()
        return time.perf_counter() - began

    def _read(self, entries: Sequence[Entry]) -> tuple[list[Entry], float]:
        """The entries as the disk tier gives them, and the seconds for it."""
        store, ids = self._loom.store, [entry.id for entry in entries]
        if {store.where(entry) for entry in ids} != {TierName.DISK}:
            raise AssertionError("what is to be read must be on disk and in no warmer tier")
        began = time.perf_counter()
        loaded = [store.get(entry) for entry in ids]
        spent = time.perf_counter() - began
        found = [entry for entry in loaded if entry is not None]
        if len(found) != len(ids):
            raise StoreError(f"{len(ids) - len(found)} of {len(ids)} entries could not be read back")
        return found, spent

    def _num_identical(self, pristine: Sequence[Entry], loaded: Sequence[Entry]) -> int:
        pairs = zip(pristine, loaded, strict=True)
        number = sum(np.array_equal(before.rows.data, after.rows.data) for before, after in pairs)
        if self._coding in IDENTICAL and number != len(pristine):
            raise StoreError(
                f"disk_compression {self._coding.value} must give back every bit, and {len(pristine) - number} of "
                f"{len(pristine)} entries came back changed"
            )
        return number


def row_of(coding: DiskCompression, trips: Sequence[Trip]) -> Row:
    """Reading beside computing, per 1,000 tokens; sizes, times and distances of all draws."""

    def per_tokens(seconds: Mapping[str, list[float]]) -> dict[str, list[float]]:
        sizes = [trip.num_tokens for trip in trips]
        return {
            name: [s * PER_TOKENS / n for s, n in zip(all_s, sizes, strict=True)] for name, all_s in seconds.items()
        }

    spent = per_tokens(
        {
            "read": [trip.read_s for trip in trips],
            "write": [trip.write_s for trip in trips],
            "compute": [trip.compute_s for trip in trips],
        }
    )
    rows_bytes, file_bytes = sum(trip.rows_bytes for trip in trips), sum(trip.file_bytes for trip in trips)
    numbers = summary([trip.distance for trip in trips])
    extra: dict[str, object] = {
        "size_share": file_bytes / rows_bytes,
        "write_s": float(np.median(spent["write"])),
        "read_s": float(np.median(spent["read"])),
        **{name: value for name, value in numbers.items() if name != "share"},
        "num_tokens": sum(trip.num_tokens for trip in trips),
        "rows_bytes": rows_bytes,
        "file_bytes": file_bytes,
        "num_entries": sum(trip.num_entries for trip in trips),
        "num_identical_entries": sum(trip.num_identical for trip in trips),
        "num_identical_logits": sum(trip.has_same_logits for trip in trips),
        "is_lossy": any(trip.is_lossy for trip in trips),
    }
    return compare(coding.value, Fidelity.SPLICE.value, spent["read"], (COMPUTING, spent["compute"]), None, extra)


def told(rows: Sequence[Row]) -> list[str]:
    """What was found of every coding's faithfulness, in words."""
    lines = []
    for row in rows:
        same, number = row.extra["num_identical_entries"], row.extra["num_entries"]
        if row.case in {coding.value for coding in IDENTICAL}:
            lines.append(f"{row.case}: all {number} entries came back identical to the bit (checked).")
        elif not row.extra["is_lossy"]:
            lines.append(
                f"{row.case}: not used on these rows (they are stored lossless): {same} of {number} identical."
            )
    return lines


def run(request: Request) -> Report:
    """Run the benchmark over `repeats` draws. About 8 minutes on 2 cores with the default model; `quick` takes one."""
    number = request.repeats or (QUICK_NUM_DRAWS if request.quick else NUM_DRAWS)
    tell = request.teller("codecs", number * len(DiskCompression))
    rows = []
    setup: dict[str, object] = {}
    for coding in DiskCompression:
        settings = settings_for(
            request, context=CONTEXT, fidelity="splice", kv_type_k=KVType.F16, kv_type_v=KVType.F16,
            disk_compression=coding,
        )  # fmt: skip
        with own_home() as home, open_loom(settings, home, tell) as loom:
            setup = setup or setup_of(
                loom, {"num_documents": NUM_DOCUMENTS, "document_tokens": DOCUMENT_TOKENS, "draws": number}
            )
            rows.append(row_of(coding, _trips(Bench(loom), coding, number, tell)))
    setup |= request.closing("codecs")
    columns = (
        "size_share",
        "write_s",
        "read_s",
        "kl_mean",
        "kl_mean_low",
        "kl_mean_high",
        "kl_median",
        "kl_p90",
        "top1",
    )
    return Report("codecs", setup, tuple(rows), columns=columns, notes=(*told(rows), *NOTES))


def _trips(bench: Bench, coding: DiskCompression, number: int, tell: Teller) -> list[Trip]:
    trips = []
    for index in range(number):
        trip = bench.take(index)
        trips.append(trip)
        tell.step(
            f"{coding.value}, draw {index}: {trip.num_tokens} tokens, {trip.file_bytes / trip.rows_bytes:.3f} of the "
            f"size, write {trip.write_s:.3f} s, read {trip.read_s:.3f} s, mean KL {trip.distance.kl.mean():.2g}"
        )
    return trips


NOTES = (
    "Chunks computed alone, f16, stored through the disk tier, dropped from RAM and device, loaded again. size: of "
    "the files, headers and token ids included, to that of the rows. Entries of exact lineage are never stored lossy.",
    "seconds per 1,000 tokens: write (packed, written, synced) and read (from the system's page cache, checked, "
    "unpacked); the peer's column is computing them.",
    "KL in nats from the same context before the round trip, over the last 8 positions of the question and the answer; "
    "low and high bound 95 % (draws resampled).",
)
