"""The library side of a loom: opening, listing and deleting libraries of its home.

Part of `Loom`, which makes what is declared here. Knows no conversation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kvloom.errors import StoreError, UsageError
from kvloom.index import LibraryIndex
from kvloom.session import embedders
from kvloom.session.embedders import Embedders
from kvloom.session.home_libraries import HomeLibraries, ListedLibrary
from kvloom.session.libraries import FOLDER, Library, file_of, names_in
from kvloom.session.open_libraries import OpenLibraries
from kvloom.types import ChunkId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


class LoomLibraries(ABC):
    """What a loom knows of libraries."""

    home: Path
    _libraries: OpenLibraries
    embedders: Embedders
    """What makes vectors of passages; one for all tenants, since nothing of a text stays in it."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raises LoomClosedError after `close()`."""

    def library(self, name: str) -> Library:
        """The library of this name, new where there is none. Raises UsageError for what cannot be a name."""
        self._check_open()
        file = file_of(self.home, name)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._libraries.get(file, lambda: Library(cast("Loom", self), name, file))

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
        self._libraries.delete(file, LibraryIndex.delete)

    def _open_libraries(self) -> None:
        self._libraries = OpenLibraries()
        loom = cast("Loom", self)
        self.embedders = embedders.of_loom(loom.settings, loom.engine, loom._model_path, self.home)

    def _close_libraries(self) -> None:
        self._libraries.close_folder(self.home / FOLDER)

    def _forget_passage(self, chunk: ChunkId) -> dict[str, StoreError]:
        """A chunk that is purged is in no library of this home any more, but in those that are given back with what
        kept it there: all the others are looked through first."""
        kept: dict[str, StoreError] = {}
        for name in HomeLibraries(self.home).names():
            file = file_of(self.home, name)
            library = self._libraries.find(file)
            try:
                if library is not None:
                    library.forget(chunk)
                    continue
                # Opened for this alone: a purge must not take the place of those that questions are looked up in.
                with LibraryIndex.open(file) as index:
                    index.forget(chunk)
            except StoreError as error:
                kept[name] = error
        return kept
