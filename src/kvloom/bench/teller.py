"""Tells how far a benchmark is: through a callback where one is given, else as plain lines on standard error.

Knows no measurement.
"""

from __future__ import annotations

import sys
import time

from kvloom.session.values import Progress, ProgressCallback


class Teller:
    """Counts the steps of one run. Lines carry what was measured, so that a log is worth reading."""

    def __init__(self, bench: str, total: int, progress: ProgressCallback | None) -> None:
        self._bench = bench
        self._total = total
        self._progress = progress
        self._began = time.monotonic()
        self._done = 0
        self._task = ""

    def step(self, text: str) -> None:
        """One measurement is done."""
        self._done += 1
        self.say(text)

    def say(self, text: str) -> None:
        """Something worth a line that is no step of its own."""
        if self._progress is not None:
            self._progress(Progress(f"bench {self._bench}", self._done, max(self._total, self._done), "measurements"))
            return
        spent = time.monotonic() - self._began
        print(f"[{spent:6.1f} s, {self._done}/{self._total}] {text}", file=sys.stderr, flush=True)  # noqa: T201

    def wait(self, progress: Progress) -> None:
        """A callback for what the benchmark itself waits for (fetching, checking a model): a line when it begins."""
        if self._progress is not None:
            self._progress(progress)
        elif progress.task != self._task:
            self._task = progress.task
            self.say(progress.task)
