"""The barest decoding loop over a loaded model: what `driver` and everything above it add is measured against it.

Knows one sequence and native calls, none of the books: it leaves the cache as it found it.
"""

from __future__ import annotations

import time

import llama_cpp
import numpy as np

from kvloom.engine.llamacpp.driver import LlamaCppEngine
from kvloom.errors import EngineStateError
from kvloom.types import SequenceId

__all__ = ["bare_greedy"]


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
