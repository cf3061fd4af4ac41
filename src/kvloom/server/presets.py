"""Built-in presets of the registry: what a kind of use wants, where the entry says nothing. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from kvloom.types import KVType

MIB = 1024**2
GIB = 1024**3

PresetName = Literal["short", "documents", "long"]

PRESETS: Mapping[PresetName, Mapping[str, Any]] = MappingProxyType(
    {
        # Chats and completions of a page or two: a small pool, so that several models fit side by side.
        "short": {"context_target": 4096, "context_min": 1024, "ram_budget_bytes": 256 * MIB},
        # Questions about files: room for a few of them at once, and for what is switched off and on.
        "documents": {"context_target": 16384, "context_min": 4096, "ram_budget_bytes": 2 * GIB},
        # Books and code bases: as much window as memory gives, in half the bytes, and a large store behind it.
        "long": {
            "context_target": 131_072,
            "context_min": 8192,
            "kv_type": KVType.Q8_0,
            "ram_budget_bytes": 4 * GIB,
            "disk_budget_bytes": 128 * GIB,
        },
    }
)
"""Settings by preset. The window is automatic in all of them: memory and the model's own limit decide in the end."""
