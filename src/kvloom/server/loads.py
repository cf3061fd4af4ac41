"""The progress of a load as lines in the log, a few of them. Knows no model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from kvloom.session.values import Progress

LINE_EVERY_S = 5.0
"""A load that takes less than this writes no line of its own."""


class LoadLog:
    """Called with `Progress` values, from any thread."""

    def __init__(self, log: logging.Logger, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._model = model
        self._clock = clock
        self._last_line_s = clock()

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        if now - self._last_line_s < LINE_EVERY_S:
            return
        self._last_line_s = now
        share = f"{progress.done / progress.total:.0%}" if progress.total else f"{progress.done:,}"
        self._log.info("%s: %s, %s", self._model, progress.task, share)
