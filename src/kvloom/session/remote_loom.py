"""A loom over a model behind HTTP: the sessions, chunks, policies and logs of any loom, without KV.

What differs is who runs a turn, who counts, and what a window costs; what needs KV is refused, saying so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from kvloom.chunk.profiles import Profile
from kvloom.config import Settings
from kvloom.context.device import Device
from kvloom.engine.remote.base import Endpoint
from kvloom.engine.remote.engine import RemoteEngine
from kvloom.errors import EngineUnsupportedError, UsageError
from kvloom.kv.rotate import Rotator
from kvloom.kv.store import TieredStore
from kvloom.session.history import History
from kvloom.session.loom import Loom
from kvloom.session.pool import SHRINK_SHARE, Pool
from kvloom.session.presets import FIDELITY, bring_in
from kvloom.session.remote_counting import RemoteCounts
from kvloom.session.remote_prompts import RemotePrompts
from kvloom.session.remote_runner import RemoteRunner
from kvloom.session.session import Session
from kvloom.session.turn import Runner
from kvloom.session.values import Chunk, ChunkDetail, LoomStatus
from kvloom.text.counter import TokenCount
from kvloom.types import Fidelity, SessionId

_LOG = logging.getLogger(__name__)


class RemotePool(Pool):
    """The window that the endpoint is asked for. Nothing is held here, so nothing is rebuilt or given back here."""

    def __init__(self, device: Device, endpoint: Endpoint, window: int) -> None:
        super().__init__(device, window, lambda: None)
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._reload_reason = ""

    @property
    def is_released(self) -> bool:
        return False

    def ensure(self, window: int) -> None:
        """Raises UsageError beyond what the endpoint serves; the window is as before then."""
        if window <= self.window:
            return
        self.check(window)
        self._ask_for(window)

    def check(self, window: int) -> None:
        """Raises UsageError where the endpoint cannot be asked for this window."""
        facts, limit = self._endpoint.facts, self._endpoint.facts.max_window
        if self._endpoint.is_resizable:
            if 0 < limit < window:
                raise UsageError(
                    f"a window of {window} tokens is beyond the {limit} that {facts.model} was trained for"
                )
        elif 0 < limit < window:
            raise UsageError(
                f"a window of {window} tokens is more than the {limit} that {self._endpoint.where} serves, and it can "
                "be changed only where that server is started; give less, or start it with a larger context"
            )

    def shrink(self, window: int) -> bool:
        if not self._endpoint.is_resizable or window > SHRINK_SHARE * self.window:
            return False
        self._ask_for(window)
        return True

    def release(self) -> int:
        return 0

    def reload_reason(self, window: int) -> str:
        """Why the server would load the model again for a session of this window; "" where it would not."""
        changes = window > self.window or window <= SHRINK_SHARE * self.window
        return self._endpoint.reload_reason(window) if self._endpoint.is_resizable and changes else ""

    def take_reload_reason(self) -> str:
        """What was said before the last change of the window; once."""
        with self._lock:
            reason, self._reload_reason = self._reload_reason, ""
        return reason

    def _ask_for(self, window: int) -> None:
        reason = ""
        if self._endpoint.is_resizable:
            reason = self._endpoint.reload_reason(window)
            self._device.engine.resize(window)
        with self._lock:
            self.window, self._reload_reason = window, reason
        if reason:
            _LOG.warning("%s", reason)


class RemoteSession(Session):
    """A conversation with a model behind HTTP: all that a session does, but what needs its KV or its token ids."""

    loom: RemoteLoom

    def set_fidelity(self, fidelity: Fidelity | str) -> None:
        """Only exact: see `Loom.status().why_not`. Raises EngineUnsupportedError."""
        super().set_fidelity(self.loom.checked_fidelity(fidelity))

    def resize_notice(self, num_tokens: int | None) -> str:
        wanted = self.loom.automatic_window() if num_tokens is None else num_tokens
        return self.loom.pool.reload_reason(wanted)

    def tokens(self) -> list[int]:
        """Raises EngineUnsupportedError: the server makes the token ids, and keeps them."""
        self.loom.refuse("token ids")

    def prompt(self) -> str:
        """What the server makes of the context. Raises EngineUnsupportedError where it does not show it."""
        self._desk.check_open()
        records = [self._history.turn(slot.ref) for slot in self.manifest.turns]
        messages = self.loom.remote_prompts.messages(self.manifest, records, "")
        return self.loom.endpoint.prompt(messages[:-1] or messages)

    def next_logits(self, text: str) -> NoReturn:
        """Raises EngineUnsupportedError."""
        del text
        self.loom.refuse("logits")


class RemoteLoom(Loom):
    """A loom over an endpoint. `counts`: who counts for its model."""

    session_kind = RemoteSession
    pool: RemotePool

    def __init__(
        self,
        engine: RemoteEngine,
        store: TieredStore,
        rotator: Rotator,
        settings: Settings,
        home: Path,
        model: tuple[str, Path],
        counts: RemoteCounts,
    ) -> None:
        self.endpoint, self.counts = engine.endpoint, counts
        super().__init__(engine, store, rotator, settings, home, model)
        self.shelf.counts_exactly = counts.is_exact
        self.pool = RemotePool(self.device, self.endpoint, self.window)
        self.prompts = self.remote_prompts = RemotePrompts(
            self.builder, self.shelf, engine.fingerprint, self.endpoint, counts
        )

    # -- counting -----------------------------------------------------------------------------------------------

    @property
    def counts_exactly(self) -> bool:
        return self.counts.is_exact

    def counted(self, text: str) -> TokenCount:
        self._check_open()
        return self.counts.count(text)

    def count(self, text: str) -> int:
        """By the endpoint's own count where it has one, else estimated: `counted` says which."""
        return self.counted(text).num_tokens

    # -- asking -------------------------------------------------------------------------------------------------

    def runner(self, owner: SessionId, cancel: threading.Event, history: History | None = None) -> Runner:
        del owner
        return RemoteRunner(self, cancel, history)

    # -- sessions -----------------------------------------------------------------------------------------------

    def session(
        self,
        system: str | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the name that callers know
        name: str | None = None,
        fidelity: Fidelity | str | None = None,
    ) -> Session:
        """As for any loom; a fidelity other than exact raises EngineUnsupportedError."""
        checked = None if fidelity is None else self.checked_fidelity(fidelity)
        return super().session(system, id=id, name=name, fidelity=checked)

    def checked_fidelity(self, wanted: Fidelity | str) -> Fidelity:
        """Raises EngineUnsupportedError for anything but exact, UsageError for what there is not."""
        known = [mode.value for mode in Fidelity]
        name = wanted.value if isinstance(wanted, Fidelity) else wanted
        if name not in known:
            raise UsageError(f"there is no fidelity {name!r}; choose one of {', '.join(known)}")
        if Fidelity(name) is not Fidelity.EXACT:
            self.refuse(f"fidelity {name}")
        return Fidelity.EXACT

    def use_profile(self, name: str, session: Session, slots: Mapping[str, str] | None = None) -> list[Chunk]:
        """A profile's chunks, system prompt and settings; its fidelity belongs to models whose KV can be had."""
        self._check_open()
        profile: Profile = self._profiles.get(name).fill(slots)
        settings = {key: value for key, value in profile.settings.items() if key != FIDELITY}
        return bring_in(self, replace(profile, settings=settings), session)

    # -- the window ---------------------------------------------------------------------------------------------

    def automatic_window(self) -> int:
        """What the settings and the endpoint allow; its memory is its own business."""
        return automatic_window(self.settings, self.endpoint)

    # -- what needs KV ------------------------------------------------------------------------------------------

    def refuse(self, what: str) -> NoReturn:
        """Raises EngineUnsupportedError, saying why."""
        raise EngineUnsupportedError(f"{what} cannot be had: {self.engine.capabilities.why_not}")

    def offload(self, ref: str) -> int:
        """Raises EngineUnsupportedError: there is no KV here."""
        self.resolve(ref)
        self.refuse("KV to offload")

    def save(self, ref: str) -> int:
        """Raises EngineUnsupportedError: there is no KV here."""
        self.resolve(ref)
        self.refuse("KV to save")

    def restore(self, ref: str) -> int:
        """An erased chunk comes back. Raises EngineUnsupportedError for another: there is no KV to bring back."""
        chunk = self._resolve_erased(ref)
        if not self.catalog.get(chunk).is_erased:
            self.refuse("KV to restore")
        self.catalog.restore(chunk)
        return 0

    def chunk(self, ref: str) -> ChunkDetail:
        """Everything about one chunk but token ids, which are the server's."""
        detail = super().chunk(ref)
        return replace(detail, parts=tuple(replace(part, token_ids=()) for part in detail.parts))

    def status(self) -> LoomStatus:
        facts = self.endpoint.facts
        counting = "counted by the server" if self.counts_exactly else "estimated"
        return replace(
            super().status(), kv_type="", engine=f"{facts.server} at {self.endpoint.where}, tokens {counting}"
        )


def automatic_window(settings: Settings, endpoint: Endpoint) -> int:
    """The window that nobody asked for: what the endpoint serves now, else the target within its model's length."""
    facts = endpoint.facts
    limits = filter(None, (facts.window or settings.context_target, facts.max_window, settings.context_max))
    return min(limits)
