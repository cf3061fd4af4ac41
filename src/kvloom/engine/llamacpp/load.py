"""Opens a GGUF file and a native context for it, and says what they are; closes both.

It knows no sequences and no tokens: `driver` runs what is loaded here.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import llama_cpp

from kvloom.engine.llamacpp.log import install_log, recent_errors
from kvloom.errors import EngineMemoryError, EngineUnsupportedError, ModelFormatError, ModelNotFoundError
from kvloom.types import KVType

__all__ = ["LoadSettings", "Metadata", "NativeModel", "RopeOverrides", "RopeScaling"]

CELL_QUANTUM = 256
"""llama.cpp rounds the number of cells up to this."""
MAX_SEQUENCES = 255
"""LLAMA_MAX_SEQ is 256; one is the driver's own, for padding and scratch work."""
UBATCH_ROWS = 512
"""Rows of one native batch. The compute buffer grows with it; above 512 a CPU gains nothing."""
MAX_OUTPUT_ROWS = 64
"""Rows of one native batch that may give logits: the compute buffer holds vocabulary × this × 4 bytes. A batch with
more would abort the process, so `driver` cuts there."""

QUANTIZED_BLOCK = 32
"""Values that share a scale in q8_0 and q4_0."""
GGML_TYPES = {KVType.F16: 1, KVType.Q8_0: 8, KVType.Q4_0: 2}
"""ggml's type numbers, which the state bytes carry too."""


class RopeScaling(Enum):
    """How the positions are stretched beyond what the model was trained for; the value is llama.cpp's number."""

    NONE = 0
    LINEAR = 1
    YARN = 2
    LONGROPE = 3


@dataclass(frozen=True)
class RopeOverrides:
    """RoPE settings that replace the model's own; None keeps it. They are part of a model's fingerprint."""

    scaling: RopeScaling | None = None
    freq_base: float | None = None
    freq_scale: float | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_original_context: int | None = None


@dataclass(frozen=True)
class LoadSettings:
    """What to load, and how.

    `num_cells`: tokens that all sequences together may hold (rounded up to 256). `aside_cells`: those of a context of
    its own for prefills beside many cells of others (see `aside`); 0: none. `num_gpu_layers`: 0 keeps all on the
    CPU, a negative number gives all to the GPU. `num_threads` 0 takes the CPU's cores. `extra_buffers`: let ggml repack
    the weights for this CPU, where a trial shows that it does not crash (AMX does inside some virtual machines: see
    `probe`). `cache_dir`: where the answers of that trial and of the self-test are remembered; None skips the trial,
    repacks nothing and tests at every load.
    """

    path: Path
    num_cells: int = 4096
    kv_type_k: KVType = KVType.F16
    kv_type_v: KVType = KVType.F16
    max_sequences: int = 32
    aside_cells: int = 0
    num_gpu_layers: int = 0
    num_threads: int = 0
    extra_buffers: bool = True
    rope: RopeOverrides = field(default_factory=RopeOverrides)
    cache_dir: Path | None = None

    def threads(self) -> int:
        """Threads to compute with; by default one per core that this process may use."""
        if self.num_threads:
            return self.num_threads
        usable = getattr(os, "sched_getaffinity", None)
        return len(usable(0)) if usable else os.cpu_count() or 1


class Metadata:
    """The model file's scalar metadata, by key; arrays are not given out by llama.cpp."""

    def __init__(self, model: int) -> None:
        self._model = model
        self.architecture = self.text("general.architecture") or "unknown"

    def text(self, key: str) -> str | None:
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
            if length < 0:
                return None
            if length < size:
                return buffer.value.decode("utf-8", "replace")
            size = length + 1

    def number(self, key: str) -> float | None:
        """A number under `key`, or under the architecture's prefix where the key starts with a dot."""
        text = self.text(f"{self.architecture}{key}" if key.startswith(".") else key)
        try:
            return None if text is None else float(text)
        except ValueError:
            return None

    def integer(self, key: str) -> int | None:
        value = self.number(key)
        return None if value is None else int(value)


