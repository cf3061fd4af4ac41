"""The room that a loom takes: the cells of its model, the window that memory allows, and who is told when it runs low.

Part of `Loom`, which makes what is declared here. What is done about low memory is the guard's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from kvloom.config import Settings
from kvloom.engine.base import Engine
from kvloom.memory.monitor import LowMemory, MemoryMonitor
from kvloom.memory.reading import MemoryPicture
from kvloom.memory.sizing import WINDOW_STEP, Room, budget_bytes
from kvloom.model.footprint import largest_fitting
from kvloom.session.guard import MemoryGuard
from kvloom.session.pool import Pool, num_cells
from kvloom.session.session import Session
from kvloom.session.sizing import limits_of, reading_for


class LoomMemory(ABC):
    """What a loom takes of the machine's memory, and knows of it."""

    engine: Engine
    settings: Settings
    window: int
    pool: Pool
    guard: MemoryGuard
    monitor: MemoryMonitor

    @abstractmethod
    def _check_open(self) -> None:
        """Raises LoomClosedError after `close()`."""

    @abstractmethod
    def open_sessions(self) -> list[Session]:
        """The sessions that are open in this process."""

    def ensure_window(self, window: int) -> None:
        """Cells for a session of `window` tokens (0: the loom's own). Raises EngineMemoryError, UsageError."""
        self._check_open()
        self.pool.ensure(window or self.window)

    def shrink_pool(self) -> bool:
        """Give back cells that no open session's window needs."""
        windows = [session.window for session in self.open_sessions()]
        return self.pool.shrink(max(windows, default=self.window))

    def automatic_window(self) -> int:
        """The window that the settings, the model and memory allow now, the present pool's cells given back."""
        limits = limits_of(self.settings)
        most = min(filter(None, (limits.target, limits.maximum, self.engine.train_context)))
        reading = reading_for(self.monitor.poll(), on_accelerator=self.engine.uses_accelerator)
        if reading is None:
            return most
        token_bytes = self.engine.layout.token_bytes
        budget = budget_bytes(Room.of(reading), limits) + self.engine.num_cells * token_bytes
        least = self.settings.pool_tokens
        return largest_fitting(lambda tokens: num_cells(tokens, least) * token_bytes <= budget, most, WINDOW_STEP)

    def memory(self) -> MemoryPicture:
        """All memories of this machine, read now."""
        return self.monitor.poll()

    def on_low_memory(self, callback: Callable[[LowMemory], None], share: float = 0.8) -> Callable[[], None]:
        """Call `callback` when a memory's used share reaches `share`, once a crossing; returns what ends that."""
        return self.monitor.on_low_memory(callback, share)

    def _spare_bytes(self) -> int | None:
        """What may be taken below the guard's soft limit, as of now; None where the guard is off."""
        if not self.settings.guard.enabled:
            return None
        self.monitor.poll()
        return self.guard.spare_bytes()
