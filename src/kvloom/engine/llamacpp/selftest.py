"""Looks at a freshly loaded model: how its state bytes lie, and whether its K rows can be rotated. Once per load.

It computes a few tokens in the driver's own sequence and leaves nothing behind. What was found about the rotation is
remembered in a folder, if the caller gives one, under everything that it depends on.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import llama_cpp
import numpy as np

from kvloom.engine.base import PlacedRows, Run
from kvloom.engine.books import MAX_POSITION
from kvloom.engine.llamacpp import batch, rope, state
from kvloom.engine.llamacpp.load import GGML_TYPES, NativeModel, head_sizes, open_context
from kvloom.engine.llamacpp.log import recent_errors
from kvloom.engine.llamacpp.remember import Answers, build_id
from kvloom.engine.llamacpp.side import read_state, set_state
from kvloom.errors import EngineError, EngineStateError
from kvloom.types import (
    F32Array,
    I32Array,
    KVLayout,
    KVType,
    LayerRope,
    LayerShape,
    ModelFingerprint,
    RopePairing,
    RopeSpec,
    SequenceId,
)

__all__ = ["Findings", "examine", "is_recurrent"]

NUM_TOKENS = 24
"""Tokens computed twice for the rotation test: enough to make every head's pairs speak."""
MAX_ERROR = 0.1
"""A right rotation stays near 0.02 (other rounding at other positions), a wrong one is near 1."""
MAX_DISTANCE = 32768
"""The rotation is proved over this distance, or the trained length where that is less: small angles grow visible."""
SEED = 20240817
ANSWERS_FILE = "engine-selftest.json"


@dataclass(frozen=True)
class Findings:
    """What a loaded model turned out to be. `why_not` says what is missing where something is False."""

    can_move_kv: bool
    can_rotate: bool
    why_not: str
    layout: KVLayout
    rope: RopeSpec
    train_context: int
    max_position: int


def examine(native: NativeModel, scratch: int, fingerprint: ModelFingerprint) -> Findings:
    """Find out everything; a model that merely cannot be moved is no error. `scratch` is empty before and after."""
    settings = native.settings
    bare = KVLayout((), settings.kv_type_k, settings.kv_type_v)
    train_context = _train_context(native)
    rope_type = llama_cpp.llama_model_rope_type(native.model)
    # Learned positions come from a table: a position behind its end would abort the process.
    max_position = train_context if rope_type < 0 else MAX_POSITION
    reason = _what_forbids_moving(native, rope_type)
    layout = bare
    if not reason:
        try:
            layout = _find_layout(native, scratch)
        except EngineError as error:
            window = llama_cpp.llama_model_n_swa(native.model)
            reason = f"its state bytes are not understood ({error})"
            if window > 0:  # two caches, one after the other: the parser stops at the second
                reason = f"its sliding-window layers save only the last {window} tokens"
    if reason:
        return Findings(False, False, reason, bare, RopeSpec(()), train_context, max_position)
    answers = Answers(settings.cache_dir, ANSWERS_FILE)
    key = _answer_key(native, layout, fingerprint)
    known = _from_answer(answers.get(key), layout)
    if known is None:
        try:
            known = _find_rope(native, scratch, layout, train_context), ""
        except EngineStateError as error:
            known = RopeSpec((None,) * layout.num_layers), str(error)
        answers.put(key, _to_answer(*known))
    spec, reason = known
    return Findings(True, not reason, reason, layout, spec, train_context, max_position)


def _answer_key(native: NativeModel, layout: KVLayout, fingerprint: ModelFingerprint) -> str:
    """Everything that the rotation may depend on."""
    digest = hashlib.sha256(f"{fingerprint}:{build_id()}:{native.num_cells}:{native.settings.rope}".encode())
    digest.update(layout.canonical())
    return digest.hexdigest()


def _to_answer(spec: RopeSpec, reason: str) -> dict[str, Any]:
    kinds = list(dict.fromkeys(spec.layers))
    tables = [None if kind is None else [kind.pairing.value, kind.offset, list(kind.inv_freq)] for kind in kinds]
    return {"why_not": reason, "kinds": tables, "layers": [kinds.index(layer) for layer in spec.layers]}


