"""Prefills in a native context of their own, where the common one is full of others' cells.

On a CPU the attention of every row looks at the mask of every cell in use, whoever holds it. What is computed here
looks at its own sequence only, and is set into the common cells as state bytes. Knows one sequence at a time.
"""

from __future__ import annotations

from dataclasses import replace

import llama_cpp
import numpy as np

from kvloom.engine.base import Logits, Run
from kvloom.engine.llamacpp import batch
from kvloom.engine.llamacpp.load import NativeModel
from kvloom.engine.llamacpp.side import SideContext, read_state, set_state
from kvloom.types import F32Array, SequenceId, U8Array

__all__ = ["Aside"]

WHOLE, RANGE = SequenceId(0), SequenceId(1)
"""The one sequence, and where a part of it is put together to be read."""
MOVE_COST = 64
"""What setting a row into another context costs, in looks of one row at the mask of one cell.

Measured on 2 cores (qwen2.5-coder-0.5b, f16): 128 rows 0.7 ms; 128 rows beside 6,300 cells of others 75 ms more.
"""
MIN_FOREIGN_CELLS = 512
"""With fewer cells of others there is nothing to win."""


class Aside:
    """One more context over the same weights, made by `open`, which comes before `take` and `decode`. One thread."""

    def __init__(self, native: NativeModel, num_cells: int) -> None:
        self._native = native
        self.num_cells = num_cells
        self._side: SideContext | None = None
        self._batch = batch.NativeBatch(native.max_rows)
        self._limits = batch.BatchLimits(native.max_rows, 1, batch.FAST_ROWS, 1.0)
        self._buffer: U8Array = np.empty(0, np.uint8)
        self._sequence: SequenceId | None = None
        self._stop = 0

    def is_worth(self, run: Run, num_held: int, num_foreign: int) -> bool:
        """Whether a run is computed sooner here: `num_held` tokens stand before it, others hold `num_foreign` cells."""
        num_rows = len(run.tokens)
        num_moved = num_rows if self.holds(run.sequence, run.start) else num_rows + num_held
        return (
            num_rows >= batch.FAST_ROWS
            and run.logits is not Logits.ALL
            and num_held + num_rows <= self.num_cells
            and num_foreign >= MIN_FOREIGN_CELLS
            and num_rows * num_foreign > MOVE_COST * num_moved
        )

    def open(self) -> None:
        """Make the context if there is none. Raises EngineMemoryError."""
        if self._side is None:
            settings = replace(self._native.settings, num_cells=self.num_cells)
            self._side = SideContext(self._native.model, settings, 2, _for_one_output)

    def holds(self, sequence: SequenceId, stop: int) -> bool:
        """Whether it has that sequence as it is, up to `stop`."""
        return self._sequence == sequence and self._stop == stop

    def forget(self, sequence: SequenceId) -> None:
        """The sequence was changed elsewhere."""
        if self._sequence == sequence:
            self._sequence = None

    def take(self, sequence: SequenceId, data: U8Array, stop: int) -> None:
        """Hold that sequence, of which `data` is the state; none where it is empty."""
        side = self._opened()
        self._sequence = None
        llama_cpp.llama_memory_clear(side.memory, False)
        if data.size:
            set_state(side.pointer, WHOLE, data)
        self._sequence, self._stop = sequence, stop

    def decode(self, run: Run) -> tuple[U8Array, F32Array | None]:
        """Compute a run of the sequence that it holds: the state of its rows, valid until the next call, and the logits
        (vocab,) where they are wanted."""
        side = self._opened()
        sequence, self._sequence = self._sequence, None  # until it is done
        inside = replace(run, sequence=WHOLE)
        for pieces in batch.cut([inside], self._limits):
            side.decode(self._batch.put([inside], pieces, 0, RANGE))
        logits = None
        if run.logits is Logits.LAST:
            size: int = llama_cpp.llama_vocab_n_tokens(self._native.vocabulary)
            found = llama_cpp.llama_get_logits(side.pointer)
            logits = np.ctypeslib.as_array(found, shape=(size,)).copy()
        stop = run.start + len(run.tokens)
        llama_cpp.llama_memory_seq_cp(side.memory, WHOLE, RANGE, run.start, stop)
        try:
            data = read_state(side.pointer, RANGE, self._buffer)
        finally:
            llama_cpp.llama_memory_seq_rm(side.memory, RANGE, -1, -1)
        if data.size > self._buffer.size:
            self._buffer = data
        self._sequence, self._stop = sequence, stop
        return data, logits

    def close(self) -> None:
        """Free the native memory; it is made again when it is needed again. Idempotent."""
        self._sequence = None
        self._buffer = np.empty(0, np.uint8)
        if self._side is not None:
            self._side.close()
            self._side = None

    # -- inside -------------------------------------------------------------------------------------------------

    def _opened(self) -> SideContext:
        assert self._side is not None, "used before open()"
        return self._side


def _for_one_output(params: llama_cpp.llama_context_params) -> None:
    params.n_outputs_max = params.n_seq_max
