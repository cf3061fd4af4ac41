"""Answers a batch over the fake engine, to be killed in the middle: `python -m … FOLDER IN OUT [HOLD]`.

HOLD: with so many lines done it waits for its end.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

from kvloom.server.batch import answer_all
from kvloom.server.batch_files import BatchOutput, read_batch
from tests.unit.server.fleets import fleet_of, settings_for


def main(folder: Path, source: Path, target: Path, hold: int | None) -> None:
    def follow(num_done: int, _total: int) -> None:
        if hold is not None and num_done >= hold:
            threading.Event().wait()

    fleet, _, _ = fleet_of(folder, "ab")
    lines = read_batch(source)
    with BatchOutput(target, [line.custom_id for line in lines]) as output:
        done = asyncio.run(answer_all(fleet, settings_for(slots=2), source, lines, output, follow))
    print(done.num_done_before, done.num_done)


if __name__ == "__main__":
    folder, source, target, *hold = sys.argv[1:]
    main(Path(folder), Path(source), Path(target), int(hold[0]) if hold else None)
