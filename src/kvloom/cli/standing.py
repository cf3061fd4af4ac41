"""What the status box shows beside the window: memory, guard, snapshots, libraries and more. Reads the façade only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from kvloom.memory.sizing import beyond_trained

if TYPE_CHECKING:
    from kvloom.memory.reading import MemoryReading
    from kvloom.session.home_libraries import ListedLibrary
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session


GUARD_OFF = "off"


class AutoCompress(Enum):
    """What is to be expected of the compression that begins by itself."""

    OFF = "off"
    BY_POLICY = "off: the policy is stop"
    ARMED = "armed"
    RUNNING = "running"


class WindowOrigin(Enum):
    """Why a window is as large as it is."""

    OWN = "own"
    ASKED_FOR = "asked for"
    LAST = "last"
    DEFAULT = "default"


@dataclass(frozen=True)
class Standing:
    """`memory`: the GPUs' memories, or the host's where there is none; empty where nothing could be read.

    `guard` is its level, or "off"; `safe_limit_tokens` fit below its soft limit (None: not known). `interventions`:
    what it did, the newest last. A compression begins at `compress_at_tokens`. `window_warning` is empty where
    nothing speaks against the window. `libraries` are attached; `is_recalling`: questions are looked up in them.
    """

    memory: tuple[MemoryReading, ...]
    guard: str
    safe_limit_tokens: int | None
    interventions: tuple[str, ...]
    num_snapshots: int
    auto_compress: AutoCompress
    compress_at_tokens: int
    compress_threshold: float
    compress_strategy: str
    window_origin: WindowOrigin = WindowOrigin.DEFAULT
    window_warning: str = ""
    libraries: tuple[ListedLibrary, ...] = ()
    is_recalling: bool = True


def read_standing(loom: Loom, session: Session, origin: WindowOrigin | None = None) -> Standing:
    """As things are now. Computes nothing and costs no context. `origin`: of a window that is not the session's own."""
    from kvloom.session.stored import StoredLoom

    picture, settings, usage = loom.memory(), loom.settings.compression, session.usage()
    is_guarded = loom.settings.guard.enabled
    host = () if picture.host is None else (picture.host,)
    memory = (picture.accelerators or host) if loom.settings.n_gpu_layers else host
    return Standing(
        memory=memory,
        guard=loom.guard.level.value if is_guarded else GUARD_OFF,
        # Where the model is not loaded, the memory that it will take is free still: no number could be right.
        safe_limit_tokens=loom.guard.safe_limit() if is_guarded and not isinstance(loom, StoredLoom) else None,
        interventions=tuple(notice.text for notice in loom.guard.notices_of(loom)),
        num_snapshots=len(session.snapshots()),
        auto_compress=auto_compress(session, usage.policy, is_on=settings.enabled and settings.background),
        compress_at_tokens=int(settings.threshold * (usage.capacity - usage.reserve)),
        compress_threshold=settings.threshold,
        compress_strategy=settings.strategy,
        window_origin=_origin(loom, session, origin),
        window_warning=beyond_trained(usage.capacity, trained_length(loom)),
        libraries=tuple(session.attached()),
        is_recalling=session.is_recalling,
    )


def _origin(loom: Loom, session: Session, origin: WindowOrigin | None) -> WindowOrigin:
    if session.manifest.window:
        return WindowOrigin.OWN
    return origin or (WindowOrigin.ASKED_FOR if loom.is_window_asked else WindowOrigin.DEFAULT)


def trained_length(loom: Loom) -> int:
    """Tokens that the model was trained for, RoPE scaling included; 0 where nobody tells."""
    return loom.sizing.trained_context if loom.sizing is not None else loom.engine.train_context


def auto_compress(session: Session, policy: str, *, is_on: bool) -> AutoCompress:
    if session.is_compressing:
        return AutoCompress.RUNNING
    if not is_on:
        return AutoCompress.OFF
    return AutoCompress.BY_POLICY if policy == "stop" else AutoCompress.ARMED
