"""Finds the files behind paths, folders walked, in an order that does not change. Opens no file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kvloom.read.document import Skipped, SkipReason

LEFT_OUT_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages", "CVS"})
"""Beside hidden ones: what tools put there, not people."""


@dataclass(frozen=True)
class FoundFile:
    """A regular file as it looked when it was found; `path` is absolute."""

    name: str
    path: Path
    size_bytes: int
    mtime_ns: int


def files(paths: Iterable[Path]) -> Iterator[FoundFile | Skipped]:
    """Every file behind `paths`, each once; folders are walked by name, and what is left out is said."""
    walk = _Walk()
    for path in paths:
        yield from walk.given(canonical(path))


def canonical(path: Path | str) -> Path:
    """The absolute path by which a file is known however it is spelled; a link is known as itself."""
    path = Path(path)
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent), path.name)


def shown(name: str) -> str:
    """A file's name that can be printed and stored: what is no Unicode or would steer a terminal is replaced."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


@dataclass(frozen=True)
class _Entry:
    name: str
    path: Path


class _Walk:
    """One run: remembers what it has been to."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], str] = {}

    def given(self, path: Path) -> Iterator[FoundFile | Skipped]:
        name = shown(path.name or str(path))
        try:
            found = path.stat()
        except (OSError, ValueError) as exc:
            yield _unreachable(name, path, exc)
            return
        if not stat.S_ISDIR(found.st_mode):
            yield self._file(_Entry(name, path), found)
            return
        num_yielded = 0
        for item in self._folder(_Entry(name, path), found):
            num_yielded += 1
            yield item
        if not num_yielded:
            yield Skipped(name, "is an empty folder: there is nothing to read", path, SkipReason.EMPTY)

    def _folder(self, root: _Entry, found: os.stat_result) -> Iterator[FoundFile | Skipped]:
        """Walks without recursion: folders may lie deeper than Python's stack."""
        if skipped := self._repeated(root, found):
            yield skipped
            return
        real_root = Path(os.path.realpath(root.path))
        waiting: list[_Entry] = self._listed(root)
        if self._failed is not None:
            yield self._failed
        while waiting:
            entry = waiting.pop()
            item = self._look(entry, real_root)
            if isinstance(item, FoundFile | Skipped):
                yield item
                continue
            waiting += self._listed(entry)
            if self._failed is not None:
                yield self._failed

    _failed: Skipped | None = None

    def _listed(self, folder: _Entry) -> list[_Entry]:
        """What lies in a folder, last name first; `_failed` says whether it could not be listed."""
        self._failed = None
        try:
            paths = sorted(folder.path.iterdir(), reverse=True)
        except OSError as exc:
            self._failed = _unreachable(folder.name, folder.path, exc)
            return []
        return [_Entry(f"{folder.name}/{shown(path.name)}", path) for path in paths]

    def _look(self, entry: _Entry, real_root: Path) -> FoundFile | Skipped | None:
        """A file, why something is passed over, or None for a folder to be walked."""
        path, base = entry.path, entry.path.name
        if base.startswith(".") or base in LEFT_OUT_FOLDERS:
            what = "is hidden" if base.startswith(".") else "holds what tools wrote"
            return Skipped(entry.name, f"{what} and is left out: name it itself to read it", path, SkipReason.LEFT_OUT)
        try:
            found = path.stat()
            target = Path(os.path.realpath(path)) if path.is_symlink() else real_root
        except (OSError, ValueError) as exc:
            return _unreachable(entry.name, path, exc)
        if not target.is_relative_to(real_root):
            why = f"links to {shown(str(target))}, outside of the folder: name that itself to read it"
            return Skipped(entry.name, why, path, SkipReason.LEFT_OUT)
        if stat.S_ISDIR(found.st_mode):
            return self._repeated(entry, found)
        return self._file(entry, found)

    def _file(self, entry: _Entry, found: os.stat_result) -> FoundFile | Skipped:
        path = entry.path
        if not stat.S_ISREG(found.st_mode):
            why = "is a device, pipe or socket: only regular files can be read"
            return Skipped(entry.name, why, path, SkipReason.NOT_TEXT)
        return self._repeated(entry, found) or FoundFile(entry.name, path, found.st_size, found.st_mtime_ns)

    def _repeated(self, entry: _Entry, found: os.stat_result) -> Skipped | None:
        """Ends loops of links, and keeps a file from being read twice; the first to come is remembered."""
        first = self._seen.setdefault((found.st_dev, found.st_ino), entry.name)
        if first is entry.name:
            return None
        why = f"is {first} again, by a link or by being named twice"
        return Skipped(entry.name, why, entry.path, SkipReason.REPEATED)


def _unreachable(name: str, path: Path, exc: OSError | ValueError) -> Skipped:
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        if path.is_symlink():
            return Skipped(name, "is a link to nothing", path, SkipReason.GONE)
        return Skipped(name, "is not there: check the name", path, SkipReason.GONE)
    if isinstance(exc, PermissionError):
        return Skipped(name, "may not be read: check its permissions", path, SkipReason.UNREADABLE)
    why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return Skipped(name, f"cannot be read ({why})", path, SkipReason.UNREADABLE)
