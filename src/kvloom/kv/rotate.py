"""Turns pristine K rows by a distance (RoPE) and lays K and V rows into a state. Knows no files and no engine.

Turning one head is a product with a small matrix that is the same for every token: the RoPE pairs of whatever kind,
identity where a head does not turn, with the device's Walsh–Hadamard turn undone before and redone after. cos and sin
are taken in float64, the product in float32. Always turn the pristine entry, once: turns do not add up.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kvloom.kv import hadamard
from kvloom.kv.quantize import NumpyRowCaster, RowCaster
from kvloom.types import F32Array, F64Array, KVLayout, KVRows, LayerRope, RopePairing, RopeSpec, U8Array

BLOCK_VALUES = 65536
"""Values turned at a time: two float32 scratch blocks of 256 KiB stay in a core's second-level cache."""
GEMM_MULTIPLIES = 262144
"""Most multiplications given to BLAS in one product. OpenBLAS starts its own threads above this, which then spin
against ours and the engine's (measured on two busy cores: 1.1 s instead of 0.03 s)."""
MAX_THREADS = 4
"""Turning is bound by memory: more threads than this gain nothing."""
INLINE_BYTES = 1 << 20
"""Work below this many bytes is done on the calling thread: starting others costs more."""


@dataclass(frozen=True)
class _Turn:
    """One run of K rows of one layer: decode, multiply by `matrix`, encode."""

    layer: int
    source: U8Array
    target: U8Array
    matrix: F32Array


@dataclass(frozen=True)
class _Copy:
    source: U8Array
    target: U8Array


