"""Where the homes of tenants lie below the host's. Knows no loom."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

FOLDER = "tenants"
NAME_CHARS = 32
"""Of the name's hash: a name may hold anything, and no two of them share a folder."""


def home_of(home: Path, name: str) -> Path:
    return home / FOLDER / hashlib.sha256(name.encode()).hexdigest()[:NAME_CHARS]


def tenant_homes(home: Path) -> Iterator[Path]:
    """The homes of all tenants below `home`."""
    folder = home / FOLDER
    yield from sorted(folder.iterdir()) if folder.is_dir() else ()
