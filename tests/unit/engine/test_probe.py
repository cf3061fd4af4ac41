"""A build that crashes on this CPU kills a child process, once, and never the caller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings, trial
from kvloom.engine.llamacpp.probe import ANSWERS_FILE, Outcome, probe, safe_settings
from kvloom.errors import EngineUnsupportedError
from kvloom.types import ModelFingerprint
from tests.tiny_gguf import TinyModel, write_tiny

CRASH = "import os, signal, sys\nif sys.argv[2] in {flags!r}:\n    os.kill(os.getpid(), signal.SIGILL)\n"


@pytest.fixture
def settings(tmp_path: Path) -> LoadSettings:
    path = write_tiny(tmp_path / "tiny.gguf", TinyModel())
    cache = tmp_path / "cache"
    return LoadSettings(path, 256, max_sequences=2, num_threads=1, extra_buffers=False, cache_dir=cache)


def crash_with(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the trial die of an illegal instruction, as a build for another CPU does."""
    script = tmp_path / "crash.py"
    script.write_text(CRASH.format(flags=flags), encoding="utf-8")
    monkeypatch.setattr(trial, "__file__", str(script))


def test_a_build_that_runs_is_tried_once_and_remembered(settings: LoadSettings) -> None:
    first = probe(settings)
    assert (first.outcome, first.is_remembered) == (Outcome.RUNS, False)
    again = probe(settings)
    assert (again.outcome, again.is_remembered) == (Outcome.RUNS, True)
    assert safe_settings(settings) == settings


def test_a_build_that_crashes_is_refused_with_what_to_do(
    settings: LoadSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_with("01", tmp_path, monkeypatch)
    for _ in range(2):
        with pytest.raises(EngineUnsupportedError, match=r"SIGILL.*CMAKE_ARGS"):
            LlamaCppEngine(settings, ModelFingerprint("0" * 64))
    assert probe(settings).is_remembered


def test_repacked_weights_that_crash_are_switched_off(
    settings: LoadSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_with("1", tmp_path, monkeypatch)
    wanted = replace(settings, extra_buffers=True)
    assert safe_settings(wanted) == settings


def test_a_model_that_is_refused_says_nothing_about_the_cpu(settings: LoadSettings) -> None:
    settings.path.write_bytes(settings.path.read_bytes()[:5000])
    assert probe(settings).outcome is Outcome.UNKNOWN
    assert not probe(settings).is_remembered


def test_broken_answers_only_cost_asking_again(settings: LoadSettings) -> None:
    assert settings.cache_dir is not None
    settings.cache_dir.mkdir()
    for text in ("", "{", "[]", '{"a": 1}'):
        (settings.cache_dir / ANSWERS_FILE).write_text(text, encoding="utf-8")
        assert not probe(settings).is_remembered
    assert probe(settings).is_remembered


def test_the_rotation_found_is_remembered_to_the_bit(settings: LoadSettings) -> None:
    found = []
    for _ in range(2):
        engine = LlamaCppEngine(settings, ModelFingerprint("1" * 64))
        found.append((engine.rope, engine.capabilities, engine.layout))
        engine.close()
    assert found[0] == found[1]
    assert settings.cache_dir is not None
    assert len(list(settings.cache_dir.iterdir())) == 2
