"""The storm of `make soak`, for some seconds: whatever clients do, the server is as it was before."""

from __future__ import annotations

from pathlib import Path

from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.server.storm import Seen, check_log, running, storm

NUM_STORMS = 4
STORM_S = 4.0
MAX_GROWTH = 0.15
"""Too short for more: memory still grows to what it needs."""


def test_no_client_harms_the_server_or_another_client(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", TinyModel())
    seen = Seen()
    with running(tmp_path / "home", model) as server:
        rests = [storm(server, seen, STORM_S, num_clients=3, seed=100 * number) for number in range(NUM_STORMS)]
        check_log(server)
    print(dict(sorted(seen.answers.items())))
    assert not seen.wrong, seen.wrong[:5]
    assert len({answer.rpartition(" ")[0] for answer in seen.answers}) > 10, "not all was tried"
    first, last = rests[1], rests[-1]  # the very first one loads what is used
    assert last.rss_bytes <= (1 + MAX_GROWTH) * first.rss_bytes
    assert last.num_files <= first.num_files + 16
