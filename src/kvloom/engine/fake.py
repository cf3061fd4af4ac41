"""A deterministic engine of pure arithmetic, for tests of plans, tiers and sessions in milliseconds. No model, no file.

Its "KV" behaves like that of a transformer with RoPE. A token's rows hold small whole numbers: those of layer 0 come
from the token, those of layer 1 and the logits from everything that the token attends to, by relative distance. K rows
are turned with the position. So rows rotated to a place equal rows computed there, and a wrong, missing, extra,
misplaced or wrongly rotated cell changes every logit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvloom.engine.adjust import Adjuster, Penalties
from kvloom.engine.base import Capabilities, Engine, Logits, PlacedRows, RowLayer, Run, Sampler, Vocabulary
from kvloom.engine.books import MAX_POSITION, CellBooks
from kvloom.engine.grammar import GrammarGuide, GrammarGuides
from kvloom.errors import EngineMemoryError, EngineStateError, EngineUnsupportedError
from kvloom.types import (
    F32Array,
    F64Array,
    I32Array,
    KVLayout,
    KVRows,
    KVType,
    LayerRope,
    LayerShape,
    ModelFingerprint,
    RopePairing,
    RopeSpec,
    SamplingParams,
    SequenceId,
    U8Array,
)

__all__ = ["FAKE_TEMPLATE", "FakeEngine", "FakeVocabulary"]

FAKE_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

END_OF_TEXT, IM_START, IM_END = 256, 257, 258
SPECIAL = {b"<|endoftext|>": END_OF_TEXT, b"<|im_start|>": IM_START, b"<|im_end|>": IM_END}
VOCABULARY_SIZE = 256 + len(SPECIAL)

LAYERS, HEADS, HEAD_DIM = 2, 2, 8
ROW_VALUES = HEADS * HEAD_DIM
LARGEST_VALUE = 31
"""Whole numbers up to this survive a rotation in f16: its error stays below 0.03."""
INV_FREQ = (1.0, 0.25, 0.03125, 0.001)
LAYOUT = KVLayout((LayerShape(HEADS, HEAD_DIM, HEAD_DIM),) * LAYERS, KVType.F16, KVType.F16)
ROPE = RopeSpec((LayerRope(RopePairing.NEOX, INV_FREQ),) * LAYERS)
REPLY_LENGTH = 24
"""One token in so many ends a reply."""

U64Array = npt.NDArray[np.uint64]
_STEP = np.uint64(0x9E3779B97F4A7C15)


class FakeVocabulary(Vocabulary):
    """One token per byte, and ChatML's special tokens."""

    size = VOCABULARY_SIZE
    is_spm = False
    bos = None
    bos_text = ""
    eos_text = "<|im_end|>"

    def __init__(self, template: str | None = FAKE_TEMPLATE) -> None:
        self._template = template

    @property
    def chat_template(self) -> str | None:
        return self._template

    def is_end(self, token: int) -> bool:
        return token in (END_OF_TEXT, IM_END)

    def is_control(self, token: int) -> bool:
        return token in SPECIAL.values()

    def tokenize(self, text: bytes, *, parse_special: bool) -> list[int]:
        if not parse_special:
            return list(text)
        tokens: list[int] = []
        for part in re.split(b"(" + b"|".join(map(re.escape, SPECIAL)) + b")", text):
            tokens += [SPECIAL[part]] if part in SPECIAL else list(part)
        return tokens

    def token_bytes(self, token: int, *, special: bool) -> bytes:
        if 0 <= token < 256:
            return bytes([token])
        names = {number: name for name, number in SPECIAL.items()}
        if token not in names:
            raise EngineUnsupportedError(f"token {token} is not in the vocabulary of {VOCABULARY_SIZE} tokens")
        return names[token] if special else b""


class FakeSampler(Sampler):
    """Greedy at temperature 0, else a draw from the softmax with its own generator. No top-k, top-p or min-p."""

    def __init__(self, params: SamplingParams, guide: GrammarGuide | None = None) -> None:
        self._temperature = 0.8 if params.temperature is None else params.temperature
        self._random = np.random.default_rng(params.seed)
        penalties = Penalties(
            repeat=params.repeat_penalty or 1.0,
            presence=params.presence_penalty or 0.0,
            frequency=params.frequency_penalty or 0.0,
        )
        self._adjuster = Adjuster(VOCABULARY_SIZE, params.logit_bias, penalties, guide)

    def sample(self, logits: F32Array) -> int:
        token = self._choose(self._adjuster.applied(logits))
        self._adjuster.accept(token)
        return token

    def _choose(self, logits: F32Array) -> int:
        if self._temperature <= 0:
            return int(logits.argmax())
        weights = np.exp((logits - logits.max()).astype(np.float64) / self._temperature)
        return int(self._random.choice(len(weights), p=weights / weights.sum()))

    def close(self) -> None:
        """Nothing native is held."""


