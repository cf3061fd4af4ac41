"""The embedded engine: runs one GGUF model in this process through llama.cpp's low-level interface.

It knows ids, positions and bytes. Nothing reaches a native call that its books (`CellBooks`) have not allowed, because
llama.cpp answers a wrong argument by aborting the process. Positions are never shifted natively: rows are rotated in
their bytes and set again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import llama_cpp
import numpy as np

from kvloom.engine.base import Capabilities, Embedder, Engine, Logits, PlacedRows, RowLayer, Run, Sampler
from kvloom.engine.books import MAX_POSITION, CellBooks
from kvloom.engine.grammar import GrammarGuides
from kvloom.engine.llamacpp import batch, state
from kvloom.engine.llamacpp.aside import Aside
from kvloom.engine.llamacpp.casting import GgmlRowCaster
from kvloom.engine.llamacpp.embedder import LlamaCppEmbedder, can_embed, forecast_bytes
from kvloom.engine.llamacpp.load import GGML_TYPES, MAX_OUTPUT_ROWS, LoadSettings, NativeModel
from kvloom.engine.llamacpp.log import recent_errors
from kvloom.engine.llamacpp.probe import safe_settings
from kvloom.engine.llamacpp.sampling import LlamaCppSampler, SamplingDefaults
from kvloom.engine.llamacpp.selftest import examine, is_recurrent
from kvloom.engine.llamacpp.side import read_state, set_state
from kvloom.engine.llamacpp.team import in_passing
from kvloom.engine.llamacpp.vocab import LlamaCppVocabulary
from kvloom.errors import EngineMemoryError, EngineStateError, EngineUnsupportedError
from kvloom.types import (
    F32Array,
    I32Array,
    KVLayout,
    KVRows,
    KVType,
    ModelFingerprint,
    RopeSpec,
    SamplingParams,
    SequenceId,
    U8Array,
)

__all__ = ["LlamaCppEngine"]

_logger = logging.getLogger(__name__)

NO_SLOT = 1
"""llama_decode's answer when it found no cells; the cache is as before."""


