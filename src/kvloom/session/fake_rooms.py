"""A loom over the deterministic engine: for measuring what everything but a model costs. Reads no model file."""

from __future__ import annotations

from pathlib import Path

from kvloom.config import Settings
from kvloom.engine.fake import FakeEngine
from kvloom.session.loom import Loom
from kvloom.session.pool import num_cells
from kvloom.session.rooms import join

FAKE_MODEL = "fake"


def open_fake(settings: Settings, home: Path) -> Loom:
    """As `open_loom`, with one token a byte and replies of pure arithmetic."""
    window = settings.context or settings.context_target
    engine = FakeEngine(num_cells(window, settings.pool_tokens), settings.max_sequences)
    return join(engine, settings, home, (FAKE_MODEL, Path(f"{FAKE_MODEL}.gguf")))