class FakeEngine(Engine):
    """`can_move_kv`, `can_rotate`: refuse what a lesser engine would. `seed` stands for the weights."""

    def __init__(
        self,
        num_cells: int = 4096,
        max_sequences: int = 32,
        *,
        fingerprint: ModelFingerprint | None = None,
        can_move_kv: bool = True,
        can_rotate: bool = True,
        seed: int = 0,
    ) -> None:
        why_not = "" if can_move_kv and can_rotate else "this fake engine was asked to lack it"
        self.capabilities = Capabilities(can_move_kv, can_rotate, (KVType.F16,), max_sequences, 64, why_not)
        self.fingerprint = fingerprint or ModelFingerprint(f"{seed:064x}")
        self.layout = LAYOUT
        self.rope = ROPE
        self.vocabulary: FakeVocabulary = FakeVocabulary()
        self._guides = GrammarGuides(self.vocabulary)
        self.num_cells = num_cells
        self.train_context = 32768
        self.uses_accelerator = False
        self.sink_token = IM_START
        self.num_decoded_tokens = 0
        """Tokens computed so far: what a test of reuse wants to know."""
        self.max_cells = 1 << 20
        """More cannot be had: what a test of a failing resize sets."""
        self._salt = _mix(np.array([seed], np.uint64))[0]
        self._reset(num_cells)
        self._distances = _mix(np.arange(1024, dtype=np.uint64)) | np.uint64(1)
        self._is_open = True

    # --- computing ----------------------------------------------------------------------------------------------------

    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        self._check_runs(runs)
        return [self._decode_run(run) for run in runs]

    def _decode_run(self, run: Run) -> F32Array | None:
        held = self._cells[run.sequence]
        old = sorted(held)
        count, num_old = len(run.tokens), len(old)
        positions = np.concatenate([np.array(old, np.int64), np.arange(run.start, run.start + count)])
        contents = np.empty(num_old + count, np.uint64)
        contents[:num_old] = self._content[[held[p] for p in old]]
        self._grow_distances(int(positions[-1] - positions[0]) + 1)
        values = np.empty((count, 2 * LAYERS * ROW_VALUES), np.float64)
        states = np.empty(count, np.uint64)
        for i, token in enumerate(run.tokens):
            at = num_old + i
            attended = (contents[:at] * self._distances[positions[at] - positions[:at]]).sum(dtype=np.uint64)
            by_token = _mix(np.array([token], np.uint64) ^ self._salt)[0]
            states[i] = _mix(np.array([by_token ^ attended]))[0]
            values[i] = np.concatenate([_whole_numbers(by_token), _whole_numbers(states[i])])
            contents[at] = _content_of(values[i : i + 1])[0]
        cells = [self._take_cell() for _ in range(count)]
        self._content[cells] = contents[num_old:]
        self._rows[cells] = _to_rows(values, positions[num_old:])
        held.update(zip(range(run.start, run.start + count), cells, strict=True))
        self._books.append(run.sequence, run.start, count)
        self.num_decoded_tokens += count
        if run.logits is Logits.NONE:
            return None
        return self._logits(states) if run.logits is Logits.ALL else self._logits(states[-1:])[0]

    def _logits(self, states: U64Array) -> F32Array:
        """(n, vocab): letters and spaces are likely, a special token only when it is time to end."""
        noise = _mix(states[:, None] + np.arange(1, VOCABULARY_SIZE + 1, dtype=np.uint64) * _STEP)
        logits = (noise >> np.uint64(40)).astype(np.float32) / np.float32(2**22) - 2.0
        logits[:, list(b" abcdefghijklmnopqrstuvwxyz.")] += 6.0
        logits[:, 256:] -= 8.0
        logits[:, IM_END] += np.where(states % np.uint64(REPLY_LENGTH) == 0, 24.0, 0.0).astype(np.float32)
        return logits

    def _check_runs(self, runs: Sequence[Run]) -> None:
        self._check_open()
        if len({run.sequence for run in runs}) != len(runs):
            raise EngineStateError("a sequence has two runs in one call: join them")
        for run in runs:
            self._books.check_append(run.sequence, run.start, len(run.tokens))
            if wrong := [token for token in run.tokens if not 0 <= token < VOCABULARY_SIZE]:
                raise EngineStateError(f"token {wrong[0]} is not among the {VOCABULARY_SIZE} known")
        self._books.check_room(sum(len(run.tokens) for run in runs))

    def _grow_distances(self, size: int) -> None:
        if size > len(self._distances):
            self._distances = _mix(np.arange(2 * size, dtype=np.uint64)) | np.uint64(1)

    # --- moving -------------------------------------------------------------------------------------------------------

    def copy(self, source: SequenceId, target: SequenceId, start: int, stop: int) -> None:
        self._check_open()
        self._books.check_copy(source, target, start, stop)
        self._books.copy(source, target, start, stop)
        for position, cell in self._cells[source].items():
            if start <= position < stop:
                self._cells[target][position] = cell
                self._holders[cell] += 1

    def remove(self, sequence: SequenceId, start: int = 0, stop: int | None = None) -> None:
        self._check_open()
        self._books.check_range(sequence, start, stop)
        end = MAX_POSITION + 1 if stop is None else stop
        self._books.remove(sequence, start, stop)
        for position in [p for p in self._cells[sequence] if start <= p < end]:
            cell = self._cells[sequence].pop(position)
            self._holders[cell] -= 1
            if self._holders[cell] == 0:
                self._free.append(cell)

    def last_position(self, sequence: SequenceId) -> int | None:
        self._check_open()
        return self._books.last_position(sequence)

    def num_tokens(self, sequence: SequenceId) -> int:
        self._check_open()
        return self._books.num_tokens(sequence)

    def read(self, sequence: SequenceId, start: int = 0, stop: int | None = None) -> tuple[I32Array, KVRows]:
        self._check_movable()
        self._books.check_range(sequence, start, stop)
        end = MAX_POSITION + 1 if stop is None else stop
        held = self._cells[sequence]
        positions = sorted(p for p in held if start <= p < end)
        rows = self._rows[[held[p] for p in positions]] if positions else np.empty((0, LAYOUT.token_bytes), np.uint8)
        data = np.concatenate([part.reshape(-1) for part in np.split(rows, _SPLITS, axis=1)])
        first = positions[0] if positions else 0
        return np.array(positions, np.int32), KVRows(LAYOUT, len(positions), first, data)

    def write(self, sequence: SequenceId, parts: Sequence[PlacedRows], lay: RowLayer | None = None) -> None:
        self._check_movable()
        ordered = self._check_parts(sequence, parts)
        count = sum(part.rows.num_tokens for part in ordered)
        views = [np.empty((count, size), np.uint8) for size in _ROW_BYTES]
        (lay or _copy_rows)([(p.rows, p.position) for p in ordered], views[:LAYERS], views[LAYERS:])
        self.remove(sequence)
        if not count:
            return
        positions = np.concatenate([np.arange(p.position, p.position + p.rows.num_tokens) for p in ordered])
        rows = np.concatenate(views, axis=1)
        cells = [self._take_cell() for _ in range(count)]
        self._rows[cells] = rows
        self._content[cells] = _content_of(_from_rows(rows, positions))
        self._cells[sequence] = dict(zip(positions.tolist(), cells, strict=True))
        for part in ordered:
            self._books.append(sequence, part.position, part.rows.num_tokens)

    def _check_parts(self, sequence: int, parts: Sequence[PlacedRows]) -> list[PlacedRows]:
        ordered = sorted((part for part in parts if part.rows.num_tokens), key=lambda part: part.position)
        end = 0
        for part in ordered:
            if part.rows.layout != LAYOUT:
                raise EngineStateError(f"rows of the layout {part.rows.layout.canonical()!r} cannot be written here")
            if part.position < end:
                raise EngineStateError(f"two parts hold position {part.position}: ranges must not overlap")
            end = part.position + part.rows.num_tokens
        self._books.check_room(sum(p.rows.num_tokens for p in ordered), self._books.num_cells_only_in(sequence))
        return ordered

    def _check_movable(self) -> None:
        self._check_open()
        if not self.capabilities.can_move_kv:
            raise EngineUnsupportedError(f"K/V rows of this model cannot be moved: {self.capabilities.why_not}")

    def _check_open(self) -> None:
        if not self._is_open:
            raise EngineStateError("the engine was closed")

    def _take_cell(self) -> int:
        cell = self._free.pop()
        self._holders[cell] = 1
        return cell

    # --- the rest -----------------------------------------------------------------------------------------------------

    def sampler(self, params: SamplingParams) -> Sampler:
        return FakeSampler(params, self._guides.start(params.grammar) if params.grammar else None)

    def used_cells(self) -> int:
        return self._books.num_used_cells

    def resize(self, num_cells: int) -> None:
        self._check_open()
        if num_cells > self.max_cells:
            self._reset(self.num_cells)
            raise EngineMemoryError(
                f"{num_cells} cells cannot be had, {self.max_cells} can; {self.num_cells} are back as before"
            )
        self._reset(num_cells)

    def _reset(self, num_cells: int) -> None:
        max_sequences = self.capabilities.max_sequences
        self.num_cells = num_cells
        self._books = CellBooks(num_cells, max_sequences)
        self._free = list(range(num_cells - 1, -1, -1))
        self._holders = np.zeros(num_cells, np.int32)
        self._rows = np.zeros((num_cells, LAYOUT.token_bytes), np.uint8)
        self._content = np.zeros(num_cells, np.uint64)
        self._cells: list[dict[int, int]] = [{} for _ in range(max_sequences)]

    def close(self) -> None:
        self._is_open = False