class Rotator:
    """Turns and lays rows of one layout under one RoPE. Thread-safe; `close` ends its threads.

    `caster` does the casting; without one, numpy does (about 3× slower in all for f16). `num_threads` counts the
    calling thread.
    """

    def __init__(
        self, layout: KVLayout, rope: RopeSpec, caster: RowCaster | None = None, num_threads: int | None = None
    ) -> None:
        if len(rope.layers) != layout.num_layers:
            raise ValueError(f"RoPE of {len(rope.layers)} layers does not fit a layout of {layout.num_layers} layers")
        for shape, layer_rope in zip(layout.layers, rope.layers, strict=True):
            if layer_rope is not None and layer_rope.offset + 2 * len(layer_rope.inv_freq) > shape.k_head_dim:
                raise ValueError(f"RoPE turns more than the {shape.k_head_dim} values of a head: {layer_rope.offset=}")
        self.layout = layout
        self.rope = rope
        self._caster: RowCaster = caster or NumpyRowCaster()
        self._num_threads = num_threads or min(MAX_THREADS, _num_cores())
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()
        self._scratch = threading.local()
        # Offsets are computed once: KVRows.k(layer) sums over the layers at every call.
        self._k_row_bytes = [layout.k_row_bytes(i) for i in range(layout.num_layers)]
        self._v_row_bytes = [layout.v_row_bytes(i) for i in range(layout.num_layers)]
        kinds: dict[tuple[LayerRope | None, int], int] = {}
        keys = zip(rope.layers, (shape.k_head_dim for shape in layout.layers), strict=True)
        self._kind_of_layer = [kinds.setdefault(key, len(kinds)) for key in keys]
        self._kinds = list(kinds)

    def rotated(self, rows: KVRows, distance: int) -> KVRows:
        """`rows` moved by `distance` positions. Distance 0 gives back `rows` itself."""
        if distance == 0:
            return rows
        data = np.empty_like(rows.data)
        moved = KVRows(rows.layout, rows.num_tokens, rows.first_position + distance, data)
        layers = range(self.layout.num_layers)
        self.lay([(rows, moved.first_position)], [moved.k(i) for i in layers], [moved.v(i) for i in layers])
        return moved

    def lay(self, parts: Sequence[tuple[KVRows, int]], k_out: Sequence[U8Array], v_out: Sequence[U8Array]) -> None:
        """Write every part, turned to its wanted first position, one behind the other.

        `k_out[layer]` is a contiguous (all tokens, k_row_bytes) uint8 view, `v_out[layer]` likewise; they may lie
        anywhere in one large blob, at any alignment. Parts that already are at their position are copied as they are.
        Blocks until all is written; after an exception the contents of the views are undefined.
        """
        if any(rows.layout is not self.layout and rows.layout != self.layout for rows, _ in parts):
            raise ValueError("rows of another layout than the rotator's")
        num_tokens = sum(rows.num_tokens for rows, _ in parts)
        self._check_targets(num_tokens, k_out, v_out)
        work: deque[_Turn | _Copy] = deque()
        start = 0
        for rows, position in parts:
            self._plan_part(rows, position - rows.first_position, start, (k_out, v_out), work)
            start += rows.num_tokens
        self._do(work, num_tokens * self.layout.token_bytes)

    def close(self) -> None:
        """End the threads. Idempotent; a later call starts new ones."""
        with self._pool_lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _check_targets(self, num_tokens: int, k_out: Sequence[U8Array], v_out: Sequence[U8Array]) -> None:
        for name, views, row_bytes in (("K", k_out, self._k_row_bytes), ("V", v_out, self._v_row_bytes)):
            if len(views) != len(row_bytes):
                raise ValueError(f"{len(views)} {name} targets for {len(row_bytes)} layers")
            for layer, view in enumerate(views):
                if view.shape != (num_tokens, row_bytes[layer]) or view.dtype != np.uint8:
                    want = (num_tokens, row_bytes[layer])
                    raise ValueError(f"{name} target of layer {layer} is {view.dtype}{view.shape}, needed uint8{want}")
                if not view.flags.c_contiguous or not view.flags.writeable:
                    raise ValueError(f"{name} target of layer {layer} is not contiguous and writable")

    def _plan_part(
        self,
        rows: KVRows,
        distance: int,
        start: int,
        outs: tuple[Sequence[U8Array], Sequence[U8Array]],
        work: deque[_Turn | _Copy],
    ) -> None:
        matrices = [self._matrix(kind, distance) for kind in range(len(self._kinds))] if distance else []
        n, at = rows.num_tokens, 0
        for layer, row_bytes in enumerate(self._k_row_bytes):
            source = rows.data[at : at + n * row_bytes]
            target = outs[0][layer][start : start + n].reshape(-1)
            at += n * row_bytes
            matrix = matrices[self._kind_of_layer[layer]] if distance else None
            if matrix is None:
                work.append(_Copy(source, target))
                continue
            shape = self.layout.layers[layer]
            step = max(1, BLOCK_VALUES // (shape.num_heads * shape.k_head_dim)) * row_bytes
            for i in range(0, n * row_bytes, step):
                work.append(_Turn(layer, source[i : i + step], target[i : i + step], matrix))
        for layer, row_bytes in enumerate(self._v_row_bytes):
            work.append(_Copy(rows.data[at : at + n * row_bytes], outs[1][layer][start : start + n].reshape(-1)))
            at += n * row_bytes

    def _matrix(self, kind: int, distance: int) -> F32Array | None:
        layer_rope, head_dim = self._kinds[kind]
        if layer_rope is None:
            return None
        turn = rope_matrix(layer_rope, head_dim, distance)
        if self.layout.hadamard_k:
            block = hadamard.k_block(head_dim)
            turn = hadamard.turn(hadamard.turn(turn, block).T.copy(), block).T
        return turn.astype(np.float32)

    def _do(self, work: deque[_Turn | _Copy], num_bytes: int) -> None:
        num_helpers = 0 if num_bytes < INLINE_BYTES else self._num_threads - 1
        futures = [self._helpers().submit(self._drain, work) for _ in range(num_helpers)]
        try:
            self._drain(work)
        finally:
            work.clear()  # after a failure the helpers stop at their next item
            for future in futures:
                future.exception()  # the targets belong to the caller again only when nobody writes any more
        for future in futures:
            future.result()

    def _helpers(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._num_threads - 1, thread_name_prefix="kvloom-rotate")
            return self._pool

    def _drain(self, work: deque[_Turn | _Copy]) -> None:
        while True:
            try:
                item = work.popleft()  # atomic: every thread takes its next item here
            except IndexError:
                return
            if isinstance(item, _Copy):
                np.copyto(item.target, item.source)
            else:
                self._turn(item)

    def _turn(self, turn: _Turn) -> None:
        shape = self.layout.layers[turn.layer]
        row_values = shape.num_heads * shape.k_head_dim
        num_values = turn.source.size // self._k_row_bytes[turn.layer] * row_values
        values, turned = self._buffers(num_values)
        self._caster.to_f32(self.layout.k_type, turn.source, values)
        multiply_heads(values, turn.matrix, turned)
        self._caster.from_f32(self.layout.k_type, turned, turn.target)

    def _buffers(self, num_values: int) -> tuple[F32Array, F32Array]:
        held: tuple[F32Array, F32Array] | None = getattr(self._scratch, "buffers", None)
        if held is None or held[0].size < num_values:
            size = max(num_values, BLOCK_VALUES)
            held = (np.empty(size, np.float32), np.empty(size, np.float32))
            self._scratch.buffers = held
        return held[0][:num_values], held[1][:num_values]


def _num_cores() -> int:
    """Cores this process may run on (where the system can say so, else all)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rope_matrix(rope: LayerRope, head_dim: int, distance: int) -> F64Array:
    """(head_dim, head_dim) float64 matrix M with `row @ M` = the head moved by `distance` positions."""
    angles = np.asarray(rope.inv_freq, np.float64) * distance
    cos, sin = np.cos(angles), np.sin(angles)
    pairs = np.arange(len(angles))
    if rope.pairing is RopePairing.NORM:
        first, second = rope.offset + 2 * pairs, rope.offset + 2 * pairs + 1
    else:
        first, second = rope.offset + pairs, rope.offset + pairs + len(angles)
    result = np.eye(head_dim, dtype=np.float64)
    result[first, first] = result[second, second] = cos
    result[second, first], result[first, second] = -sin, sin
    return result


def multiply_heads(values: F32Array, matrix: F32Array, out: F32Array) -> None:
    """`out` = every head (a run of len(matrix) values) times `matrix`, in products too small for BLAS's own threads."""
    dim = len(matrix)
    heads, results = values.reshape(-1, dim), out.reshape(-1, dim)
    step = max(1, GEMM_MULTIPLIES // (dim * dim))
    whole = len(heads) // step * step
    if whole:
        stacked = (-1, step, dim)
        np.matmul(heads[:whole].reshape(stacked), matrix, out=results[:whole].reshape(stacked))
    if whole < len(heads):
        np.matmul(heads[whole:], matrix, out=results[whole:])


def rotated(rows: KVRows, rope: RopeSpec, distance: int) -> KVRows:
    """`rows` moved by `distance` positions, on the calling thread, in numpy. Distance 0 gives back `rows` itself."""
    return Rotator(rows.layout, rope, num_threads=1).rotated(rows, distance)
