"""The pool: the native cells of one loaded model, shared by all its sessions. Rebuilt when a window needs it.

Window (a session's budget) and pool are two things: most changes of a window leave the pool as it is.
"""

from __future__ import annotations

from collections.abc import Callable

from kvloom.context.device import Device
from kvloom.errors import EngineMemoryError, UsageError

CELL_SLACK_SHARE = 6
"""A sixth of the window more cells than the window: blend's scratch rows, padding, a chunk computed on its own."""
MIN_CELL_SLACK = 512
CELL_STEP = 256
"""llama.cpp rounds the number of cells up to this."""
ASIDE_CELLS = 2048
"""Tokens of a context beside the pool of several replies, for prefills. Longer prompts look mostly at themselves."""
SHRINK_SHARE = 0.75
"""A pool is rebuilt smaller only where that gives back a quarter of it."""


def num_cells(window: int, least: int = 0) -> int:
    """Native cells for sessions of `window` tokens, with the slack that weaving needs; `least` of them at least."""
    wanted = max(window + max(MIN_CELL_SLACK, window // CELL_SLACK_SHARE), least)
    return (wanted + CELL_STEP - 1) // CELL_STEP * CELL_STEP


class Pool:
    """`window` is the largest that a session may have now. `spare_bytes`: what memory can give; None: unknown.

    `least`: cells that all sessions share, however small their windows are.
    """

    def __init__(self, device: Device, window: int, spare_bytes: Callable[[], int | None], least: int = 0) -> None:
        self._device = device
        self._spare_bytes = spare_bytes
        self.window = window
        self._least = least

    @property
    def is_released(self) -> bool:
        """Whether the cells were given back: nothing can be computed until a session needs them again."""
        return not self._device.engine.num_cells

    def ensure(self, window: int) -> None:
        """Cells for sessions of `window` tokens. Raises UsageError beyond the model's length, EngineMemoryError with
        the numbers where memory does not have them; the pool is as before then."""
        trained = self._device.engine.train_context
        if window > max(trained, self.window) > 0:  # a person who opened it larger was warned then
            raise UsageError(
                f"a window of {window} tokens is beyond the {trained} that the model was trained for; RoPE scaling "
                "stretches it (settings: rope.scaling, rope.freq_scale)"
            )
        with self._device.lock:
            if window > self.window or self.is_released:
                self._resize(max(window, self.window) if self.is_released else window)

    def shrink(self, window: int) -> bool:
        """Give back what sessions of at most `window` tokens do not need, where that is worth a rebuild."""
        with self._device.lock:
            if self.is_released or num_cells(window, self._least) > SHRINK_SHARE * self._device.engine.num_cells:
                return False
            self._resize(window)
            return True

    def release(self) -> int:
        """Give all cells back; bytes. Sessions are woven again when they are used: nothing of them is lost."""
        with self._device.lock:
            freed = self._device.engine.num_cells * self._device.engine.layout.token_bytes
            self._device.resize(0)
            return freed

    def _resize(self, window: int) -> None:
        engine, cells = self._device.engine, num_cells(window, self._least)
        more = (cells - engine.num_cells) * engine.layout.token_bytes
        spare = self._spare_bytes() if more > 0 else None
        # Asked for first: the system hands out memory that is not there, and kills the process when it is used.
        if spare is not None and more > spare:
            raise EngineMemoryError(
                f"a window of {window} tokens needs {more / 2**20:,.0f} MiB more, and memory can spare "
                f"{max(0, spare) / 2**20:,.0f} MiB below the guard's limit; ask for a smaller one, or open with "
                "--kv-type q8_0"
            )
        self._device.resize(cells)
        self.window = window