_ROW_BYTES = [LAYOUT.k_row_bytes(i) for i in range(LAYERS)] + [LAYOUT.v_row_bytes(i) for i in range(LAYERS)]
_SPLITS = np.cumsum(_ROW_BYTES)[:-1].tolist()
_WEIGHTS: U64Array


def _mix(values: U64Array) -> U64Array:
    """splitmix64's output function, elementwise (Steele, Lea, Flood 2014)."""
    x = values + _STEP
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_WEIGHTS = _mix(np.arange(1, 2 * LAYERS * ROW_VALUES + 1, dtype=np.uint64)) | np.uint64(1)
_COUNTERS = np.arange(1, 2 * ROW_VALUES + 1, dtype=np.uint64) * _STEP


def _whole_numbers(state: np.uint64) -> F64Array:
    """A layer's K and V values (2 · ROW_VALUES,): from -31 to 31 without 0."""
    drawn = (_mix(state + _COUNTERS) % np.uint64(2 * LARGEST_VALUE)).astype(np.float64) - LARGEST_VALUE
    return np.where(drawn >= 0, drawn + 1, drawn)


def _content_of(values: F64Array) -> U64Array:
    """One number per token (n,) out of its values (n, 4 · ROW_VALUES), in the order K0 V0 K1 V1."""
    whole = np.rint(np.clip(values, -1e6, 1e6)).astype(np.int64).astype(np.uint64)
    return _mix((whole * _WEIGHTS).sum(axis=1, dtype=np.uint64))