class NativeModel:
    """A loaded model and its context. Owns both native objects; `close` frees them and is idempotent."""

    def __init__(self, settings: LoadSettings) -> None:
        _check_settings(settings)
        _check_file(settings.path)
        install_log()
        llama_cpp.llama_backend_init()
        self.settings = settings
        self.memory = self.num_cells = 0
        self._context: int | None = None
        self._model: int | None = _load_model(settings)
        try:
            self.metadata = Metadata(self._model)
            _refuse_what_cannot_generate(self._model, settings.path)
            self._refuse_kv_type(settings)
            self._open(settings)
        except BaseException:
            self.close()
            raise
        self.vocabulary: int = llama_cpp.llama_model_get_vocab(self._model) or 0
        self.max_rows = min(llama_cpp.llama_n_batch(self._context), llama_cpp.llama_n_ubatch(self._context))

    def _refuse_kv_type(self, settings: LoadSettings) -> None:
        for name, kv_type in (("K", settings.kv_type_k), ("V", settings.kv_type_v)):
            if kv_type not in self.kv_types():
                sizes = head_sizes(self.model, self.metadata)
                raise EngineUnsupportedError(
                    f"{name} cannot be held as {kv_type.value}: heads of {sizes[0]} and {sizes[1]} values are no whole "
                    f"blocks of {QUANTIZED_BLOCK}; use f16"
                )

    @property
    def model(self) -> int:
        assert self._model is not None, "used after close()"
        return self._model

    @property
    def context(self) -> int:
        assert self._context is not None, "used after close()"
        return self._context

    def resize(self, num_cells: int) -> None:
        """Another context for the same weights, never two at once; 0 leaves none.

        Raises EngineMemoryError, with the old size back.
        """
        before = self.settings
        if self._context is not None:
            context, self._context = self._context, None
            llama_cpp.llama_free(context)
        self.num_cells = 0
        if not num_cells:
            return
        try:
            self._open(replace(before, num_cells=num_cells))
        except EngineMemoryError:
            self._open(before)
            raise

    def _open(self, settings: LoadSettings) -> None:
        self._context = open_context(self.model, settings)
        self.settings = settings
        self.memory = llama_cpp.llama_get_memory(self._context)
        self.num_cells = llama_cpp.llama_n_ctx(self._context)

    def kv_types(self) -> tuple[KVType, ...]:
        """What K and V may be held in: the quantized types need heads of whole blocks."""
        whole = all(size % QUANTIZED_BLOCK == 0 for size in head_sizes(self.model, self.metadata))
        return tuple(KVType) if whole else (KVType.F16,)

    @property
    def is_open(self) -> bool:
        return self._model is not None

    def close(self) -> None:
        if self._context is not None:
            context, self._context = self._context, None
            llama_cpp.llama_free(context)
        if self._model is not None:
            model, self._model = self._model, None
            llama_cpp.llama_model_free(model)


def head_sizes(model: int, metadata: Metadata) -> tuple[int, int]:
    """Values of one K head and of one V head."""
    per_head = llama_cpp.llama_model_n_embd(model) // max(1, llama_cpp.llama_model_n_head(model))
    return (
        metadata.integer(".attention.key_length") or per_head,
        metadata.integer(".attention.value_length") or per_head,
    )


