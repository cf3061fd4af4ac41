"""Snapshots for the tests of what shows them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kvloom.session.values import Message, Snapshot


def snapshot(name: str, title: str, *, is_auto: bool = False, restore_s: float | None = 0.25) -> Snapshot:
    return Snapshot(
        id=name,
        title=title,
        reason="before clear" if is_auto else "",
        is_auto=is_auto,
        created=time.time() - 7200,
        summary="",
        num_tokens=1234,
        num_turns=3,
        num_chunks=1,
        window=4096,
        model="qwen",
        compression_ratio=0.5,
        kv_bytes=5 * 1024**2,
        restore_s=restore_s,
    )


WHALES = snapshot("aaaaaaaaaaaa", "all about whales")
TIDES = snapshot("bbbbbbbbbbbb", "The tides", is_auto=True, restore_s=None)
ROPES = snapshot("cccccccccccc", "ropes and knots")
ALL = (WHALES, TIDES, ROPES)


def messages_of(name: str) -> Sequence[Message]:
    return [Message("user", f"question in {name}", 1), Message("assistant", f"answer in {name}", 1)]
