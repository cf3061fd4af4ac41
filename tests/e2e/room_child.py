"""A loom in a process whose memory is limited, and a hog beside it: what the guard does, as one JSON document."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import psutil

import kvloom
from kvloom.config import load_settings
from kvloom.errors import MemoryPressureError

STEP_BYTES = 16 * 2**20
SPARE_BYTES = 900 * 2**20
"""What the limit leaves above what the process holds with the model loaded."""
PATIENCE_S = 180.0


def main(model: str, home: Path) -> dict[str, Any]:
    settings = load_settings({"model": model, "context": 4096, "context_min": 512, "guard": {"poll_s": 0.2}}, home=home)
    with kvloom.open(settings=settings, home=home) as loom:
        chat = loom.session(system="Answer in a few words.")
        chat.activate(loom.load_text("The harbour has two piers. " * 40, name="notes").id)
        first = chat.generate("How many piers?", max_tokens=8, temperature=0.0).text
        chat.undo()
        limit = psutil.Process().memory_info().vms + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        levels: list[str] = []
        refusal = ""
        hog: list[bytearray] = []
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not refusal:
            loom.monitor.poll()
            loom.guard.wait()
            if not levels or levels[-1] != loom.guard.level.value:
                levels.append(loom.guard.level.value)
            try:
                chat.generate("How many piers?", max_tokens=2, temperature=0.0)
                chat.undo()
            except MemoryPressureError as error:
                refusal = str(error)
                break
            hog.append(bytearray(STEP_BYTES))
        refused_with = (len(chat.history()), loom.engine.num_cells, chat.window)
        snapshots = [snapshot.reason for snapshot in chat.snapshots()]
        hog.clear()
        while loom.guard.is_refusing and time.monotonic() < deadline:
            loom.monitor.poll()
        again = chat.generate("How many piers?", max_tokens=8, temperature=0.0).text
        return {
            "levels": levels,
            "refusal": refusal,
            "history_cells_window": refused_with,
            "snapshots": snapshots,
            "notices": [notice.text for notice in loom.guard.notices],
            "is_same_reply": again == first,
        }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
