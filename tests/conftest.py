"""What all tests share: a home of their own, no settings from outside, and the two models, fetched once per user."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from kvloom.config import Paths, paths
from kvloom.errors import KvloomError
from kvloom.model.pull import ensure_model

# Machines that run these tests are shared: neither one example nor the drawing of it has a deadline. CI draws the same
# examples every time: a new find belongs to whoever is at work, not to an unrelated change.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("shared-ci", settings.get_profile("shared"), derandomize=True)
settings.load_profile("shared-ci" if os.environ.get("CI") else "shared")

# A shell that starts a command in the background has it ignore Ctrl-C, and its children with it; many tests send one.
signal.signal(signal.SIGINT, signal.default_int_handler)

FETCH_LINE_EVERY_S = 10.0


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads the developer's settings or writes into their home; the models stay where they are."""
    models = paths().models_dir
    with pytest.MonkeyPatch.context() as patch:
        for variable in list(os.environ):
            if variable.startswith(("KVLOOM_", "OLLM_")):
                patch.delenv(variable)
        patch.delenv("COLUMNS", raising=False)  # as wide as where nobody looks
        patch.setenv("KVLOOM_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("KVLOOM_MODELS", str(models))
        # Two threads that wait for each other are slower than one where other tests share the cores.
        patch.setenv("KVLOOM_THREADS", "1")
        yield


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Folders of this test's own: home, config file and models."""
    monkeypatch.setenv("KVLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KVLOOM_MODELS", str(tmp_path / "models"))
    return paths()


@pytest.fixture(scope="session")
def smollm2_path(_own_surroundings: None) -> Path:
    """SmolLM2-135M (98 MB): small and fast."""
    return _model("smollm2-135m")


@pytest.fixture(scope="session")
def qwen_path(_own_surroundings: None) -> Path:
    """Qwen2.5-Coder-0.5B (491 MB), the default model: answers from its context."""
    return _model("qwen2.5-coder-0.5b")


def _model(name: str) -> Path:
    last = time.monotonic()

    def report(task: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > FETCH_LINE_EVERY_S:
            last = time.monotonic()
            print(f"{task}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", file=sys.__stderr__, flush=True)

    try:
        return ensure_model(name, paths(), report).path
    except KvloomError as error:
        pytest.fail(f"the tests need the model {name}, and it cannot be had: {error}", pytrace=False)
