"""One native batch in numpy's memory, filled row by row range; and how runs are cut into batches.

It knows rows (token, position, sequence, wanted logits) and no native context.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from kvloom.engine.base import Logits, Run

__all__ = ["BatchLimits", "NativeBatch", "Piece", "balance_tokens", "cut"]


FAST_ROWS = 64
"""Rows from which ggml's CPU flash attention works in tiles (GGML_FA_TILE_Q), f16 K and V only."""
QUANTUM_COST = 54.0
TILED_COST = 16.5
"""What a batch of 64 rows costs, in single rows of the slow path: its products with the weights, and its attention.

Measured in processor time on one core (qwen2.5-coder-0.5b, f16 K and V, AVX-512), milliseconds for 8 / 16 / 32 / 63
rows left alone and for 64: over 100 tokens 132 / 187 / 302 / 539 and 495; over 2,000 229 / 393 / 696 / 1,341 and 690;
over 6,000 441 / 834 / 1,519 / 3,058 and 1,130. So padding pays from 54, 32 and 23 rows, and never below 17.
"""
BALANCE_PER_WEIGHT = 1300.0 * 896 * 24 / 630e6
"""In the same measurement attention cost as much as the products at 1,300 tokens; both scale with the model's shape."""


def balance_tokens(num_weights: int, width: int, num_layers: int) -> float:
    """`BatchLimits.balance_tokens` of a model: what a row multiplies, over what it attends with per token."""
    return max(1.0, BALANCE_PER_WEIGHT * num_weights / max(1, width * num_layers))


@dataclass(frozen=True)
class BatchLimits:
    """What a native batch may hold, and where a small one becomes a slow one.

    `quantum`: rows from which the fast prefill path is taken (1: there is only one path). `balance_tokens`: length of
    context at which a row's attention on the slow path costs as much as its products with the weights.
    """

    max_rows: int
    max_outputs: int
    quantum: int
    balance_tokens: float

    def pad_from(self, num_attended: int) -> int:
        """Rows from which lifting a batch to the quantum is cheaper than leaving it, over so much context."""
        context = num_attended / self.balance_tokens
        return max(1, math.ceil((QUANTUM_COST + TILED_COST * context) / (1.0 + context)))

    def padding(self, num_rows: int, num_attended: int, *, is_part: bool) -> int:
        """Dummy rows for a batch. One that is part of more rows is always lifted: so the cuts leave no trace."""
        if num_rows >= self.quantum or not (is_part or num_rows >= self.pad_from(num_attended)):
            return 0
        return self.quantum - num_rows


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

    def put_rows(self, row: int, sequence: int, tokens: Sequence[int], start: int) -> None:
        """From `row` on: tokens of a sequence at positions `start` …, each with its output."""
        stop = row + len(tokens)
        self.token[row:stop] = tokens
        self.position[row:stop] = np.arange(start, start + len(tokens), dtype=np.int32)
        self.sequence[row:stop] = sequence
        self.wants_logits[row:stop] = 1

    def of(self, num_rows: int) -> llama_cpp.llama_batch:
        """A batch of the first rows, as they were put."""
        self._batch.n_tokens = num_rows
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
