"""Looks at a session's window after every turn: who is told, when a snapshot is taken and a compression begun.

Knows shares and callbacks; what is done is the business of others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvloom.errors import UsageError
from kvloom.session.budget import Budget
from kvloom.session.compression import Compression
from kvloom.session.desk import Desk
from kvloom.session.events import Signal
from kvloom.session.values import Overflow, Threshold

HYSTERESIS = 0.05
"""Below a threshold less this it is armed again: a context that moves about it tells once."""


@dataclass
class _Armed:
    share: float
    signal: Signal[Threshold]
    is_armed: bool = True


class Watch:
    """The thresholds of one session. The caller holds the session's desk."""

    def __init__(self, desk: Desk, budget: Budget, compression: Compression) -> None:
        self._desk, self._budget, self._compression = desk, budget, compression
        self._armed: dict[float, _Armed] = {}
        self.overflow: Signal[Overflow] = Signal()
        settings = desk.loom.settings
        if settings.snapshots.enabled and settings.snapshots.auto_create:
            self.on_threshold(settings.snapshots.auto_threshold, self._snapshot)

    def on_threshold(self, share: float, callback: Callable[[Threshold], object]) -> Callable[[], None]:
        if not 0 < share <= 1:
            raise UsageError(f"a threshold of {share} is outside 0 … 1: give a share of what the window may hold")
        armed = self._armed.setdefault(share, _Armed(share, Signal()))
        return armed.signal.subscribe(callback)

    def after_turn(self) -> tuple[str, ...]:
        """What a turn has come to; notices for its reply."""
        used, limit = self._desk.manifest.num_tokens, self._budget.limit()
        for armed in self._armed.values():
            if used >= armed.share * limit and armed.is_armed:
                armed.is_armed = False
                armed.signal.tell(Threshold(self._desk.history.id, armed.share, used, limit))
            elif used < (armed.share - HYSTERESIS) * limit:
                armed.is_armed = True
        settings = self._desk.loom.settings.compression
        if settings.background and self._compression.begin():
            return (
                f"the context holds {used} of {limit} tokens: older turns are being summed up in the background "
                "(the ledger lists them then, undo takes it back)",
            )
        return ()

    def before_overflow(self, needed: int) -> None:
        window = self._budget.window()
        self.overflow.tell(Overflow(self._desk.history.id, needed, window, self._budget.policy_name()))

    def _snapshot(self, threshold: Threshold) -> None:
        self._desk.snapshots.automatic(f"at {threshold.share:.0%} of the window")
