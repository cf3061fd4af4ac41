"""A process that stores entries is killed at random instants: what it acknowledged is whole, the rest whole or absent.

KVLOOM_TEST_KILLS sets how many times (8).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvloom.kv.disk import DiskTier
from tests.unit.kv.entries import entry_of, same

NUM_KILLS = int(os.environ.get("KVLOOM_TEST_KILLS", "8"))
BUDGET = 1 << 30
NUM_TOKENS = 200
WRITER = """
import sys
from pathlib import Path
from kvloom.kv.disk import DiskTier
from kvloom.kv.ram import RamTier
from kvloom.kv.store import TieredStore
from tests.unit.kv.entries import entry_of
store = TieredStore([RamTier(1 << 22), DiskTier(Path(sys.argv[1]), 1 << 30)])
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    store.put(entry_of(number, 200))
    if number % 3 == 0:
        store.save(entry_of(number, 200).id)
        print(number, flush=True)
    elif number % 3 == 2:
        store.flush()
        print(number - 1, number, flush=True)
    number += 1
"""


@pytest.mark.parametrize("kill", range(NUM_KILLS))
def test_a_kill_at_any_instant_loses_nothing_that_was_acknowledged(tmp_path: Path, kill: int) -> None:
    chance = random.Random(kill)
    root = Path(__file__).parents[3]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), "0"], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    # Between 0 and 0.15 s after some acknowledgement: anywhere in the writing of one of the entries.
    wanted_lines = chance.randint(0, 6)
    lines = [writer.stdout.readline() for _ in range(wanted_lines)]
    timer = threading.Timer(chance.random() * 0.15, writer.kill)
    timer.start()
    lines += list(writer.stdout)
    writer.wait()
    timer.cancel()
    writer.stdout.close()
    assert writer.returncode == -9
    acknowledged = [int(word) for line in lines if line.endswith("\n") for word in line.split()]

    tier = DiskTier(tmp_path, BUDGET)
    for number in acknowledged:
        assert same(tier.get(entry_of(number, NUM_TOKENS).id), entry_of(number, NUM_TOKENS))
    results = list(tier.verify())
    assert all(result.is_whole for result in results)
    assert len(results) >= len(acknowledged)
    assert not list(tmp_path.glob("*/.tmp-*"))
    assert not list(tmp_path.glob(".owner-*"))
    tier.close()
