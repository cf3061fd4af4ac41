"""Answers a batch over the fake engine, to be killed in the middle: `python -m … FOLDER IN OUT`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kvloom.server.batch import answer_all
from kvloom.server.batch_files import BatchOutput, read_batch
from tests.unit.server.fleets import fleet_of, settings_for


def main(folder: Path, source: Path, target: Path) -> None:
    fleet, _, _ = fleet_of(folder, "ab")
    lines = read_batch(source)
    with BatchOutput(target, [line.custom_id for line in lines]) as output:
        done = asyncio.run(answer_all(fleet, settings_for(slots=2), source, lines, output, lambda *_: None))
    print(done.num_done_before, done.num_done)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
