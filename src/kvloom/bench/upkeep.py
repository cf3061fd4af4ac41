"""What keeping books costs: placing a chunk where many cells are allocated, planning and looking with a full catalog.

Rows of `bench decode`. Knows the façade and its probe only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from kvloom.bench.documents import documents
from kvloom.bench.report import Row, compare
from kvloom.bench.setting import SYSTEM, Request, open_loom, settings_for
from kvloom.bench.teller import Teller
from kvloom.session.probe import Probe

CONTEXT = 3_500
"""A window for which 4,096 cells are allocated."""
LARGE_CELLS = 65_536
CHUNK_TOKENS, QUICK_CHUNK_TOKENS = 768, 128
PLACINGS = 9
ACTIVATION_TARGET = 1 / 1.2
"""Placing may cost 1.2 times as much where 16 times as many cells are allocated."""

NUM_CHUNKS, QUICK_NUM_CHUNKS = 10_000, 500
LOOKS = 21
BOOKKEEPING_LIMIT_S = 0.005
WITH_CONTEXT = 8
"""Chunks that the measured session holds."""


def activation_rows(request: Request, home: Path, tell: Teller) -> list[Row]:
    """The cost of bringing a known chunk to the device, at 4k and at 64k allocated cells."""
    small, num_small = _placing(request, home, None)
    tell.step(f"placing a chunk at {num_small} cells: {median(small):.4f} s")
    large, num_large = _placing(request, home, LARGE_CELLS)
    tell.step(f"placing a chunk at {num_large} cells: {median(large):.4f} s")
    extra = {"num_cells": num_large, "peer_num_cells": num_small}
    return [compare("activation", "splice", large, ("itself at 4k cells", small), ACTIVATION_TARGET, extra)]


def _placing(request: Request, home: Path, num_cells: int | None) -> tuple[list[float], int]:
    """(seconds of each placing, cells allocated). The chunk goes off and on again, in front of another.

    `num_cells` beyond what the window needs: as if other sessions held the rest. None: what the window needs.
    """
    spent = []
    settings = settings_for(request, context=CONTEXT, fidelity="splice")
    with open_loom(settings, home) as loom, loom.session(system=SYSTEM) as session:
        if num_cells is not None:
            with loom.device.lock:
                loom.device.resize(num_cells)
        size = QUICK_CHUNK_TOKENS if request.quick else CHUNK_TOKENS
        chunks = [loom.load_text(doc.text, name=doc.name).id for doc in documents(loom.count, 3, size)]
        session.activate(*chunks)
        session.warm()
        for _ in range(PLACINGS):
            session.deactivate(chunks[1])
            session.warm()
            began = time.perf_counter()
            session.activate(chunks[1])
            session.warm()
            spent.append(time.perf_counter() - began)
        return spent, loom.status().num_cells


def bookkeeping_rows(request: Request, home: Path, tell: Teller) -> list[Row]:
    """Planning and looking, with thousands of chunks in the catalog."""
    number = QUICK_NUM_CHUNKS if request.quick else NUM_CHUNKS
    with open_loom(settings_for(request, context=2048, fidelity="splice"), home) as loom:
        began = time.perf_counter()
        chunks = [loom.load_text(f"note {i}: {i * i}\n", name=f"note-{i}.txt").id for i in range(number)]
        load_s = (time.perf_counter() - began) / number
        with loom.session(system=SYSTEM) as session:
            session.activate(*chunks[:: max(1, number // WITH_CONTEXT)][:WITH_CONTEXT])
            session.warm()
            probe = Probe(session)
            looks: dict[str, Callable[[], float]] = {
                "plan": probe.plan_s,
                "usage": lambda: _seconds(session.usage),
                "status": lambda: _seconds(loom.status),
            }
            rows = []
            for name, look in looks.items():
                spent = [look() for _ in range(LOOKS)]
                limit = ("limit of 5 ms", [BOOKKEEPING_LIMIT_S])
                rows.append(compare(name, "", spent, limit, 1.0, {"num_chunks": number, "load_s_per_chunk": load_s}))
            tell.step(f"{number} chunks: " + ", ".join(f"{row.case} {row.ours_s * 1000:.2f} ms" for row in rows))
    return rows


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