def _from_answer(answer: Any, layout: KVLayout) -> tuple[RopeSpec, str] | None:
    """What `_to_answer` was given; None for anything else."""
    try:
        kinds = [
            None if kind is None else LayerRope(RopePairing(kind[0]), tuple(map(float, kind[2])), int(kind[1]))
            for kind in answer["kinds"]
        ]
        layers = tuple(kinds[index] for index in answer["layers"])
        reason = str(answer["why_not"])
    except (TypeError, KeyError, ValueError, IndexError):
        return None
    return (RopeSpec(layers), reason) if len(layers) == layout.num_layers else None


def is_recurrent(native: NativeModel) -> bool:
    """Whether some state is kept per sequence and not per token."""
    return bool(llama_cpp.llama_model_is_recurrent(native.model) or llama_cpp.llama_model_is_hybrid(native.model))


def _what_forbids_moving(native: NativeModel, rope_type: int) -> str:
    kind = native.metadata.architecture
    if is_recurrent(native):
        return f"{kind} keeps recurrent state, which is one for all tokens"
    if rope_type >= 0 and rope_type not in rope.ROPE_TYPES:
        return f"{kind} has more than one position per token (M-RoPE)"
    return ""


def _find_layout(native: NativeModel, scratch: int) -> KVLayout:
    """Compute three tokens, read them, set them again elsewhere, and see whether the same comes back."""
    settings = native.settings
    try:
        _compute(native.context, scratch, np.arange(3, dtype=np.int32), 5)
        parsed = state.parse(data := read_state(native.context, scratch, np.empty(0, np.uint8)).copy())
        layout = _layout_of(native, parsed)
        positions, rows = state.rows_of(data, parsed, layout)
        if positions.tolist() != [5, 6, 7]:
            raise EngineStateError(f"positions 5, 6, 7 came back as {positions.tolist()}")
        types = (GGML_TYPES[settings.kv_type_k], GGML_TYPES[settings.kv_type_v])
        again = state.StateWriter(layout, types).assemble([PlacedRows(rows, 9)], scratch)
        set_state(native.context, scratch, again)
        second = read_state(native.context, scratch, np.empty(0, np.uint8))
        moved, same = state.rows_of(second, state.parse(second), layout)
        if moved.tolist() != [9, 10, 11] or not np.array_equal(same.data, rows.data):
            raise EngineStateError("state bytes that were put together again came back changed")
    finally:
        llama_cpp.llama_memory_seq_rm(native.memory, scratch, -1, -1)
    return layout


def _layout_of(native: NativeModel, parsed: state.ParsedState) -> KVLayout:
    settings = native.settings
    k_dim, v_dim = head_sizes(native.model, native.metadata)
    layers: list[LayerShape] = []
    for k, v in zip(parsed.k, parsed.v, strict=True):
        found, wanted = (k.ggml_type, v.ggml_type), (GGML_TYPES[settings.kv_type_k], GGML_TYPES[settings.kv_type_v])
        if found != wanted:
            raise EngineStateError(f"K and V of ggml types {found}, asked for {wanted}")
        num_heads = _num_values(settings.kv_type_k, k.row_bytes) // k_dim
        shape = LayerShape(num_heads, k_dim, v_dim)
        sizes = (settings.kv_type_k.row_bytes(num_heads * k_dim), settings.kv_type_v.row_bytes(num_heads * v_dim))
        if num_heads < 1 or sizes != (k.row_bytes, v.row_bytes):
            raise EngineStateError(
                f"rows of {k.row_bytes} and {v.row_bytes} bytes do not fit heads of {k_dim} and {v_dim}"
            )
        layers.append(shape)
    return KVLayout(
        tuple(layers),
        settings.kv_type_k,
        settings.kv_type_v,
        hadamard_k=_is_turned(settings.kv_type_k, k_dim),
        hadamard_v=_is_turned(settings.kv_type_v, v_dim),
    )


def _is_turned(kv_type: KVType, head_dim: int) -> bool:
    """Whether llama.cpp stores such rows turned by a Walsh–Hadamard matrix; the bytes do not tell."""
    disabled = os.environ.get("LLAMA_ATTN_ROT_DISABLE", "0")
    return kv_type is not KVType.F16 and head_dim % 64 == 0 and not _c_integer(disabled)


def _c_integer(text: str) -> int:
    """C's atoi, with which llama.cpp reads its switches."""
    match = re.match(r"\s*([+-]?\d+)", text)
    return int(match.group(1)) if match else 0


def _num_values(kv_type: KVType, row_bytes: int) -> int:
    return row_bytes // 2 if kv_type is KVType.F16 else row_bytes // kv_type.row_bytes(32) * 32


