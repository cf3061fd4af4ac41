"""The memory forecast against llama.cpp's own figures, with the parameters that our driver opens a model with.

llama.cpp plans a model without allocating it (`no_alloc`); what it plans is what it takes, which is checked with real
loads. One child process plans them all: llama.cpp's log can be taken over once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvloom.config import paths
from kvloom.errors import ModelNotFoundError
from kvloom.model.footprint import CacheSpec, Footprint, footprint
from kvloom.model.header import read_header
from kvloom.model.registry import find_model
from kvloom.types import KVType
from tests.hollow_gguf import HollowModel, write_hollow
from tests.tiny_gguf import TinyModel, write_tiny

MIB = 1024**2
ALLOWED_BYTES = 16 * MIB
ROUNDING_BYTES = 0.02 * MIB
"""The log gives two digits of a MiB; windowed models have two caches."""

PLAN = """
import json, logging, re, sys
from pathlib import Path
lines = []
class Keep(logging.Handler):
    def emit(self, record): lines.append(record.getMessage())
logger = logging.getLogger("kvloom.engine.llamacpp.native")
logger.addHandler(Keep())
logger.setLevel(logging.DEBUG)
import llama_cpp
from kvloom.engine.llamacpp.load import LoadSettings, open_context
from kvloom.engine.llamacpp.log import install_log
from kvloom.types import KVType
install_log()
llama_cpp.llama_backend_init()
create = llama_cpp.llama_init_from_model
def found(pattern):
    return sum(float(match[1]) for line in lines for match in [re.search(pattern, line)] if match) * 1024**2
def plan(path, cells, k_type, v_type, sequences, full_window, is_planned):
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts, params.no_alloc = 0, False, is_planned
    if is_planned:
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    def with_window(model, params):
        params.swa_full = full_window
        return create(model, params)
    llama_cpp.llama_init_from_model = with_window
    lines.clear()
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    assert model, lines[-5:]
    size = llama_cpp.llama_model_size(model)
    settings = LoadSettings(Path(path), cells, KVType(k_type), KVType(v_type), sequences - 1)
    context = open_context(model, settings)
    sizes = {
        "weights": size if is_planned else found(r"model buffer size =\\s*([\\d.]+) MiB"),
        "kv": found(r"llama_kv_cache.*: size =\\s*([\\d.]+) MiB"),
        "compute": found(r"compute buffer size =\\s*([\\d.]+) MiB"),
        "output": found(r"output buffer size =\\s*([\\d.]+) MiB"),
    }
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return sizes
for line in sys.stdin:
    print(json.dumps(plan(*json.loads(line))), flush=True)
