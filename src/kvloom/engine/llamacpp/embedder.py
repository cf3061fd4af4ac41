"""Embeddings in a native context of their own: rows of the last layer's states, pooled here as the model says.

Knows ids and vectors, no text. It shares the weights with the driver, and nothing of its cells. Pooling outside of the
native graph needs no batch that holds a whole text: long texts are computed in small steps, as prompts are.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import llama_cpp
import numpy as np

from kvloom.engine.base import Embedder
from kvloom.engine.llamacpp.batch import NativeBatch
from kvloom.engine.llamacpp.load import Metadata, NativeModel
from kvloom.engine.llamacpp.side import SideContext
from kvloom.engine.llamacpp.team import in_passing
from kvloom.errors import EngineStateError, EngineUnsupportedError
from kvloom.model.footprint import CacheSpec, footprint_of_shape
from kvloom.model.header import read_header
from kvloom.types import F32Array, F64Array, KVType

__all__ = ["LlamaCppEmbedder", "can_embed", "forecast_bytes"]

STEP_ROWS = 128
"""Rows of a native batch: what a running reply waits for, and what buffers are made for. llama.cpp computes the logits
of every row beside its embedding, 600 kB each with a vocabulary of 150,000."""
NUM_SEQUENCES = 32
"""Short texts of one native batch."""


class Pooling(Enum):
    """How a text's rows become one vector; the value is llama.cpp's number, which the file carries."""

    MEAN = 1
    FIRST = 2
    LAST = 3


RANKING = 4
"""A model that scores pairs of texts: it has no vectors."""


def pooling_of(metadata: Metadata) -> Pooling | None:
    """As the model's file says, the mean where it says nothing; None for a model that ranks."""
    number = metadata.integer(".pooling_type")
    if number == RANKING:
        return None
    return Pooling(number) if number in {one.value for one in Pooling} else Pooling.MEAN


def can_embed(native: NativeModel) -> bool:
    return pooling_of(native.metadata) is not None


def forecast_bytes(native: NativeModel, max_tokens: int, *, is_recurrent: bool) -> int:
    """The cells, the graph's buffer, and the rows of logits and states that are read out."""
    spec = CacheSpec(
        num_cells=_num_cells(max_tokens),
        k_type=KVType.F16,
        v_type=KVType.F16,
        num_sequences=_num_sequences(is_recurrent=is_recurrent),
        num_batch_rows=STEP_ROWS,
        num_output_rows=STEP_ROWS,
    )
    shape = read_header(native.settings.path).shape
    found = footprint_of_shape(shape, 0, spec)
    width: int = llama_cpp.llama_model_n_embd_out(native.model)
    return found.kv_bytes + found.compute_bytes + STEP_ROWS * 4 * (shape.vocab_size + width)


@dataclass
class _Text:
    """A text under way: its rows so far, by sum or by one of them."""

    number: int
    sequence: int
    tokens: Sequence[int]
    num_done: int = 0
    pooled: F64Array | None = field(default=None)

    def add(self, rows: F32Array, pooling: Pooling) -> None:
        self.num_done += len(rows)
        if pooling is Pooling.MEAN:
            # Of length 1 in the end: the sum points where the mean does.
            total = rows.sum(axis=0, dtype=np.float64)
            self.pooled = total if self.pooled is None else self.pooled + total
        elif pooling is Pooling.LAST:
            self.pooled = rows[-1].astype(np.float64)
        elif self.pooled is None:
            self.pooled = rows[0].astype(np.float64)

    def vector(self) -> F32Array:
        assert self.pooled is not None, "a text has a token at least"
        length = float(np.linalg.norm(self.pooled))
        return (self.pooled / length if length > 0 else self.pooled).astype(np.float32)