def _find_rope(native: NativeModel, scratch: int, layout: KVLayout, train_context: int) -> RopeSpec:
    """Per layer the first candidate that turns the rows computed at 0 into those computed far behind."""
    far = max(1, min(train_context, MAX_DISTANCE) - 2 * NUM_TOKENS)
    before, after, tested_cells = _rows_at(native, scratch, layout, far)
    layers: list[LayerRope | None] = []
    for index, shape in enumerate(layout.layers):
        best = float("inf")
        for tried, kept in _candidates(native, shape.k_head_dim, train_context, tested_cells):
            error = rope.rotation_error(before[index], after[index], tried, far, shape)
            if error <= MAX_ERROR:
                layers.append(kept)
                break
            best = min(best, error)
        else:
            raise EngineStateError(
                f"rotating K by {far} positions misses a prefill there by {best:.0%} in layer {index}: "
                f"the positions of {native.metadata.architecture} are not understood"
            )
    return RopeSpec(tuple(layers))


def _candidates(
    native: NativeModel, head_dim: int, train_context: int, tested_cells: int
) -> Iterator[tuple[LayerRope | None, LayerRope | None]]:
    pairing = rope.ROPE_TYPES.get(llama_cpp.llama_model_rope_type(native.model))
    if pairing is None:
        yield None, None
        return
    settings = native.settings
    base = rope.RopeParameters.of(native.metadata, settings.rope, pairing, head_dim, train_context)
    of_length = (tested_cells, native.num_cells)
    yield from rope.candidates(base, native.metadata, settings.path, head_dim, of_length)


def _rows_at(
    native: NativeModel, scratch: int, layout: KVLayout, far: int
) -> tuple[list[F32Array], list[F32Array], int]:
    """Every layer's K rows (n, row) of the same tokens computed at 0 and at `far`, and the cells of that context."""
    size = llama_cpp.llama_vocab_n_tokens(native.vocabulary)
    tokens = np.random.default_rng(SEED).integers(0, size, NUM_TOKENS, dtype=np.int32)
    if layout.k_type is KVType.F16:
        context = native.context
        near_rows, far_rows = (_k_rows(context, scratch, layout, tokens, at) for at in (0, far))
        return near_rows, far_rows, native.num_cells
    # Quantizing hides small angles, and the rotation is no matter of the type: ask a small f16 context.
    plain = replace(native.settings, num_cells=1, kv_type_k=KVType.F16, kv_type_v=KVType.F16)
    context = open_context(native.model, plain, num_sequences=1)
    try:
        plain_layout = KVLayout(layout.layers, KVType.F16, KVType.F16)
        near_rows, far_rows = (_k_rows(context, 0, plain_layout, tokens, at) for at in (0, far))
        return near_rows, far_rows, llama_cpp.llama_n_ctx(context)
    finally:
        llama_cpp.llama_free(context)


def _k_rows(context: int, sequence: int, layout: KVLayout, tokens: I32Array, start: int) -> list[F32Array]:
    memory = llama_cpp.llama_get_memory(context)
    try:
        _compute(context, sequence, tokens, start)
        data = read_state(context, sequence, np.empty(0, np.uint8))
        _, rows = state.rows_of(data, state.parse(data), layout)
    finally:
        llama_cpp.llama_memory_seq_rm(memory, sequence, -1, -1)
    return [rows.k(layer).view(np.float16).astype(np.float32) for layer in range(layout.num_layers)]


def _compute(context: int, sequence: int, tokens: I32Array, start: int) -> None:
    run = Run(SequenceId(sequence), tokens.tolist(), start)
    native_batch = batch.NativeBatch(len(tokens))
    code = llama_cpp.llama_decode(context, native_batch.put([run], [batch.Piece(0, 0, len(tokens))], 0, 0))
    if code != 0:
        raise EngineStateError(f"llama.cpp could not compute {len(tokens)} tokens (code {code}): {recent_errors()}")


def _train_context(native: NativeModel) -> int:
    """The trained length; stretched by a RoPE override that says so."""
    trained: int = llama_cpp.llama_model_n_ctx_train(native.model)
    overrides = native.settings.rope
    if not overrides.freq_scale:
        return trained
    original = native.metadata.integer(".rope.scaling.original_context_length") or trained
    return max(1, round((overrides.yarn_original_context or original) / overrides.freq_scale))
