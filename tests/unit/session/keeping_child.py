"""A process that asks, clears, compresses, snapshots and undoes until it is killed; each line is acknowledged work."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from kvloom.errors import CompressionError, NothingToUndoError
from tests.unit.session.fakes import fake_loom


def main(home: Path, seed: int) -> None:
    draw = random.Random(seed)
    with fake_loom(home, context=512, reserve_tokens=48, compression={"enabled": False}) as loom:
        chat = loom.session(name="kept")
        chat.policy = "fifo"
        print("ready", flush=True)
        for number in range(100_000):
            text = f"question {seed} {number}"
            chat.generate(text, max_tokens=3, temperature=0.0)
            print(f"turn {text}", flush=True)
            what = draw.randrange(6)
            if what == 0:
                print(f"snapshot {chat.snapshot(text).id}", flush=True)
            elif what == 1 and chat.history():
                chat.clear(turns=[1])
            elif what == 2:
                try:
                    chat.compress("truncate")
                except CompressionError:
                    continue
            elif what == 3:
                try:
                    chat.undo()
                except NothingToUndoError:
                    continue


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