def _to_rows(values: F64Array, positions: npt.NDArray[np.int64]) -> U8Array:
    """Rows (n, token_bytes) in the order K0 K1 V0 V1, K turned to the positions."""
    layers = values.reshape(len(values), LAYERS, 2, ROW_VALUES)
    k = _turned(layers[:, :, 0], positions)
    whole = np.concatenate([k.reshape(len(values), -1), layers[:, :, 1].reshape(len(values), -1)], axis=1)
    return whole.astype(np.float16).view(np.uint8)


def _from_rows(rows: U8Array, positions: npt.NDArray[np.int64]) -> F64Array:
    """What `_to_rows` was given, up to rounding, if the rows are turned to these positions."""
    whole = np.ascontiguousarray(rows).view(np.float16).astype(np.float64).reshape(len(rows), 2, LAYERS, ROW_VALUES)
    k = _turned(whole[:, 0], -positions)
    return np.stack([k, whole[:, 1]], axis=2).reshape(len(rows), -1)


def _turned(k: F64Array, positions: npt.NDArray[np.int64]) -> F64Array:
    """K values (n, layers, ROW_VALUES) turned by the positions (n,), NEOX pairs."""
    heads = k.reshape(len(k), LAYERS, HEADS, 2, HEAD_DIM // 2)
    angles = (positions[:, None] * np.array(INV_FREQ))[:, None, None, :]
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = heads[..., 0, :], heads[..., 1, :]
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-2).reshape(k.shape)


def _copy_rows(parts: Sequence[tuple[KVRows, int]], k_views: Sequence[U8Array], v_views: Sequence[U8Array]) -> None:
    start = 0
    for rows, _ in parts:
        stop = start + rows.num_tokens
        for layer in range(LAYERS):
            k_views[layer][start:stop] = rows.k(layer)
            v_views[layer][start:stop] = rows.v(layer)
        start = stop
