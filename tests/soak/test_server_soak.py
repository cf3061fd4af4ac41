"""Half an hour of clients that do all they can: `make soak`. SOAK_MINUTES sets another length."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.server.storm import Rest, Seen, check_log, running, storm

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
STORM_S = 30.0
NUM_CLIENTS = 8
WARM_SHARE = 0.5
"""Of all storms: tiers and caches fill (they are bounded), pools of threads and memory grow to what they need."""
MAX_SPREAD = 0.05


def test_a_server_in_a_storm_loses_nothing_and_keeps_nothing(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", TinyModel())
    seen, rests = Seen(), list[Rest]()
    num_storms = max(4, round(MINUTES * 60 / STORM_S))
    with running(tmp_path / "home", model) as server:
        for number in range(num_storms):
            rests.append(storm(server, seen, STORM_S, NUM_CLIENTS, seed=1000 * number))
            last = rests[-1]
            print(
                f"{number + 1} of {num_storms}: {sum(seen.answers.values())} requests,"
                f" {last.rss_bytes / 2**20:.0f} MiB, {last.num_files} files, {last.num_threads} threads,"
                f" {last.used_cells} cells",
                flush=True,
            )
        check_log(server)
        print(dict(sorted(seen.answers.items())))
    assert not seen.wrong, (len(seen.wrong), seen.wrong[:5])
    warm = rests[int(WARM_SHARE * num_storms) :]
    middle = statistics.median(rest.rss_bytes for rest in warm)
    spread = max(abs(rest.rss_bytes - middle) for rest in warm) / middle
    assert spread <= MAX_SPREAD, [round(rest.rss_bytes / 2**20) for rest in rests]
    assert max(rest.num_files for rest in warm) <= warm[0].num_files + 16
    assert max(rest.num_threads for rest in warm) <= warm[0].num_threads + 4