class LlamaCppEngine(Engine):
    """A loaded model. Not thread-safe: one thread owns it, or the owner serialises calls."""

    def __init__(self, settings: LoadSettings, fingerprint: ModelFingerprint) -> None:
        self.fingerprint = fingerprint
        self.row_caster = GgmlRowCaster.load()
        """ggml's casts for whoever rotates rows, None where the library hides them."""
        settings = safe_settings(settings)
        self._native = NativeModel(settings)
        try:
            self._prepare(settings)
        except BaseException:
            self._native.close()
            raise

    def _prepare(self, settings: LoadSettings) -> None:
        native = self._native
        self.vocabulary: LlamaCppVocabulary = LlamaCppVocabulary(native)
        self.num_cells = native.num_cells
        self.sink_token = self.vocabulary.sink_token()
        self._defaults = SamplingDefaults.of(native.metadata)
        self._guides = GrammarGuides(self.vocabulary)
        self._pad_sequence = settings.max_sequences
        self._books = CellBooks(native.num_cells, settings.max_sequences + 1)
        self._batch = batch.NativeBatch(native.max_rows)
        self._state_buffer: U8Array = np.empty(0, np.uint8)
        # "All layers on the GPU" is the default, and most builds have none.
        self.uses_accelerator = settings.num_gpu_layers != 0 and bool(llama_cpp.llama_supports_gpu_offload())
        has_tiles = not self.uses_accelerator and {settings.kv_type_k, settings.kv_type_v} == {KVType.F16}
        quantum = batch.FAST_ROWS if has_tiles else 1
        balance = batch.balance_tokens(
            llama_cpp.llama_model_n_params(native.model),
            llama_cpp.llama_model_n_embd(native.model),
            llama_cpp.llama_model_n_layer(native.model),
        )
        self._limits = batch.BatchLimits(native.max_rows, MAX_OUTPUT_ROWS, quantum, balance)
        self._is_recurrent = is_recurrent(native)
        found = in_passing(lambda: examine(native, self._pad_sequence, self.fingerprint))
        self.layout: KVLayout = found.layout
        self.rope: RopeSpec = found.rope
        self.train_context = found.train_context
        self._max_position = found.max_position
        self._writer = state.StateWriter(found.layout, (GGML_TYPES[settings.kv_type_k], GGML_TYPES[settings.kv_type_v]))
        self.capabilities = Capabilities(
            can_move_kv=found.can_move_kv,
            can_rotate=found.can_rotate,
            kv_types=native.kv_types(),
            max_sequences=settings.max_sequences,
            prefill_quantum=quantum,
            why_not=found.why_not,
        )
        self._aside: Aside | None = None
        if settings.aside_cells and has_tiles and found.can_move_kv:
            self._aside = Aside(native, settings.aside_cells)

    # --- computing ----------------------------------------------------------------------------------------------------

    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        self._check_runs(runs)
        results: list[F32Array | None] = [None] * len(runs)
        try:
            aside = self._aside_for(runs)
            if aside is not None:
                results[0] = self._decode_aside(aside, runs[0])
            elif len(runs) == 1 and len(runs[0].tokens) == 1:
                self._decode_native(self._batch.put_one(runs[0]))
                if runs[0].logits is not Logits.NONE:
                    logits = self._logits(1)
                    results[0] = (logits if runs[0].logits is Logits.ALL else logits[0]).copy()
            else:
                num_tokens = sum(len(run.tokens) for run in runs)
                for pieces in batch.cut(runs, self._limits):
                    num_rows = sum(piece.stop - piece.start for piece in pieces)
                    num_padding = self._padding(runs, num_rows, is_part=num_rows < num_tokens)
                    self._decode_pieces(runs, pieces, num_padding, results)
            for run in runs:
                self._books.append(run.sequence, run.start, len(run.tokens))
                if aside is None:
                    self._changed(run.sequence)
        except BaseException:  # KeyboardInterrupt comes between native batches
            self._take_back(runs)
            raise
        return results

    def _aside_for(self, runs: Sequence[Run]) -> Aside | None:
        """The context beside the common one where that is quicker."""
        if self._aside is None or len(runs) != 1:
            return None
        num_held = self._books.num_tokens(runs[0].sequence)
        if not self._aside.is_worth(runs[0], num_held, self.used_cells() - num_held):
            return None
        try:
            self._aside.open()
        except EngineMemoryError as error:
            _logger.warning("prefills beside other replies stay slower: %s", error)
            self._aside = None
        return self._aside

    def _decode_aside(self, aside: Aside, run: Run) -> F32Array | None:
        if not aside.holds(run.sequence, run.start):
            num_held = self._books.num_tokens(run.sequence)
            aside.take(run.sequence, self._state_of(run.sequence) if num_held else np.empty(0, np.uint8), run.start)
        data, logits = aside.decode(run)
        set_state(self._native.context, self._pad_sequence, data)
        stop = run.start + len(run.tokens)
        llama_cpp.llama_memory_seq_cp(self._native.memory, self._pad_sequence, run.sequence, run.start, stop)
        llama_cpp.llama_memory_seq_rm(self._native.memory, self._pad_sequence, -1, -1)
        return logits

    def _changed(self, sequence: SequenceId) -> None:
        """What the context beside this one holds of the sequence is not true any more."""
        if self._aside is not None:
            self._aside.forget(sequence)

    def _padding(self, runs: Sequence[Run], num_rows: int, *, is_part: bool) -> int:
        """Dummy rows for a batch, as far as there are cells for them.

        It depends on what the runs attend to, not on what else is in the cache: the same context gives the same bits.
        """
        attended = max(self._books.num_tokens(run.sequence) for run in runs)
        wanted = self._limits.padding(num_rows, attended, is_part=is_part)
        num_free = self._books.num_free_cells - sum(len(run.tokens) for run in runs)
        return wanted if wanted <= num_free else 0

    def _decode_pieces(
        self, runs: Sequence[Run], pieces: Sequence[batch.Piece], num_padding: int, results: list[F32Array | None]
    ) -> None:
        self._decode_native(self._batch.put(runs, pieces, num_padding, self._pad_sequence))
        if num_padding:
            llama_cpp.llama_memory_seq_rm(self._native.memory, self._pad_sequence, -1, -1)
        self._collect(runs, pieces, results)

    def _decode_native(self, native_batch: llama_cpp.llama_batch) -> None:
        code = llama_cpp.llama_decode(self._native.context, native_batch)
        if code == 0:
            return
        if code == NO_SLOT:
            raise EngineMemoryError(
                f"llama.cpp found no cells for {native_batch.n_tokens} rows: "
                f"{self.used_cells()} of {self.num_cells} are used"
            )
        raise EngineStateError(f"llama.cpp could not compute the batch (code {code}): {recent_errors()}")

    def _collect(self, runs: Sequence[Run], pieces: Sequence[batch.Piece], results: list[F32Array | None]) -> None:
        """Copy the batch's logits, which the native side overwrites at the next batch."""
        wanted: list[tuple[batch.Piece, int]] = []
        for piece in pieces:
            run = runs[piece.run]
            if run.logits is Logits.ALL:
                wanted.append((piece, piece.stop - piece.start))
            elif run.logits is Logits.LAST and piece.stop == len(run.tokens):
                wanted.append((piece, 1))
        if not wanted:
            return
        logits = self._logits(sum(count for _, count in wanted))
        row = 0
        for piece, count in wanted:
            run = runs[piece.run]
            if run.logits is Logits.LAST:
                results[piece.run] = logits[row].copy()
            else:
                whole = results[piece.run]
                if whole is None:
                    whole = results[piece.run] = np.empty((len(run.tokens), self.vocabulary.size), np.float32)
                whole[piece.start : piece.stop] = logits[row : row + count]
            row += count

    def _logits(self, num_rows: int) -> F32Array:
        """The native logits (num_rows, vocab), valid until the next native call."""
        pointer = llama_cpp.llama_get_logits(self._native.context)
        return np.ctypeslib.as_array(pointer, shape=(num_rows, self.vocabulary.size))

    def _check_runs(self, runs: Sequence[Run]) -> None:
        seen: set[int] = set()
        num_tokens = 0
        for run in runs:
            self._check_sequence(run.sequence)
            if run.sequence in seen:
                raise EngineStateError(f"sequence {run.sequence} has two runs in one call: join them")
            seen.add(run.sequence)
            count = len(run.tokens)
            self._books.check_append(run.sequence, run.start, count)
            self._check_books(run.sequence)
            low, high = (run.tokens[0], run.tokens[0]) if count == 1 else (min(run.tokens), max(run.tokens))
            if low < 0 or high >= self.vocabulary.size:
                raise EngineStateError(
                    f"token {low if low < 0 else high} is not among the {self.vocabulary.size} known"
                )
            if run.start + count > self._max_position:
                raise EngineUnsupportedError(
                    f"position {run.start + count - 1} is beyond the {self._max_position} that this model has"
                )
            num_tokens += count
        self._books.check_room(num_tokens)

    def _check_books(self, sequence: int) -> None:
        """An interrupt between a native call and its entry in the books must not become a wrong context."""
        native_last: int = llama_cpp.llama_memory_seq_pos_max(self._native.memory, sequence)
        last = self._books.last_position(sequence)
        if native_last != (-1 if last is None else last):
            raise EngineStateError(
                f"sequence {sequence} ends at {native_last} in the cache and at {last} in the books: remove it"
            )

    def _take_back(self, runs: Sequence[Run]) -> None:
        """Remove whatever of the runs is in the cache and in the books."""
        for run in runs:
            self._changed(run.sequence)
            self._books.remove(run.sequence, run.start, None)
            if not llama_cpp.llama_memory_seq_rm(self._native.memory, run.sequence, run.start, -1):
                # Recurrent state cannot be cut: the sequence is lost, and says so by being empty.
                llama_cpp.llama_memory_seq_rm(self._native.memory, run.sequence, -1, -1)
                self._books.remove(run.sequence, 0, None)
        llama_cpp.llama_memory_seq_rm(self._native.memory, self._pad_sequence, -1, -1)

    # --- moving -------------------------------------------------------------------------------------------------------

    def copy(self, source: SequenceId, target: SequenceId, start: int, stop: int) -> None:
        self._check_sequence(source)
        self._check_sequence(target)
        self._books.check_copy(source, target, start, stop)
        if start == stop:
            return
        self._need_whole(source, start, stop)
        self._changed(target)
        llama_cpp.llama_memory_seq_cp(self._native.memory, source, target, start, stop)
        self._books.copy(source, target, start, stop)

    def remove(self, sequence: SequenceId, start: int = 0, stop: int | None = None) -> None:
        self._check_sequence(sequence)
        self._books.check_range(sequence, start, stop)
        self._need_whole(sequence, start, stop)
        self._changed(sequence)
        if not llama_cpp.llama_memory_seq_rm(self._native.memory, sequence, start, -1 if stop is None else stop):
            raise EngineStateError(f"llama.cpp could not take positions out of sequence {sequence}: {recent_errors()}")
        self._books.remove(sequence, start, stop)

    def last_position(self, sequence: SequenceId) -> int | None:
        self._check_sequence(sequence)
        return self._books.last_position(sequence)

    def num_tokens(self, sequence: SequenceId) -> int:
        self._check_sequence(sequence, needs_cells=False)
        return self._books.num_tokens(sequence)

    def read(self, sequence: SequenceId, start: int = 0, stop: int | None = None) -> tuple[I32Array, KVRows]:
        self._check_sequence(sequence)
        self._books.check_range(sequence, start, stop)
        self._need_movable()
        end = stop if stop is not None else (self._books.last_position(sequence) or 0) + 1
        wanted = self._books.num_tokens_between(sequence, start, end)
        whole = wanted == self._books.num_tokens(sequence)
        if whole:
            positions, rows = self._read_native(sequence)
        else:  # there is no native way to ask for a range
            llama_cpp.llama_memory_seq_cp(self._native.memory, sequence, self._pad_sequence, start, end)
            try:
                positions, rows = self._read_native(self._pad_sequence)
            finally:
                llama_cpp.llama_memory_seq_rm(self._native.memory, self._pad_sequence, -1, -1)
        if rows.num_tokens != wanted:
            raise EngineStateError(f"{rows.num_tokens} rows came out of sequence {sequence}, the books say {wanted}")
        return positions, rows

    def write(self, sequence: SequenceId, parts: Sequence[PlacedRows], lay: RowLayer | None = None) -> None:
        self._check_sequence(sequence)
        self._need_movable()
        ordered = self._check_parts(sequence, parts)
        if not ordered:
            self.remove(sequence)
            return
        data = self._writer.assemble(ordered, sequence, lay)
        self._books.remove(sequence, 0, None)
        self._changed(sequence)
        set_state(self._native.context, sequence, data)
        for part in ordered:
            self._books.append(sequence, part.position, part.rows.num_tokens)

    def _check_parts(self, sequence: int, parts: Sequence[PlacedRows]) -> list[PlacedRows]:
        ordered = sorted((part for part in parts if part.rows.num_tokens), key=lambda part: part.position)
        end = 0
        for part in ordered:
            if part.rows.layout != self.layout:
                raise EngineStateError(
                    f"rows of the layout {part.rows.layout.canonical()!r} cannot be written where "
                    f"{self.layout.canonical()!r} is kept"
                )
            if part.position < end:
                raise EngineStateError(f"two parts hold position {part.position}: ranges must not overlap")
            end = part.position + part.rows.num_tokens
            if end > self._max_position:
                raise EngineUnsupportedError(f"position {end - 1} is beyond the {self._max_position} this model has")
        self._books.check_room(sum(p.rows.num_tokens for p in ordered), self._books.num_cells_only_in(sequence))
        return ordered

    def _read_native(self, sequence: int) -> tuple[I32Array, KVRows]:
        data = self._state_of(sequence)
        return state.rows_of(data, state.parse(data), self.layout)

    def _state_of(self, sequence: int) -> U8Array:
        """Its state's bytes, valid until the next call."""
        data = read_state(self._native.context, sequence, self._state_buffer)
        if data.size > self._state_buffer.size:
            self._state_buffer = data
        return data

    def _need_whole(self, sequence: int, start: int, stop: int | None) -> None:
        """Recurrent state is one for all tokens. llama.cpp would take a part of a range silently as nothing, or all."""
        if not self._is_recurrent:
            return
        end = MAX_POSITION + 1 if stop is None else stop
        part = self._books.num_tokens_between(sequence, start, end)
        if part not in (0, whole := self._books.num_tokens(sequence)):
            raise EngineUnsupportedError(f"{part} of {whole} tokens cannot be taken apart: {self.capabilities.why_not}")

    def _need_movable(self) -> None:
        if not self.capabilities.can_move_kv:
            raise EngineUnsupportedError(f"K/V rows of this model cannot be moved: {self.capabilities.why_not}")

    def _check_sequence(self, sequence: int, *, needs_cells: bool = True) -> None:
        if not 0 <= sequence < self._pad_sequence:
            raise EngineStateError(f"sequence {sequence} does not exist: there are 0 … {self._pad_sequence - 1}")
        if not self._native.is_open:
            raise EngineStateError("the engine was closed")
        if needs_cells and not self._native.num_cells:
            raise EngineStateError("the engine has given its cells back: resize it first")

    # --- the rest -----------------------------------------------------------------------------------------------------

    def sampler(self, params: SamplingParams) -> Sampler:
        guide = self._guides.start(params.grammar) if params.grammar else None
        return LlamaCppSampler(params, self._defaults, self.vocabulary.size, guide)

    @property
    def has_embeddings(self) -> bool:
        return can_embed(self._native)

    def embedder_bytes(self, max_tokens: int) -> int:
        self._check_sequence(0, needs_cells=False)
        return forecast_bytes(self._native, max_tokens, is_recurrent=self._is_recurrent)

    def embedder(self, max_tokens: int) -> Embedder:
        self._check_sequence(0, needs_cells=False)
        return LlamaCppEmbedder(self._native, max_tokens, is_recurrent=self._is_recurrent)

    def used_cells(self) -> int:
        return self._books.num_used_cells

    def resize(self, num_cells: int) -> None:
        self._check_sequence(0, needs_cells=False)
        if self._aside is not None:
            self._aside.close()  # its cells, too, where all are given back; what it held is gone
        try:
            self._native.resize(num_cells)
        finally:
            self.num_cells = self._native.num_cells
            self._books = CellBooks(self.num_cells, self._pad_sequence + 1)
            self._state_buffer = np.empty(0, np.uint8)

    def close(self) -> None:
        if self._aside is not None:
            self._aside.close()
        self._native.close()
        self._writer.release()
        self._state_buffer = np.empty(0, np.uint8)
