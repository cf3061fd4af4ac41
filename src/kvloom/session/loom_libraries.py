"""The library side of a loom: opening, listing and deleting libraries of its home.

Part of `Loom`, which makes what is declared here. Knows no conversation.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kvloom.errors import UsageError
from kvloom.index import LibraryIndex
from kvloom.session.home_libraries import HomeLibraries, ListedLibrary
from kvloom.session.libraries import FOLDER, Library, file_of, names_in
from kvloom.types import ChunkId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


class LoomLibraries(ABC):
    """What a loom knows of libraries."""

    home: Path
    _libraries: dict[str, Library]
    _libraries_lock: threading.Lock

    @abstractmethod
    def _check_open(self) -> None:
        """Raises LoomClosedError after `close()`."""

    def library(self, name: str) -> Library:
        """The library of this name, new where there is none. Raises UsageError for what cannot be a name."""
        self._check_open()
        file = file_of(self.home, name)
        with self._libraries_lock:
            found = self._libraries.get(name)
            if (
                found is not None and not file.is_file()
            ):  # deleted by somebody else: ours would fill a file without name
                found.close()
                found = None
            if found is None:
                (self.home / FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
                found = self._libraries[name] = Library(cast("Loom", self), name, file)
            return found

    def has_library(self, name: str) -> bool:
        """Whether there is one; none is made."""
        return file_of(self.home, name).is_file()

    def libraries(self) -> list[ListedLibrary]:
        """Those of this home, ad-hoc ones last; a damaged one is told with its fault."""
        self._check_open()
        return HomeLibraries(self.home).libraries()

    def delete_library(self, name: str) -> None:
        """A library and its index gone; files, and passages that became chunks, stay. Raises UsageError."""
        self._check_open()
        file = file_of(self.home, name)
        if not file.is_file():
            known = ", ".join(names_in(self.home)) or "there is none yet"
            raise UsageError(f"there is no library {name!r}; libraries here: {known}")
        with self._libraries_lock:
            opened = self._libraries.pop(name, None)
            if opened is not None:
                opened.close()
            LibraryIndex.delete(file)

    def _open_libraries(self) -> None:
        self._libraries = {}
        self._libraries_lock = threading.Lock()

    def _close_libraries(self) -> None:
        with self._libraries_lock:
            for library in self._libraries.values():
                library.close()
            self._libraries.clear()

    def _forget_passage(self, chunk: ChunkId) -> None:
        """A chunk that is purged is in no library of this home any more."""
        for name in names_in(self.home):
            self.library(name).forget(chunk)
