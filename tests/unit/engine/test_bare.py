"""The barest native loops: what they measure is there, and the engine is as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvloom.engine.base import Logits, Run
from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings
from kvloom.engine.llamacpp.bare import step_seconds
from kvloom.types import ModelFingerprint, SequenceId
from tests.tiny_gguf import TinyModel, write_tiny


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppEngine]:
    file = write_tiny(tmp_path_factory.mktemp("bare") / "tiny.gguf", TinyModel(arch="qwen2", head_dim=32))
    settings = LoadSettings(file, num_cells=512, max_sequences=2, num_threads=1)
    opened = LlamaCppEngine(settings, ModelFingerprint("cd" * 32))
    yield opened
    opened.close()


@pytest.mark.parametrize("is_unified", [True, False])
def test_a_step_of_many_replies_is_measured_in_a_context_of_its_own(engine: LlamaCppEngine, is_unified: bool) -> None:
    engine.decode([Run(SequenceId(0), list(range(3, 40)), 0, Logits.NONE)])
    assert step_seconds(engine, 4, 300, is_unified=is_unified) > 0
    assert engine.num_tokens(SequenceId(0)) == engine.used_cells() == 37
    engine.remove(SequenceId(0))
