"""What cannot be loaded is refused with a reason, and llama.cpp never writes to the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings
from kvloom.errors import EngineUnsupportedError, ModelFormatError, ModelNotFoundError
from kvloom.types import KVType, ModelFingerprint
from tests.tiny_gguf import TinyModel, write_tiny

FINGERPRINT = ModelFingerprint("cd" * 32)


def open_engine(path: Path, kv_type: KVType = KVType.F16, num_cells: int = 256) -> LlamaCppEngine:
    settings = LoadSettings(path, num_cells, kv_type, kv_type, max_sequences=2, num_threads=1)
    return LlamaCppEngine(settings, FINGERPRINT)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        open_engine(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelNotFoundError):
        open_engine(tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("just text")
    with pytest.raises(ModelFormatError, match=r"starts with b'just'"):
        open_engine(path)
    path.write_bytes(b"")
    with pytest.raises(ModelFormatError):
        open_engine(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_gguf_is_refused_with_its_size(tmp_path: Path, share: float) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", TinyModel())
    data = path.read_bytes()
    path.write_bytes(data[: 4 + int(len(data) * share)])
    with pytest.raises(ModelFormatError, match="bytes"):
        open_engine(path)


def test_an_embedding_model_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "bert.gguf", TinyModel(arch="bert", num_kv_heads=4, context=256))
    with pytest.raises(EngineUnsupportedError, match="embedding"):
        open_engine(path)


def test_a_kv_type_that_does_not_fit_the_heads_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", TinyModel(head_dim=16))
    with pytest.raises(EngineUnsupportedError, match=r"q8_0.*16 values"):
        open_engine(path, KVType.Q8_0)
    engine = open_engine(path)
    assert engine.capabilities.kv_types == (KVType.F16,)
    engine.close()


@pytest.mark.parametrize(("num_sequences", "num_cells"), [(0, 256), (256, 256), (2, 0)])
def test_impossible_settings_are_refused_before_the_native_side_sees_them(
    tmp_path: Path, num_sequences: int, num_cells: int
) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", TinyModel())
    with pytest.raises(EngineUnsupportedError):
        LlamaCppEngine(LoadSettings(path, num_cells, max_sequences=num_sequences), FINGERPRINT)


def test_cells_are_rounded_up_and_every_sequence_may_be_used(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", TinyModel())
    engine = LlamaCppEngine(LoadSettings(path, 300, max_sequences=255, num_threads=1), FINGERPRINT)
    assert engine.num_cells == 512
    assert engine.capabilities.max_sequences == 255
    assert engine.train_context == 4096
    engine.close()


def test_nothing_of_llama_cpp_reaches_the_terminal(tmp_path: Path) -> None:
    good = write_tiny(tmp_path / "tiny.gguf", TinyModel())
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(good.read_bytes()[:5000])
    script = f"""
from pathlib import Path
from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings
from kvloom.errors import ModelFormatError
LlamaCppEngine(LoadSettings(Path({str(good)!r}), 256, num_threads=1), "0" * 64).close()
try:
    LlamaCppEngine(LoadSettings(Path({str(bad)!r}), 256, num_threads=1), "0" * 64)
except ModelFormatError:
    print("refused")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout == "refused\n"
    assert ended.stderr == ""
