"""RAM and disk budgets under a long random load, by what is really held: `make soak`. SOAK_LOADS sets its length."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import kvloom
from kvloom.config import load_settings
from kvloom.session.loom import Loom
from kvloom.session.session import Session
from kvloom.types import Fidelity
from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.session.fakes import fake_loom
from tests.unit.session.hoard import Hoard, cold_distance
from tests.unit.session.test_budgets import check_fake

STEPS = int(os.environ.get("SOAK_LOADS", "2500"))
WARM_STEPS = STEPS // 2
"""The caches of tokenized chunks have filled by then."""
MAX_BYTES_PER_STEP = 10_000
"""What a step leaves in memory: names, ids and the log of a chunk and a turn, but none of their KV (5,700 measured)."""
CHECK_EVERY = 50
SLACK = 1.05
MAX_KL = 1e-3
"""Several times what another cut of the batches changes."""


def opens_fake(folder: Path) -> tuple[Callable[[], Loom], int, int]:
    ram, disk = 200_000, 600_000
    values = {"context": 1024, "ram_budget_bytes": ram, "disk_budget_bytes": disk, "compression": {"enabled": False}}
    return lambda: fake_loom(folder / "home", **values), ram, disk  # type: ignore[arg-type]


def opens_tiny(folder: Path) -> tuple[Callable[[], Loom], int, int]:
    model = write_tiny(folder / "tiny.gguf", TinyModel(context=2048))
    ram, disk = 1_000_000, 3_000_000
    settings = load_settings(
        {
            "model": str(model), "context": 1024, "reserve_tokens": 64, "ram_budget_bytes": ram,
            "disk_budget_bytes": disk, "compression": {"enabled": False}, "guard": {"enabled": False}, "threads": 1,
        }
    )  # fmt: skip
    return lambda: kvloom.open(settings=settings, home=folder / "home"), ram, disk


def check_tiny(_loom: Loom, session: Session) -> None:
    if session.fidelity is Fidelity.EXACT:
        assert cold_distance(session, "And now?") < MAX_KL


@pytest.mark.parametrize(("opens", "check"), [(opens_fake, check_fake), (opens_tiny, check_tiny)])
def test_ram_disk_and_the_process_stay_within_bounds(
    tmp_path: Path,
    opens: Callable[[Path], tuple[Callable[[], Loom], int, int]],
    check: Callable[[Loom, Session], None],
) -> None:
    opened, ram_bytes, disk_bytes = opens(tmp_path)
    process, sizes = psutil.Process(), []
    hoard = Hoard(opened, check, seed=7)
    watcher = hoard.watcher
    try:
        for number in range(1, STEPS + 1):
            hoard.step()
            if not number % CHECK_EVERY:
                hoard.check()
                print(
                    f"{number} of {STEPS}: peaks {watcher.peak_ram_bytes / ram_bytes:.3f} of RAM, "
                    f"{watcher.peak_disk_bytes / disk_bytes:.3f} of disk, stored {hoard.stored_bytes >> 20} MiB, "
                    f"process {process.memory_info().rss >> 20} MiB",
                    flush=True,
                )
                if number >= WARM_STEPS:
                    sizes.append(process.memory_info().rss)
    finally:
        hoard.close()
    assert hoard.stored_bytes > 3 * disk_bytes, "or nothing was ever evicted"
    assert 0.7 * ram_bytes < watcher.peak_ram_bytes <= SLACK * ram_bytes
    assert 0.8 * disk_bytes < watcher.peak_disk_bytes <= SLACK * disk_bytes
    grown = (max(sizes) - sizes[0]) / (STEPS - WARM_STEPS)
    assert grown <= MAX_BYTES_PER_STEP, (grown, [size >> 20 for size in sizes])
