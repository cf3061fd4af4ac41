"""The barest decoding loop over a loaded model: what `driver` and everything above it add is measured against it.

Knows one sequence and native calls, none of the books: it leaves the cache as it found it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import llama_cpp
import numpy as np

from kvloom.engine.base import Logits, Run
from kvloom.engine.llamacpp.batch import BatchLimits, NativeBatch, cut
from kvloom.engine.llamacpp.driver import LlamaCppEngine
from kvloom.engine.llamacpp.side import SideContext
from kvloom.errors import EngineStateError
from kvloom.types import SequenceId

__all__ = ["bare_greedy", "step_seconds"]

STEPS = 12
"""Steps of all sequences, of which the median counts."""
CELLS_OF_A_STREAM = 256
"""llama.cpp rounds a stream's cells up to this."""


def bare_greedy(engine: LlamaCppEngine, sequence: SequenceId, token: int, num_tokens: int) -> tuple[list[int], float]:
    """Decode `token` at the end of `sequence` and then greedily on; (the tokens chosen, seconds for all).

    Native calls and an argmax, nothing else. What was decoded is taken out of the sequence again.
    To be called in the thread that computes for the engine (`Batcher.run`).
    """
    native = engine._native
    last = engine.last_position(sequence)
    if last is None or last + 1 + num_tokens > native.num_cells:
        raise EngineStateError(f"{num_tokens} tokens do not fit behind position {last} of {native.num_cells} cells")
    start = last + 1
    batch = llama_cpp.llama_batch_init(1, 0, 1)
    chosen: list[int] = []
    try:
        batch.n_tokens, batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 1, sequence, 1
        began = time.perf_counter()
        for position in range(start, start + num_tokens):
            batch.token[0], batch.pos[0] = token, position
            if llama_cpp.llama_decode(native.context, batch):
                raise EngineStateError(f"llama.cpp could not decode a token at position {position}")
            logits = llama_cpp.llama_get_logits(native.context)
            token = int(np.ctypeslib.as_array(logits, shape=(engine.vocabulary.size,)).argmax())
            chosen.append(token)
        return chosen, time.perf_counter() - began
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_memory_seq_rm(native.memory, sequence, start, -1)


def step_seconds(engine: LlamaCppEngine, num_sequences: int, num_tokens: int, *, is_unified: bool) -> float:
    """Seconds of one step of `num_sequences` replies behind `num_tokens` each, in a native context of its own.

    `is_unified`: all in one pool of cells, as the engine has it, or each in a stream of its own, as llama.cpp's server.
    To be called in the thread that computes for the engine (`Batcher.run`). Raises EngineMemoryError.
    """
    native = engine._native
    length = num_tokens + STEPS

    def change(params: llama_cpp.llama_context_params) -> None:
        params.kv_unified = is_unified

    settings = replace(native.settings, num_cells=num_sequences * (-(-length // CELLS_OF_A_STREAM) * CELLS_OF_A_STREAM))
    side = SideContext(native.model, settings, num_sequences, change)
    try:
        limits = BatchLimits(native.max_rows, num_sequences, 1, 1.0)
        filled = NativeBatch(native.max_rows)
        ids = np.random.default_rng(length).integers(0, engine.vocabulary.size, (num_sequences, length)).tolist()
        for number in range(num_sequences):
            run = Run(SequenceId(number), ids[number][:num_tokens], 0, Logits.NONE)
            for pieces in cut([run], limits):
                side.decode(filled.put([run], pieces, 0, 0))
        seconds = []
        for at in range(num_tokens, length):
            runs = [Run(SequenceId(number), (row[at],), at, Logits.LAST) for number, row in enumerate(ids)]
            began = time.perf_counter()
            for pieces in cut(runs, limits):
                side.decode(filled.put(runs, pieces, 0, 0))
            seconds.append(time.perf_counter() - began)
        return median(seconds)
    finally:
        side.close()
