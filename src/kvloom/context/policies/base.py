"""The seam of the policies: what they are given, what they give back, and the registry by name.

Pure: manifests in, manifests out. A new policy is one file that calls `register`; nothing here knows any of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvloom.context.manifest import Manifest, Slot, SlotKind
from kvloom.errors import ContextOverflowError, UsageError


@dataclass(frozen=True)
class PolicySettings:
    """`window_tokens`: what sliding_window keeps of the turns. `sink_tokens`: what keep_first keeps of their start."""

    window_tokens: int = 4096
    sink_tokens: int = 256


@dataclass(frozen=True)
class Need:
    """What has to fit.

    `limit`: the most tokens that the manifest may hold. `relevance`: how much each turn and chunk has to do with the
    question, by ref, 0 … 1. `recallable`: turns that a policy or a compression took out before, oldest first. `order`:
    a turn's ordinal in the session. `restore_s`: seconds to bring a slot back to the device. `asking`: turns in which
    somebody asked for something, so that their words say little of what is known. `is_follow_up`: the question
    names too little to be about anything but what was said last ("and why?").
    """

    limit: int
    window: int
    relevance: Mapping[str, float] = field(default_factory=dict)
    recallable: Sequence[Slot] = ()
    order: Callable[[str], int] = lambda _: 0
    restore_s: Callable[[Slot], float] = lambda _: 0.0
    settings: PolicySettings = PolicySettings()
    asking: frozenset[str] = frozenset()
    is_follow_up: bool = False


Policy = Callable[[Manifest, Need], Manifest]
"""The next manifest, within `need.limit`. Raises ContextOverflowError where that cannot be."""

_POLICIES: dict[str, Policy] = {}


def register(name: str) -> Callable[[Policy], Policy]:
    """Makes a function the policy of that name."""

    def add(policy: Policy) -> Policy:
        _POLICIES[name] = policy
        return policy

    return add


def policy_names() -> tuple[str, ...]:
    """All policies, in the order of the alphabet."""
    from kvloom.context import policies

    for module in pkgutil.iter_modules(policies.__path__):
        importlib.import_module(f"{policies.__name__}.{module.name}")
    return tuple(sorted(_POLICIES))


def find_policy(name: str) -> Policy:
    """Raises UsageError with the known names."""
    known = policy_names()
    if name not in known:
        raise UsageError(f"there is no policy {name!r}; choose one of {', '.join(known)}")
    return _POLICIES[name]


# -- what several policies need ---------------------------------------------------------------------------------------


def standing_turns(manifest: Manifest) -> list[Slot]:
    """Turns that the model sees word for word, in the order of the prompt: no summary of what left before."""
    return [slot for slot in manifest.turns if slot.active and not slot.is_summary]


def droppable_turns(manifest: Manifest, need: Need) -> list[Slot]:
    """Turns that may leave: not pinned. Oldest first, wherever one stands that came back."""
    turns = [slot for slot in standing_turns(manifest) if not slot.pinned]
    return sorted(turns, key=lambda slot: need.order(slot.ref))


def dropped_until(manifest: Manifest, limit: int, leaving: Sequence[Slot]) -> Manifest:
    """The manifest without the first of `leaving` that make it fit into `limit`; without all of them if need be."""
    refs, num_tokens = set[str](), manifest.num_tokens
    for slot in leaving:
        if num_tokens <= limit:
            break
        refs.add(slot.ref)
        num_tokens -= slot.num_tokens
    return manifest.without(refs) if refs else manifest


def without_chunks_until(manifest: Manifest, limit: int, leaving: Sequence[str]) -> Manifest:
    """The manifest with the first of these chunks off that make it fit; they keep their places."""
    for chunk in leaving:
        if manifest.num_tokens <= limit:
            break
        manifest = manifest.switched(chunk, False)  # type: ignore[arg-type]
    return manifest


def droppable_chunks(manifest: Manifest) -> list[str]:
    """Chunks that may be switched off, in the order of the block."""
    pinned = {slot.ref for slot in manifest.chunks if slot.pinned}
    return [chunk for chunk in manifest.active_chunk_ids if chunk not in pinned]


def checked(manifest: Manifest, need: Need) -> Manifest:
    """The manifest, if it fits now. Raises ContextOverflowError naming what may not leave, with the numbers."""
    if manifest.num_tokens <= need.limit:
        return manifest
    head = sum(slot.num_tokens for slot in manifest.active if slot.kind is SlotKind.HEAD)
    pinned = sum(slot.num_tokens for slot in manifest.active if slot.pinned)
    summary = sum(slot.num_tokens for slot in manifest.active if slot.is_summary and not slot.pinned)
    raise ContextOverflowError(
        f"maximum context length is {need.window} tokens; what may never leave takes {manifest.num_tokens} "
        f"(system prompt {head}, pinned {pinned}, summary {summary}) and only {max(0, need.limit)} are left beside the "
        "question and its reply; unpin something, shorten the question, ask for a shorter reply, or raise the context",
        num_needed_tokens=need.window - need.limit + manifest.num_tokens,
        num_window_tokens=need.window,
    )
