"""200 streams at once over HTTP against a key's limits, and a `kill -9` among them; `make soak` does it with 1,000."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.unit.server.streams import Run, check_sums

NUM_CLIENTS = 200
MIN_OPEN = 180


def test_a_kill_among_200_streams_loses_nothing_and_charges_nothing_twice(tmp_path: Path) -> None:
    run = Run(tmp_path, "few", speed=1, num_clients=NUM_CLIENTS)
    asyncio.run(run.go(num_kills=1, min_open=MIN_OPEN, last_s=1.0, is_holding=True))
    check_sums(run, 1, MIN_OPEN)
