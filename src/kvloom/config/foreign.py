"""Names of another program's settings that mean the same as ours: its variables, and its `context:` group in YAML.

Knows names only. Ours win over its variables; in one file both names for one setting are a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FOREIGN_VARIABLES = {
    "OLLM_CONTEXT_SIZE": "context_target",
    "OLLM_CONTEXT_AUTO": "context_auto",
    "OLLM_CONTEXT_VRAM_BUFFER": "memory_reserve_bytes",
    "OLLM_KV_CACHE_TYPE": "kv_type",
}

FOREIGN_GROUP = "context"
"""In YAML a number is our window; a mapping is that program's group."""

FOREIGN_KEYS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("targetSize",): ("context_target",),
    ("minSize",): ("context_min",),
    ("maxSize",): ("context_max",),
    ("autoSize",): ("context_auto",),
    ("vramBuffer",): ("memory_reserve_bytes",),
    ("kvQuantization",): ("kv_type",),
    ("compression", "enabled"): ("compression", "enabled"),
    ("compression", "threshold"): ("compression", "threshold"),
    ("compression", "strategy"): ("compression", "strategy"),
    ("compression", "preserveRecent"): ("compression", "preserve_recent"),
    ("compression", "summaryMaxTokens"): ("compression", "summary_max_tokens"),
    ("snapshots", "enabled"): ("snapshots", "enabled"),
    ("snapshots", "maxCount"): ("snapshots", "max_count"),
    ("snapshots", "autoCreate"): ("snapshots", "auto_create"),
    ("snapshots", "autoThreshold"): ("snapshots", "auto_threshold"),
}
"""Keys below `context:`, and the setting of ours that each is."""

_GROUPS = {names[0] for names in FOREIGN_KEYS if len(names) > 1}


def leaves(values: Mapping[Any, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key below `context:` with its value, as it is written; a group that is no mapping is one of them."""
    for name, value in values.items():
        where = (*prefix, str(name))
        if isinstance(value, Mapping) and where[0] in _GROUPS and not prefix:
            yield from leaves(value, where)
        else:
            yield where, value


def names_beside(where: tuple[str, ...]) -> list[str]:
    """The names that would be valid in place of the last of `where`."""
    depth = len(where)
    return sorted(
        {names[depth - 1] for names in FOREIGN_KEYS if names[: depth - 1] == where[:-1] and len(names) >= depth}
    )


def converted(name: str, value: Any) -> Any:
    """The value in our unit: that program's buffer is a number of megabytes."""
    if name != "memory_reserve_bytes":
        return value
    if isinstance(value, bool):
        return str(value).lower()  # or it would pass as a number of bytes
    is_number = isinstance(value, int | float) or (isinstance(value, str) and value.strip().isdigit())
    return f"{value}MiB" if is_number else value
