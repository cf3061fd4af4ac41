"""Finds a stored session by what a person calls it, writes it to a file and reads it back. Knows the façade only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kvloom.cli.output import jsonable
from kvloom.cli.registry import did_you_mean
from kvloom.errors import ContentError, StoreError, UnknownSessionError, UsageError

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session
    from kvloom.session.values import SessionInfo

MIN_PREFIX_DIGITS = 6
"""Hex digits of a session's id that may stand for it: as for chunks."""


class HasSessions(Protocol):
    """What lists stored sessions: a loom, or a home without one."""

    def sessions(self) -> list[SessionInfo]: ...


def find_session(loom: HasSessions, ref: str) -> SessionInfo:
    """The session of that id, name, or prefix of an id. Raises UnknownSessionError with near names,
    UsageError where several fit.
    """
    known = loom.sessions()
    found = [info for info in known if ref in (info.id, info.name)]
    if not found and len(ref) >= MIN_PREFIX_DIGITS:
        found = [info for info in known if info.id.startswith(ref.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        candidates = ", ".join(f"{info.id} ({info.name})" for info in found)
        raise UsageError(f"{ref!r} names {len(found)} sessions: {candidates}; give the id")
    near = did_you_mean(ref, [info.name for info in known if info.name])
    raise UnknownSessionError(
        f"no session is called {ref!r}{near}; `kvloom sessions list` shows the {len(known)} there are"
    )


def resume(loom: Loom, ref: str | None) -> Session:
    """The session opened again, with its KV; None is the one used last. Raises UnknownSessionError."""
    info = loom.latest_session() if ref is None else find_session(loom, ref)
    if info is None:
        raise UnknownSessionError(f"there is no session to continue in {loom.home}; `kvloom chat` starts one")
    return loom.session(id=info.id)


def write_export(loom: Loom, ref: str, path: Path) -> int:
    """A session as a JSON file of its own, readable by its owner; its size in bytes. Never writes over a file."""
    text = json.dumps(jsonable(loom.export_session(find_session(loom, ref).id)), ensure_ascii=False, indent=1)
    data = text.encode("utf-8")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as exc:
        raise UsageError(f"{path} is there already; give another name, or move it away first") from exc
    except OSError as exc:
        raise StoreError(f"{path} cannot be written: {exc.strerror or exc}") from exc
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return len(data)


def read_export(loom: Loom, path: Path) -> SessionInfo:
    """The session of an exported file, stored in this home. Raises ContentError where the file is no export."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ContentError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise ContentError(f"{path} is no exported session: {exc}") from exc
    if not isinstance(data, dict):
        raise ContentError(f"{path} is no exported session: it holds a JSON {type(data).__name__}, not an object")
    return loom.import_session(data)
