"""`bench explore`, context: windows of growing size, opened and filled: their memory, and what a token takes.

Knows the façade only.
"""

from __future__ import annotations

import gc
from statistics import median
from typing import TYPE_CHECKING

import psutil

from kvloom.bench.explore_values import Size, Stage, prose
from kvloom.bench.report import Row
from kvloom.bench.setting import open_loom, settings_for

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.types import Usage

REPLY_TOKENS = 24
"""Enough for a rate: each of them is one step behind the whole context."""
QUESTION = "\n\nRepeat the first paragraph of this text, word for word."
BESIDE_TOKENS = 32
"""System text, template and what counting the parts of a prompt apart may miss."""
MAX_FILLED_TOKENS = 32_768
"""Larger windows are opened and not filled: on a processor that takes hours."""
MS = 1000
COLUMNS = ("forecast_mib", "measured_mib", "kv_mib", "prompt_tokens", "prefill_ms_per_token", "decode_ms_per_token")
MIB = 2**20


def contexts(size: Size, train_context: int) -> list[int]:
    """The windows: those of the size, then doubled up to the model's own length."""
    found = [window for window in size.contexts if window <= train_context]
    while size.is_to_model_end and found and found[-1] < train_context:
        found.append(min(2 * found[-1], train_context))
    return found


def num_steps(size: Size, train_context: int) -> int:
    return len(contexts(size, train_context))


def rows(stage: Stage) -> list[Row]:
    # The first model that a process loads brings libraries along, which are no part of a window's memory.
    with _opened(stage, stage.size.contexts[0]) as loom:
        windows = contexts(stage.size, loom.engine.train_context)
    return [_row(stage, window) for window in windows]


def _opened(stage: Stage, window: int) -> Loom:
    settings = settings_for(stage.request, context=window, reserve_tokens=REPLY_TOKENS, guard={"enabled": False})
    return open_loom(settings, stage.home)


def _row(stage: Stage, window: int) -> Row:
    before = held_bytes()
    usages: list[Usage] = []
    with _opened(stage, window) as loom:
        if window <= MAX_FILLED_TOKENS:
            usages = [_filled(loom, window) for _ in range(stage.size.repeats)]
        measured = held_bytes() - before
        forecast = loom.sizing.needed_bytes if loom.sizing is not None else None
        kv_bytes = loom.engine.num_cells * loom.engine.layout.token_bytes
    prefill = [usage.ttft_s / usage.computed_tokens for usage in usages]
    steps = [(u.total_s - u.ttft_s) / (u.completion_tokens - 1) for u in usages if u.completion_tokens > 1]
    extra = {
        "part": "context",
        "window": window,
        "forecast_mib": None if forecast is None else forecast / MIB,
        "measured_mib": measured / MIB,
        "kv_mib": kv_bytes / MIB,
        "prompt_tokens": usages[0].prompt_tokens if usages else None,
        "prefill_ms_per_token": MS * median(prefill) if prefill else None,
        "decode_ms_per_token": MS * median(steps) if steps else None,
    }
    seconds = median(usage.total_s for usage in usages) if usages else 0.0
    stage.tell.step(f"context {window}: {seconds:.1f} s, {measured / MIB:.0f} MiB")
    return Row(f"context-{window}", "", seconds, extra=extra)


def held_bytes() -> int:
    """What this process has of the machine's memory; the file of the model counts as far as it was read."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def _filled(loom: Loom, window: int) -> Usage:
    """One question that leaves room for its reply and nothing else, in a session of its own."""
    with loom.session(system="") as session:
        room = window - REPLY_TOKENS - session.usage().used - loom.count(QUESTION) - BESIDE_TOKENS
        text = prose(loom.count, room)
        usage = session.generate(text + QUESTION, max_tokens=REPLY_TOKENS, temperature=0.0).usage
    loom.delete_session(session.id)
    return usage
