"""Keeps what a loaded engine says of itself in the home, for each model and the settings that it was opened with.

What cannot be kept, or read back, costs loading the model the next time.
"""

from __future__ import annotations

import importlib.metadata
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kvloom.chunk.database import Database
from kvloom.engine.recorded import EngineRecord, record_engine
from kvloom.errors import StoreError
from kvloom.text.pieces import PromptBuilder
from kvloom.text.preamble import alone_prefix
from kvloom.types import ModelFingerprint

if TYPE_CHECKING:
    from kvloom.config import Settings
    from kvloom.engine.base import Vocabulary
    from kvloom.session.loom import Loom

_LOG = logging.getLogger(__name__)

RECORD_VERSION = 1


def remember(loom: Loom) -> None:
    """Keep what the loaded engine says of itself; once."""
    key = (loom.engine.fingerprint, _setting(loom.settings))
    try:
        if loom._database.rows("SELECT 1 FROM engines WHERE model = ? AND setting = ?", key):
            return
        record = record_engine(loom.engine, loom.status().engine, lambda vocabulary: _ask(vocabulary, loom))
        loom._database.execute(
            "INSERT OR REPLACE INTO engines (model, setting, body, updated_s) VALUES (?, ?, ?, ?)",
            (*key, msgspec.json.encode(record).decode(), time.time()),
        )
    except StoreError as error:
        _LOG.warning("what the engine says of itself cannot be kept: %s", error)


def recorded(home: Path, model: ModelFingerprint, settings: Settings) -> EngineRecord | None:
    """What was kept; None where nothing that can be read was. Raises StoreError."""
    database = Database(home)
    try:
        sql = "SELECT body FROM engines WHERE model = ? AND setting = ?"
        rows = database.rows(sql, (model, _setting(settings)))
    finally:
        database.close()
    try:
        return msgspec.json.decode(rows[0][0], type=EngineRecord) if rows else None
    except msgspec.MsgspecError:
        return None


def forget(home: Path, model: ModelFingerprint, settings: Settings) -> None:
    """A record that is of no use any more: the next loading makes another. Raises StoreError."""
    database = Database(home)
    try:
        database.execute("DELETE FROM engines WHERE model = ? AND setting = ?", (model, _setting(settings)))
    finally:
        database.close()


def _ask(vocabulary: Vocabulary, loom: Loom) -> None:
    """What a loom asks of its vocabulary when it is opened."""
    builder = PromptBuilder(vocabulary, default_system=loom.settings.system)
    alone_prefix(loom.engine.sink_token, loom.engine.train_context, builder.tokenizer.content)


def _setting(settings: Settings) -> str:
    """What a record depends on beside the model: what the engine is opened with, and the programs that made it."""
    programs = [importlib.metadata.version(name) for name in ("kvloom", "llama-cpp-python")]
    return (
        f"{RECORD_VERSION} {settings.k_type.value}/{settings.v_type.value} gpu {settings.n_gpu_layers} "
        f"sequences {settings.max_sequences} {' '.join(programs)}"
    )
