"""One native batch in numpy's memory, filled row by row range; and how runs are cut into batches.

It knows rows (token, position, sequence, wanted logits) and no native context.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from kvloom.engine.base import Logits, Run

__all__ = ["BatchLimits", "NativeBatch", "Piece", "cut", "padding"]


@dataclass(frozen=True)
class BatchLimits:
    """What a native batch may hold, and where a small one becomes a slow one.

    `quantum`: rows from which the fast prefill path is taken (1: there is only one path). `pad_from`: fewer rows than
    this are cheaper left alone.
    """

    max_rows: int
    max_outputs: int
    quantum: int
    pad_from: int


@dataclass(frozen=True)
class Piece:
    """Rows start … stop - 1 of run `run`, as they go into one native batch."""

    run: int
    start: int
    stop: int


def cut(runs: Sequence[Run], limits: BatchLimits) -> Iterator[list[Piece]]:
    """Native batches for the runs, in order.

    Rows that come from the fast path agree to the bit wherever the cuts lie, so no batch of several may be smaller
    than the quantum: full batches are multiples of it, and the last but one gives rows to a last one that is small.
    """
    total = sum(len(run.tokens) for run in runs)
    if total <= limits.max_rows and sum(map(_num_outputs, runs)) <= limits.max_outputs:
        yield [Piece(i, 0, len(run.tokens)) for i, run in enumerate(runs)]
        return
    max_rows = limits.max_rows
    if any(run.logits is Logits.ALL for run in runs) or len(runs) > limits.max_outputs:
        max_rows = min(max_rows, limits.max_outputs)
    sizes = _batch_sizes(total, max_rows, limits.quantum)
    index, offset = 0, 0
    for size in sizes:
        pieces: list[Piece] = []
        while size:
            length = len(runs[index].tokens)
            taken = min(size, length - offset)
            pieces.append(Piece(index, offset, offset + taken))
            size -= taken
            offset += taken
            if offset == length:
                index, offset = index + 1, 0
        yield pieces


def padding(num_rows: int, limits: BatchLimits) -> int:
    """Dummy rows that lift a small batch onto the fast path."""
    return limits.quantum - num_rows if limits.pad_from <= num_rows < limits.quantum else 0


def _batch_sizes(total: int, max_rows: int, quantum: int) -> list[int]:
    full = max(quantum, max_rows // quantum * quantum)
    sizes = [full] * (total // full)
    rest = total - sum(sizes)
    if 0 < rest < quantum and sizes and full >= 2 * quantum:
        sizes[-1] -= quantum
        rest += quantum
    return [*sizes, rest] if rest else sizes


def _num_outputs(run: Run) -> int:
    if run.logits is Logits.NONE:
        return 0
    return len(run.tokens) if run.logits is Logits.ALL else 1


class NativeBatch:
    """A `llama_batch` of up to `max_rows` rows with one sequence each, over arrays that live as long as it does."""

    def __init__(self, max_rows: int) -> None:
        self.token = np.zeros(max_rows, np.int32)
        self.position = np.zeros(max_rows, np.int32)
        self.sequence = np.zeros(max_rows, np.int32)
        self.wants_logits = np.zeros(max_rows, np.int8)
        self._counts = np.ones(max_rows, np.int32)
        # Row i's list of sequences is the i-th element of `sequence`.
        self._lists = self.sequence.ctypes.data + np.arange(max_rows, dtype=np.uintp) * self.sequence.itemsize
        self._batch = llama_cpp.llama_batch()
        fields: Any = self._batch
        fields.token = self.token.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        fields.pos = self.position.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        fields.n_seq_id = self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        fields.seq_id = ctypes.cast(self._lists.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        fields.logits = self.wants_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def put_one(self, run: Run) -> llama_cpp.llama_batch:
        """A batch of the single token of `run`: the way of every decoded token, so it does nothing else."""
        self.token[0] = run.tokens[0]
        self.position[0] = run.start
        self.sequence[0] = run.sequence
        self.wants_logits[0] = run.logits is not Logits.NONE
        self._batch.n_tokens = 1
        return self._batch

    def put(
        self, runs: Sequence[Run], pieces: Sequence[Piece], num_padding: int, pad_sequence: int
    ) -> llama_cpp.llama_batch:
        """A batch of the pieces, then `num_padding` dummies at positions 0 … of `pad_sequence`."""
        row = 0
        for piece in pieces:
            run = runs[piece.run]
            stop = row + piece.stop - piece.start
            self.token[row:stop] = run.tokens[piece.start : piece.stop]
            first = run.start + piece.start
            self.position[row:stop] = np.arange(first, first + stop - row, dtype=np.int32)
            self.sequence[row:stop] = run.sequence
            self.wants_logits[row:stop] = run.logits is Logits.ALL
            if run.logits is Logits.LAST and piece.stop == len(run.tokens):
                self.wants_logits[stop - 1] = 1
            row = stop
        if num_padding:
            stop = row + num_padding
            self.token[row:stop] = self.token[0]
            self.position[row:stop] = np.arange(num_padding, dtype=np.int32)
            self.sequence[row:stop] = pad_sequence
            self.wants_logits[row:stop] = 0
            row = stop
        self._batch.n_tokens = row
        return self._batch
