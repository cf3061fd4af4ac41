"""A step of 8 replies with nothing in common: in the one pool of cells that the engine has, and in separate streams.

Rows of `bench serve`. A pool holds what replies have in common once, and every row looks at the mask of every cell.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from kvloom.bench.report import Row
from kvloom.bench.setting import Request, open_loom, settings_for
from kvloom.bench.teller import Teller
from kvloom.engine.llamacpp import LlamaCppEngine
from kvloom.engine.llamacpp.bare import step_seconds
from kvloom.errors import EngineUnsupportedError

REPLIES = 8
LENGTHS, QUICK_LENGTHS = (256, 850, 1536), (64,)
"""Tokens behind which each of them is."""


def stream_rows(request: Request, home: Path, tell: Teller) -> list[Row]:
    """The rows `step-of-8`, one for each length. No target: they say what a pool in common costs such clients."""
    rows = []
    with open_loom(settings_for(request, context=2048), home, tell) as loom:
        engine = loom.engine
        if not isinstance(engine, LlamaCppEngine):
            raise EngineUnsupportedError(f"{type(engine).__name__} has one kind of cells only")
        for length in QUICK_LENGTHS if request.quick else LENGTHS:
            measure = partial(step_seconds, engine, REPLIES, length)
            pool = loom.device.batcher.run(partial(measure, is_unified=True))
            streams = loom.device.batcher.run(partial(measure, is_unified=False))
            tell.say(f"a step of {REPLIES} behind {length} tokens: {pool:.3f} s in a pool, {streams:.3f} s in streams")
            rows.append(
                Row("step-of-8", "", pool, "separate streams", streams, streams / pool, None, {"behind_tokens": length})
            )
    return rows
