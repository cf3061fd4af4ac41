"""Profiles: named sets of chunks, a system prompt and settings, with slots to fill. Knows no session.

Sources are chunk references, paths and globs; paths and globs are read afresh at every use.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from kvloom.chunk.database import Database
from kvloom.errors import ContentError, StoreError, UsageError

_SLOT = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")
_GLOB = re.compile(r"[*?\[]")
_NAME = re.compile(r"[\w.-]{1,64}\Z")


@dataclass(frozen=True)
class Profile:
    """`sources` in the order of the block; `{slot}` in sources, system and settings is filled on use, `{{` is `{`."""

    name: str
    sources: tuple[str, ...] = ()
    system: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> tuple[str, ...]:
        """The names to fill, in the order of their first use."""
        texts = (*self.sources, self.system, *self.settings.values())
        return tuple(dict.fromkeys(m[1] for text in texts for m in _SLOT.finditer(text) if m[1]))

    def fill(self, values: Mapping[str, str] | None = None) -> Profile:
        """The profile with every slot filled. Raises UsageError for a missing or unknown one."""
        given = dict(values or {})
        missing = [slot for slot in self.slots if slot not in given]
        if missing:
            wanted = " ".join(f"{slot}=…" for slot in missing)
            raise UsageError(f"profile {self.name!r} has slots that are not filled: {wanted}")
        unknown = [slot for slot in given if slot not in self.slots]
        if unknown:
            has = f"its slots are {', '.join(self.slots)}" if self.slots else "it has none"
            raise UsageError(f"profile {self.name!r} has no slot {', '.join(map(repr, unknown))}: {has}")

        def put(text: str) -> str:
            return _SLOT.sub(lambda m: given[m[1]] if m[1] else m[0][0], text)

        settings = {key: put(value) for key, value in self.settings.items()}
        return Profile(self.name, tuple(put(source) for source in self.sources), put(self.system), settings)


def expand(source: str, folder: Path) -> tuple[Path, ...]:
    """The files that a path or glob names now, sorted; empty where it is neither: then it is a chunk reference.

    Raises ContentError where a glob names nothing.
    """
    path = Path(source).expanduser()
    path = path if path.is_absolute() else folder / path
    if path.exists():
        return (path,)
    if not _GLOB.search(source):
        return ()
    pattern = path.relative_to(path.anchor).as_posix()
    skips_hidden = "/." not in f"/{source}"
    found = sorted(
        name
        for name in Path(path.anchor).glob(pattern)
        if name.is_file() and not (skips_hidden and _is_hidden(name, folder))
    )
    if not found:
        raise ContentError(f"{source} names no file in {folder}")
    return tuple(found)


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether `**` has run into something like `.git` below the folder."""
    below = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
    return any(part.startswith(".") for part in below.parts)


class ProfileStore:
    """The profiles of a home. Raises StoreError where the database fails."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._db = database
        self._clock = clock

    def save(self, profile: Profile) -> None:
        """Store a profile, in place of one of the same name. Raises UsageError for a name that cannot be typed."""
        if not _NAME.match(profile.name):
            raise UsageError(f"{profile.name!r} cannot be a profile's name: letters, digits, '.', '_' and '-' only")
        body = msgspec.json.encode(asdict(profile)).decode()
        now = self._clock()
        self._db.execute(
            "INSERT INTO profiles VALUES (?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET body = excluded.body, updated_s = excluded.updated_s",
            (profile.name, body, now, now),
        )

    def get(self, name: str) -> Profile:
        """Raises UsageError, with near names."""
        rows = self._db.rows("SELECT body FROM profiles WHERE name = ?", (name,))
        if not rows:
            near = difflib.get_close_matches(name, [p.name for p in self.list()], n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UsageError(f"no profile is called {name!r}{hint}")
        return _profile(name, rows[0][0])

    def list(self) -> tuple[Profile, ...]:
        """All profiles by name."""
        rows = self._db.rows("SELECT name, body FROM profiles ORDER BY name")
        return tuple(_profile(name, body) for name, body in rows)

    def delete(self, name: str) -> None:
        """Raises UsageError where there is none."""
        if not self._db.execute("DELETE FROM profiles WHERE name = ?", (name,)):
            self.get(name)


def _profile(name: str, body: str) -> Profile:
    try:
        return msgspec.json.decode(body, type=Profile)
    except msgspec.MsgspecError as exc:
        raise StoreError(f"profile {name!r} is damaged ({exc}): delete it and save it again") from exc
