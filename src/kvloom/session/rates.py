"""What placing and computing a token costs on this machine, kept in the home from one process to the next.

Learns from weaves; knows no session. What cannot be stored is measured again.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvloom.chunk.database import Database
from kvloom.context.weave import Weave
from kvloom.errors import StoreError
from kvloom.types import TierName

if TYPE_CHECKING:
    from kvloom.engine.base import Engine

_LOG = logging.getLogger(__name__)

SMOOTHING = 0.3
"""Weight of the newest measurement in a rate: machines are shared, single runs are noisy."""
MOVED_SHARE = 0.2
"""A rate that has moved by less is not written before the end: an estimate in seconds is no finer than this."""


@dataclass
class Rates:
    """Seconds per token of placing and computing, measured on this machine. None: not yet."""

    place_s: float | None = None
    compute_s: float | None = None

    def note(self, weave: Weave) -> None:
        """Learn from a weave that did one thing only: mixed ones cannot be told apart."""
        if weave.loaded_tokens and not weave.computed_tokens:
            self.place_s = _smooth(self.place_s, weave.seconds / weave.loaded_tokens)
        elif weave.computed_tokens and not weave.loaded_tokens:
            self.compute_s = _smooth(self.compute_s, weave.seconds / weave.computed_tokens)

    def restore_s(self, tier: TierName, num_tokens: int) -> float | None:
        """An estimate for bringing `num_tokens` to the device from `tier`; None where that is not known."""
        if tier is TierName.DEVICE:
            return 0.0
        if tier is TierName.UNKNOWN:
            return None
        rate = self.compute_s if tier is TierName.NONE else self.place_s
        return None if rate is None else rate * num_tokens


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)


class KeptRates(Rates):
    """Rates of one model that begin where the last process left off. Safe for several threads.

    Nothing is written while a reply waits for its first token: `save_if_moved` is called behind it.
    """

    def __init__(self, database: Database, engine: Engine) -> None:
        self._database, self._model, self._setting = database, engine.fingerprint, measured_with(engine)
        self._lock = threading.Lock()
        super().__init__(*self._stored())
        self._kept = (self.place_s, self.compute_s)

    def save_if_moved(self) -> None:
        """Write what has changed so far that it would be told otherwise."""
        if any(_has_moved(old, new) for old, new in zip(self._kept, (self.place_s, self.compute_s), strict=True)):
            self.save()

    def save(self) -> None:
        """Write what is not written yet. A home that takes nothing costs the next process a measurement."""
        with self._lock:
            now = (self.place_s, self.compute_s)
            if now == self._kept:
                return
            try:
                self._database.execute(
                    "INSERT OR REPLACE INTO rates (model, setting, place_s, compute_s, updated_s) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (self._model, self._setting, *now, time.time()),
                )
            except StoreError as error:
                _LOG.warning("the measured rates cannot be kept: %s", error)
            self._kept = now  # a home that is full or read-only is not asked again for every turn

    def _stored(self) -> tuple[float | None, float | None]:
        sql = "SELECT place_s, compute_s FROM rates WHERE model = ? AND setting = ?"
        rows = self._database.rows(sql, (self._model, self._setting))
        return (_usable(rows[0][0]), _usable(rows[0][1])) if rows else (None, None)


def measured_with(engine: Engine) -> str:
    """What a rate depends on beside the model: how KV is held, where it is computed, and the kind of machine."""
    layout = engine.layout
    place = "gpu" if engine.uses_accelerator else "cpu"
    machine = f"{platform.system()} {platform.machine()} {os.cpu_count()}"
    return f"{layout.k_type.value}/{layout.v_type.value} {place} {machine}"


def _has_moved(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) > MOVED_SHARE * old


def _usable(value: object) -> float | None:
    """A stored rate, unless somebody has put something else there."""
    is_rate = isinstance(value, float) and math.isfinite(value) and value > 0
    return float(value) if is_rate else None  # type: ignore[arg-type]
