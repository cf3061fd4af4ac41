"""The libraries of a home, without any model: listed, opened, deleted. Knows their files only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvloom.errors import StoreError, UsageError
from kvloom.index import LibraryIndex
from kvloom.session.libraries import FOLDER, LibraryInfo, ReadLimits, StoredLibrary, file_of, is_adhoc, names_in


@dataclass(frozen=True)
class ListedLibrary(LibraryInfo):
    """A library in a list. `fault`: why it cannot be opened ("" where it can); nothing is counted of it then."""

    fault: str = ""


class HomeLibraries:
    """What `loom.library`, `libraries` and `delete_library` do, where no loom is open. Nothing is made by looking."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def names(self) -> list[str]:
        """Those of ad-hoc libraries last."""
        return sorted((name for name in names_in(self.home) if self._is_ours(name)), key=lambda n: (is_adhoc(n), n))

    def libraries(self) -> list[ListedLibrary]:
        """As `names`; a damaged one does not hide the others."""
        return [self.listed(name) for name in self.names()]

    def listed(self, name: str) -> ListedLibrary:
        """One as it stands in the list. Where it is gone or damaged, that is its fault; none is made."""
        if not self.has(name):
            return ListedLibrary(name, 0, 0, 0, is_adhoc(name), "it is not in this home any more")
        try:
            library = self.open(name)
        except StoreError as error:
            return self._faulty(name, error)
        try:
            info = library.info()
            return ListedLibrary(name, info.num_documents, info.num_passages, info.size_bytes, info.is_adhoc)
        except StoreError as error:
            return self._faulty(name, error)
        finally:
            library.close()

    def has(self, name: str) -> bool:
        """Raises UsageError for what cannot be a library's name."""
        return file_of(self.home, name).is_file()

    def open(self, name: str, limits: ReadLimits | None = None) -> StoredLibrary:
        """The library of this name, new where there is none; the caller closes it. Raises UsageError, StoreError."""
        file = file_of(self.home, name)
        (self.home / FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
        return StoredLibrary(name, file, limits)

    def delete(self, name: str) -> None:
        """A library gone, damaged or not; the files that were read, and passages that became chunks, stay."""
        LibraryIndex.delete(file_of(self.home, name))

    def _is_ours(self, name: str) -> bool:
        """Whether a file of the folder is one that a name leads to: what somebody put there is none of ours."""
        try:
            return self.has(name)
        except UsageError:
            return False

    def _faulty(self, name: str, error: StoreError) -> ListedLibrary:
        size_bytes = file_of(self.home, name).stat().st_size
        return ListedLibrary(name, 0, 0, size_bytes, is_adhoc(name), str(error))
