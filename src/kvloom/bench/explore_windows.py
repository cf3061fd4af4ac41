"""`bench explore`, windows: one text read by windows of each size and overlap; how many facts they find, how long.

Knows the façade and the windows only.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

from kvloom.bench.explore_values import Planted, Size, Stage, num_found, planted
from kvloom.bench.report import Row
from kvloom.bench.setting import open_loom, settings_for
from kvloom.reduce.asking import MemoryResults
from kvloom.session.long_texts import WindowAnswers, ask_windows

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

PROMPT = "List the access codes in this text."
"""Small models take the way out where they are offered one: "or say none" finds nothing."""
FACT_TOKENS, REPLY_TOKENS = 10, 24
"""A reply may name all facts of the text: a name and a number take some ten tokens each."""
BESIDE_TOKENS = 512
"""Prompt, system text, template and reply beside the largest window."""
COLUMNS = ("windows", "read_tokens", "found", "facts", "text_tokens")


def num_steps(size: Size, _train_context: int) -> int:
    return len(size.windows) * len(size.overlaps)


def rows(stage: Stage) -> list[Row]:
    size = stage.size
    settings = settings_for(stage.request, context=max(size.windows) + BESIDE_TOKENS, guard={"enabled": False})
    with open_loom(settings, stage.home, stage.tell) as loom:
        text = planted(loom.count, size.text_tokens, size.num_text_facts)
        num_tokens = loom.count(text.text)
        return [
            _row(stage, loom, text, num_tokens, (window, overlap))
            for window in size.windows
            for overlap in size.overlaps
        ]


def _row(stage: Stage, loom: Loom, text: Planted, num_tokens: int, layout: tuple[int, float]) -> Row:
    window, overlap = layout
    seconds: list[float] = []
    for _ in range(stage.size.repeats):
        began = time.perf_counter()
        answered = _asked(loom, text, window, overlap)
        seconds.append(time.perf_counter() - began)
    replies = "\n".join(one.text for one in answered.replies)
    extra = {
        "part": "windows",
        "window": window,
        "overlap": overlap,
        "windows": len(answered.replies),
        "read_tokens": sum(one.window.num_tokens for one in answered.replies),
        "found": num_found(replies, text.facts),
        "facts": len(text.facts),
        "text_tokens": num_tokens,
    }
    stage.tell.step(
        f"{window} tokens, overlap {overlap:.0%}: {extra['windows']} windows, {extra['found']} of {extra['facts']} "
        f"facts, {median(seconds):.1f} s"
    )
    return Row(f"window-{window}-{overlap:.0%}", "", median(seconds), extra=extra)


def _asked(loom: Loom, text: Planted, window: int, overlap: float) -> WindowAnswers:
    # Results of this pass alone: windows that two layouts share are asked in both.
    reply_tokens = REPLY_TOKENS + FACT_TOKENS * len(text.facts)
    return ask_windows(
        text.text, PROMPT, loom, size=window, overlap=overlap, max_tokens=reply_tokens, results=MemoryResults()
    )