def open_context(
    model: int,
    settings: LoadSettings,
    *,
    num_sequences: int | None = None,
    change: Callable[[llama_cpp.llama_context_params], None] = lambda _: None,
) -> int:
    """A native context for `settings`; the caller frees it. One more sequence than asked for: the driver's own.

    `change`: what else of the native parameters is to be different.
    """
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = -(-settings.num_cells // CELL_QUANTUM) * CELL_QUANTUM
    params.n_batch = params.n_ubatch = UBATCH_ROWS
    params.n_seq_max = num_sequences or settings.max_sequences + 1
    # It must also cover one row of every sequence: llama.cpp reserves that at once.
    params.n_outputs_max = max(MAX_OUTPUT_ROWS, params.n_seq_max)
    params.n_threads = params.n_threads_batch = settings.threads()
    params.type_k, params.type_v = GGML_TYPES[settings.kv_type_k], GGML_TYPES[settings.kv_type_v]
    params.flash_attn_type = 1  # on: without it V is stored transposed, and a quantized V is refused
    params.kv_unified = True  # sequences share cells, and a state restores into any sequence
    params.swa_full = True  # a window cache of its own size could not be cut back or shared
    params.no_perf = True
    _set_rope(params, settings.rope)
    change(params)
    recent_errors(clear=True)
    context = _native(llama_cpp.llama_init_from_model, model, params)
    if not context:
        raise EngineMemoryError(
            f"no native context of {params.n_ctx} cells ({settings.kv_type_k.value} K, {settings.kv_type_v.value} V) "
            f"could be made: {recent_errors() or 'llama.cpp gave no reason'}; ask for fewer cells or another KV type"
        )
    return int(context)


def _set_rope(params: llama_cpp.llama_context_params, rope: RopeOverrides) -> None:
    if rope.scaling is not None:
        params.rope_scaling_type = rope.scaling.value
    for name, value in (
        ("rope_freq_base", rope.freq_base),
        ("rope_freq_scale", rope.freq_scale),
        ("yarn_ext_factor", rope.yarn_ext_factor),
        ("yarn_attn_factor", rope.yarn_attn_factor),
        ("yarn_beta_fast", rope.yarn_beta_fast),
        ("yarn_beta_slow", rope.yarn_beta_slow),
        ("yarn_orig_ctx", rope.yarn_original_context),
    ):
        if value is not None:
            setattr(params, name, value)


def _load_model(settings: LoadSettings) -> int:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = settings.num_gpu_layers
    params.use_extra_bufts = settings.extra_buffers
    recent_errors(clear=True)
    model = _native(llama_cpp.llama_model_load_from_file, os.fsencode(settings.path), params)
    if not model:
        raise ModelFormatError(
            f"{settings.path} ({settings.path.stat().st_size:,} bytes) cannot be loaded: "
            f"{recent_errors() or 'llama.cpp gave no reason'}; fetch it again if it is truncated"
        )
    return int(model)


def _native(call: Callable[..., int | None], *args: object) -> int | None:
    """A native constructor's pointer, None where it failed; the binding turns a null pointer into None or 0."""
    return call(*args) or None


def _refuse_what_cannot_generate(model: int, path: Path) -> None:
    metadata = Metadata(model)
    kind = metadata.architecture
    if llama_cpp.llama_model_has_encoder(model) or not llama_cpp.llama_model_has_decoder(model):
        raise EngineUnsupportedError(f"{path} is an encoder model ({kind}): it cannot continue a text")
    if llama_cpp.llama_model_is_diffusion(model):
        raise EngineUnsupportedError(f"{path} is a diffusion model ({kind}): it does not generate token by token")
    if metadata.text(f"{kind}.attention.causal") == "false":
        raise EngineUnsupportedError(f"{path} is an embedding model ({kind}): it cannot continue a text")


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"no model file at {path}") from error
    except OSError as error:
        raise ModelNotFoundError(f"the model file {path} cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelFormatError(f"{path} is not a GGUF file: it starts with {magic!r} instead of b'GGUF'")


def _check_settings(settings: LoadSettings) -> None:
    if not 1 <= settings.max_sequences <= MAX_SEQUENCES:
        raise EngineUnsupportedError(f"{settings.max_sequences} sequences: 1 … {MAX_SEQUENCES} are possible")
    if settings.num_cells < 1:
        raise EngineUnsupportedError(f"a context of {settings.num_cells} cells: at least 1 is needed")