"""


class Engine:
    """The child that plans."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", PLAN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "KVLOOM_THREADS": "1"},
        )

    def sizes(self, path: Path, spec: CacheSpec, *, is_planned: bool = True) -> dict[str, float]:
        """Bytes of weights, KV, compute and output buffers."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        types = (spec.k_type.value, spec.v_type.value)
        asked = [str(path), spec.num_cells, *types, spec.num_sequences, spec.full_window, is_planned]
        self._child.stdin.write(json.dumps(asked) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, f"llama.cpp died planning {path.name}"
        sizes: dict[str, float] = json.loads(answer)
        return sizes

    def close(self) -> None:
        self._child.communicate()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def check(forecast: Footprint, real: dict[str, float]) -> None:
    assert forecast.kv_bytes == pytest.approx(real["kv"], abs=ROUNDING_BYTES)
    assert forecast.weights_bytes == pytest.approx(real["weights"], abs=MIB)
    assert forecast.output_bytes == pytest.approx(real["output"], abs=MIB)
    assert forecast.compute_bytes == pytest.approx(real["compute"], abs=ALLOWED_BYTES)
    assert abs(forecast.total_bytes - sum(real.values())) < ALLOWED_BYTES


F16, Q8, Q4 = KVType.F16, KVType.Q8_0, KVType.Q4_0


@dataclass(frozen=True)
class Tiny:
    """A tiny file with real weights, and the caches that are tried on it."""

    model: TinyModel
    specs: tuple[CacheSpec, ...] = field(default=(CacheSpec(num_cells=2048), CacheSpec(num_cells=65536)))


WIDE = TinyModel(num_heads=8, num_kv_heads=2, head_dim=64)
TINY = {
    "grouped": Tiny(TinyModel()),
    "one-kv-head": Tiny(TinyModel(num_heads=8, num_kv_heads=1)),
    "all-heads": Tiny(TinyModel(num_kv_heads=4)),
    "biased": Tiny(TinyModel(arch="qwen2")),
    "partly-rotated": Tiny(TinyModel(arch="phi2", num_rotated=8)),
    "windowed": Tiny(
        TinyModel(arch="gemma3", num_layers=6, sliding_window=64),
        (
            CacheSpec(num_cells=65536),
            CacheSpec(num_cells=65536, full_window=False),
            CacheSpec(num_cells=2048, num_sequences=3, full_window=False),
        ),
    ),
    "learned-positions": Tiny(TinyModel(arch="gpt2", num_kv_heads=4)),
    "alibi": Tiny(TinyModel(arch="mpt", num_kv_heads=4)),
    "sentencepiece": Tiny(TinyModel(tokenizer="spm")),
    "kv-types": Tiny(
        WIDE,
        tuple(CacheSpec(num_cells=30_000, k_type=k, v_type=v) for k, v in ((Q8, Q8), (Q4, Q4), (Q8, Q4), (F16, Q8))),
    ),
    "sequences": Tiny(WIDE, tuple(CacheSpec(num_cells=6000, num_sequences=count) for count in (1, 2, 9, 129, 256))),
    "few-cells": Tiny(WIDE, (CacheSpec(num_cells=1), CacheSpec(num_cells=257, num_sequences=5))),
}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_the_forecast_of_a_tiny_model_is_what_llama_cpp_plans(engine: Engine, tmp_path: Path, name: str) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", TINY[name].model)
    for spec in TINY[name].specs:
        check(footprint(read_header(path), spec), engine.sizes(path, spec))


HOLLOW = {
    "llama-3.1-8b": HollowModel("llama", 4096, 14336, 32, 32, 8, 128256),
    "qwen2.5-0.5b": HollowModel("qwen2", 896, 4864, 24, 14, 2, 151936, is_tied=True, has_bias=True),
    "qwen2.5-32b": HollowModel("qwen2", 5120, 27648, 64, 40, 8, 152064, has_bias=True),
    "gemma-2-9b": HollowModel("gemma2", 3584, 14336, 42, 16, 8, 256000, head_dim=256, is_tied=True, window=4096),
    "gemma-3-1b": HollowModel("gemma3", 1152, 6912, 26, 4, 1, 262144, head_dim=256, is_tied=True, window=512),
    "phi-3-mini": HollowModel("phi3", 3072, 8192, 32, 32, 32, 32064),
    "mixtral-8x7b": HollowModel("llama", 4096, 14336, 32, 32, 8, 32000, num_experts=8, num_experts_used=2),
    "qwen3-30b-a3b": HollowModel(
        "qwen3moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128,
        num_experts=128, num_experts_used=8, expert_feed_forward=768,
    ),
    "heads-by-layer": HollowModel("deci", 4096, 14336, 8, 32, (8, 4, 4, 8, 2, 8, 1, 8), 128256),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLLOW)
def test_the_forecast_of_a_published_models_shape_is_what_llama_cpp_plans(
    engine: Engine, tmp_path: Path, name: str
) -> None:
    path = write_hollow(tmp_path / "hollow.gguf", HOLLOW[name])
    header = read_header(path)
    for spec in (
        CacheSpec(num_cells=2048),
        CacheSpec(num_cells=16384, k_type=Q8, v_type=Q8),
        CacheSpec(num_cells=131072, num_sequences=9),
        CacheSpec(num_cells=32768, num_sequences=4, full_window=False),
    ):
        check(footprint(header, spec), engine.sizes(path, spec))


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_the_forecast_of_a_real_model_is_what_llama_cpp_plans_and_takes(engine: Engine, name: str) -> None:
    try:
        path = find_model(name, paths()).path
    except ModelNotFoundError:
        pytest.skip(f"{name} is not on this machine")
    header = read_header(path)
    for spec in (
        CacheSpec(num_cells=2048),
        CacheSpec(num_cells=8192, k_type=Q8, v_type=Q8),
        CacheSpec(num_cells=4096, k_type=F16, v_type=Q4, num_sequences=9),
        CacheSpec(num_cells=6000, num_sequences=129),
    ):
        check(footprint(header, spec), engine.sizes(path, spec))
    spec = CacheSpec(num_cells=2048)
    check(footprint(header, spec), engine.sizes(path, spec, is_planned=False))


def test_a_recurrent_models_state_is_not_in_the_forecast_and_it_says_so(tmp_path: Path) -> None:
    forecast = footprint(read_header(write_tiny(tmp_path / "m.gguf", TinyModel(arch="mamba"))), CacheSpec())
    assert not forecast.is_complete
    assert forecast.kv_bytes == 0
