"""The libraries that a loom and its tenants have open: few, whatever they have touched. Knows no index.

Each takes a connection, three file handles and up to 16 MB of SQLite's pages.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom import sqlite_files

if TYPE_CHECKING:
    from kvloom.session.libraries import Library

_Identity = tuple[int, int]

MAX_IDLE = 4
"""Libraries that stay open though nobody holds them: what a conversation is looked up in, question by question."""


class OpenLibraries:
    """By the file of each. One that somebody holds stays open; of the others, those that were asked for last.

    Safe for several threads.
    """

    def __init__(self, max_idle: int = MAX_IDLE) -> None:
        self._max_idle = max_idle
        self._lock = threading.RLock()
        # Weak: a library that nobody holds any more closes its index as it is collected.
        self._open: weakref.WeakValueDictionary[Path, Library] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[Path, Library] = OrderedDict()
        # Which file each has open. No other can be given its number as long as it is.
        self._identities: weakref.WeakKeyDictionary[Library, _Identity] = weakref.WeakKeyDictionary()

    def get(self, file: Path, make: Callable[[], Library]) -> Library:
        """The library in `file`, which `make` opens where it is not open."""
        with self._lock:
            found = self.find(file)
            if found is None:
                found = self._open[file] = self._made(file, make)
            self._recent[file] = found
            self._recent.move_to_end(file)
            while len(self._recent) > self._max_idle:
                self._recent.popitem(last=False)
            return found

    def find(self, file: Path) -> Library | None:
        """The same if it is open; it becomes no younger by that."""
        with self._lock:
            found = self._open.get(file)
            if found is not None and self._identities.get(found) != _identity(file):
                self.close(file)  # deleted by somebody else, and perhaps made anew: ours is a file without name
                return None
            return found

    def close(self, file: Path) -> None:
        """Whoever holds it: it is not there any more."""
        with self._lock:
            self._recent.pop(file, None)
            found = self._open.pop(file, None)
        if found is not None:
            found.close()

    def delete(self, file: Path, remove: Callable[[Path], None]) -> None:
        """Closed, and gone by `remove`, before anybody can open it again: that would be a file without name."""
        with self._lock:
            self.close(file)
            remove(file)

    def close_folder(self, folder: Path) -> None:
        """Every one in this folder."""
        with self._lock:
            files = [file for file in list(self._open.keys()) if file.parent == folder]
        for file in files:
            self.close(file)

    def _made(self, file: Path, make: Callable[[], Library]) -> Library:
        sqlite_files.create(file)
        # Looked at first: were the file another one when it is opened, it is opened once more, and not never.
        identity = _identity(file)
        made = make()
        if identity is not None:
            self._identities[made] = identity
        return made


def _identity(file: Path) -> _Identity | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
