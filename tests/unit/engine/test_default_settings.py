"""The engine as `kvloom.open` asks for it: with all layers on a GPU that most builds do not have."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import pytest

from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings
from kvloom.types import ModelFingerprint
from tests.tiny_gguf import TinyModel, write_tiny


@pytest.mark.skipif(bool(llama_cpp.llama_supports_gpu_offload()), reason="this build has a GPU")
@pytest.mark.parametrize("num_gpu_layers", [0, -1, 99])
def test_short_prefills_are_padded_to_whole_tiles_whatever_was_asked_of_a_gpu_that_is_not_there(
    tmp_path: Path, num_gpu_layers: int
) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", TinyModel())
    engine = LlamaCppEngine(
        LoadSettings(path, num_cells=512, num_gpu_layers=num_gpu_layers), ModelFingerprint("0" * 64)
    )
    try:
        assert (engine.capabilities.prefill_quantum, engine.uses_accelerator) == (64, False)
    finally:
        engine.close()