class LlamaCppEmbedder(Embedder):
    """A context for texts of at most `max_tokens`."""

    def __init__(self, native: NativeModel, max_tokens: int, *, is_recurrent: bool) -> None:
        pooling = pooling_of(native.metadata)
        if pooling is None:
            raise EngineUnsupportedError(f"{native.settings.path.name} ranks pairs of texts: it makes no embeddings")
        self._pooling = pooling
        self.max_tokens = max_tokens
        self.num_bytes = forecast_bytes(native, max_tokens, is_recurrent=is_recurrent)
        self._num_sequences = _num_sequences(is_recurrent=is_recurrent)
        self._width: int = llama_cpp.llama_model_n_embd_out(native.model)
        self._vocab_size: int = llama_cpp.llama_vocab_n_tokens(native.vocabulary)
        self._batch = NativeBatch(STEP_ROWS)
        settings = replace(
            native.settings, num_cells=_num_cells(max_tokens), kv_type_k=KVType.F16, kv_type_v=KVType.F16
        )
        self._side = SideContext(native.model, settings, self._num_sequences, _for_embeddings)

    def embed(self, texts: Sequence[Sequence[int]]) -> Generator[list[F32Array], None, None]:
        for text in texts:
            self._check(text)
        return self._embedded(texts)

    def close(self) -> None:
        self._side.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _embedded(self, texts: Sequence[Sequence[int]]) -> Generator[list[F32Array], None, None]:
        under_way: list[_Text] = []
        number = 0
        try:
            while under_way or number < len(texts):
                free = [s for s in range(self._num_sequences) if s not in {text.sequence for text in under_way}]
                num_rows = sum(len(text.tokens) - text.num_done for text in under_way)
                while free and num_rows < STEP_ROWS and number < len(texts):
                    under_way.append(_Text(number, free.pop(0), texts[number]))
                    num_rows += len(texts[number])
                    number += 1
                self._compute(under_way)
                # Only the last one that was begun can be unfinished, so they end in order.
                done = [text for text in under_way if text.num_done == len(text.tokens)]
                under_way = [text for text in under_way if text not in done]
                for text in done:
                    llama_cpp.llama_memory_seq_rm(self._side.memory, text.sequence, -1, -1)
                yield [text.vector() for text in done]
        finally:
            if under_way and self._side.is_open:
                llama_cpp.llama_memory_clear(self._side.memory, False)

    def _compute(self, under_way: Sequence[_Text]) -> None:
        """One native batch: the next rows of these texts, in order."""
        parts: list[tuple[_Text, int]] = []
        row = 0
        for text in under_way:
            count = min(STEP_ROWS - row, len(text.tokens) - text.num_done)
            self._batch.put_rows(row, text.sequence, text.tokens[text.num_done : text.num_done + count], text.num_done)
            parts.append((text, count))
            row += count
        in_passing(lambda: self._side.decode(self._batch.of(row)))
        found = llama_cpp.llama_get_embeddings(self._side.pointer)
        rows = np.ctypeslib.as_array(found, shape=(row, self._width))
        row = 0
        for text, count in parts:
            text.add(rows[row : row + count], self._pooling)
            row += count

    def _check(self, tokens: Sequence[int]) -> None:
        if not 1 <= len(tokens) <= self.max_tokens:
            raise EngineStateError(f"a text of {len(tokens)} tokens: 1 … {self.max_tokens} can be embedded")
        if min(tokens) < 0 or max(tokens) >= self._vocab_size:
            raise EngineStateError(f"tokens {min(tokens)} … {max(tokens)} are not among the {self._vocab_size} known")


def _num_cells(max_tokens: int) -> int:
    """The longest text, and the short ones that end in the batch in which it begins."""
    return max_tokens + STEP_ROWS


def _num_sequences(*, is_recurrent: bool) -> int:
    """A recurrent model holds a whole state for each."""
    return 1 if is_recurrent else NUM_SEQUENCES


def _for_embeddings(params: llama_cpp.llama_context_params) -> None:
    params.embeddings = True
    params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
    params.n_batch = params.n_ubatch = params.n_outputs_max = STEP_ROWS
