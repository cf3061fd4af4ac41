"""The policies that look at age alone: stop, clear, fifo, sliding_window, keep_first.

Turns leave whole, and before any chunk does. Chunks are switched off, so that they keep their places.
"""

from __future__ import annotations

from kvloom.context.manifest import Manifest
from kvloom.context.policies.base import (
    Need,
    checked,
    droppable_chunks,
    droppable_turns,
    dropped_until,
    register,
    without_chunks_until,
)
from kvloom.errors import ContextOverflowError


@register("stop")
def stop(manifest: Manifest, need: Need) -> Manifest:
    """Nothing ever leaves: what does not fit is refused with the numbers."""
    if manifest.num_tokens <= need.limit:
        return manifest
    needed = need.window - need.limit + manifest.num_tokens
    raise ContextOverflowError(
        f"maximum context length is {need.window} tokens: {manifest.num_tokens} in use + {need.window - need.limit} "
        f"for the question and its reply = {needed}; switch chunks off, clear turns, shorten it, compress, choose "
        f"another policy, or raise the context to {needed} or more",
        num_needed_tokens=needed,
        num_window_tokens=need.window,
    )


@register("clear")
def clear(manifest: Manifest, need: Need) -> Manifest:
    """Start fresh: every turn leaves at once (a snapshot holds them); chunks stay while they fit."""
    if manifest.num_tokens <= need.limit:
        return manifest
    fresh = manifest.without({slot.ref for slot in manifest.turns if not slot.pinned})
    return checked(without_chunks_until(fresh, need.limit, droppable_chunks(fresh)), need)


@register("fifo")
def fifo(manifest: Manifest, need: Need) -> Manifest:
    """The oldest turn leaves first, one at a time."""
    kept = dropped_until(manifest, need.limit, droppable_turns(manifest, need))
    return checked(without_chunks_until(kept, need.limit, droppable_chunks(kept)), need)


@register("sliding_window")
def sliding_window(manifest: Manifest, need: Need) -> Manifest:
    """Never more than the newest `window_tokens` of turns, whether or not the window is full."""
    turns, num_tokens, leaving = droppable_turns(manifest, need), 0, []
    for slot in reversed(turns):
        num_tokens += slot.num_tokens
        # The newest turn stays as long as it fits at all: a window without it would have no conversation.
        if num_tokens > need.settings.window_tokens and slot is not turns[-1]:
            leaving.append(slot.ref)
    return fifo(manifest.without(set(leaving)) if leaving else manifest, need)


@register("keep_first")
def keep_first(manifest: Manifest, need: Need) -> Manifest:
    """The first turns (attention sinks, `sink_tokens` of them) and the newest stay; the middle leaves, oldest first."""
    turns, sinks, num_tokens = droppable_turns(manifest, need), 0, 0
    for slot in turns:
        num_tokens += slot.num_tokens
        if num_tokens > need.settings.sink_tokens and sinks:
            break
        sinks += 1
    kept = dropped_until(manifest, need.limit, [*turns[sinks:], *turns[:sinks]])
    return checked(without_chunks_until(kept, need.limit, droppable_chunks(kept)), need)
