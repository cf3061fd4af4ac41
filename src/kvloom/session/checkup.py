"""Looks at a home's catalog and at the engine's build without opening either for work. Changes nothing.

For `kvloom doctor`; joins what the edges may not reach by themselves.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.chunk.database import DATABASE_NAME

if TYPE_CHECKING:
    from kvloom.config import Paths


def catalog_fault(home: Path) -> str:
    """What SQLite's own check finds wrong in a home's catalog; empty where it is whole or not there yet."""
    path = home / DATABASE_NAME
    if not path.exists():
        return ""
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5.0)
        try:
            findings = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
        finally:
            connection.close()
    except sqlite3.Error as exc:
        return str(exc)
    return "" if findings == ["ok"] else "; ".join(findings)


@dataclass(frozen=True)
class EngineFindings:
    """`features`: what the build was made with, as llama.cpp prints it. `runs`: "runs", "crashed" or "unknown"."""

    features: str
    has_gpu: bool
    runs: str
    detail: str
    is_remembered: bool


def examine_engine(model: Path | None, where: Paths) -> EngineFindings:
    """Tries this build of llama.cpp on this CPU with a model, in a child process, unless the answer is known."""
    from kvloom.engine.llamacpp.build import build_features
    from kvloom.engine.llamacpp.load import LoadSettings
    from kvloom.engine.llamacpp.probe import probe

    features, has_gpu = build_features()
    if model is None:
        return EngineFindings(features, has_gpu, "unknown", "there is no model here to try it with", False)
    result = probe(LoadSettings(model, cache_dir=where.cache_dir))
    return EngineFindings(features, has_gpu, result.outcome.value, result.detail, result.is_remembered)
