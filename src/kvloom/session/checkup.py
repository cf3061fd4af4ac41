"""Looks at a home's catalog and at the engine's build without opening either for work. Changes nothing.

For `kvloom doctor`; joins what the edges may not reach by themselves.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from kvloom.chunk.database import DATABASE_NAME


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
