"""The libraries of a session: attached, detached, searched or not. Writes the next manifest; knows no index.

Part of `Session`, which makes what is declared here. What a question gets of them is chosen when it is asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest
from kvloom.context.placing import with_passages
from kvloom.errors import UsageError
from kvloom.session.budget import Budget
from kvloom.session.desk import Desk
from kvloom.session.home_libraries import HomeLibraries, ListedLibrary

if TYPE_CHECKING:
    from kvloom.session.libraries import Library
    from kvloom.session.loom import Loom


class SessionLibraries:
    """The libraries that every question of a session is looked up in."""

    loom: Loom
    _desk: Desk
    _budget: Budget

    @property
    def libraries(self) -> tuple[str, ...]:
        """The names of the attached ones, kept with the session."""
        return self._desk.manifest.libraries

    def attached(self) -> list[ListedLibrary]:
        """The attached ones as they stand in the home; one that is gone or damaged is told with its fault."""
        home = HomeLibraries(self.loom.home)
        return [home.listed(name) for name in self.libraries]

    @property
    def is_recalling(self) -> bool:
        """Whether questions are looked up in them."""
        return self._desk.manifest.recalls

    def attach(self, *libraries: Library | str) -> None:
        """Look every question up in these libraries, too. Raises UsageError for a name that no library has."""
        with self._desk.editing():
            manifest = self._desk.manifest
            names = [self._name_of(library) for library in libraries]
            every = tuple(dict.fromkeys((*manifest.libraries, *names)))
            self._desk.commit("attach " + " ".join(names), replace(manifest, libraries=every, recalls=True))

    def detach(self, *libraries: Library | str) -> None:
        """These libraries (all, where none is named) are not looked at any more, and what they brought in leaves."""
        with self._desk.editing():
            manifest = self._desk.manifest
            names = [library if isinstance(library, str) else library.name for library in libraries]
            names = names or list(manifest.libraries)
            unknown = [name for name in names if name not in manifest.libraries]
            if unknown:
                attached = ", ".join(manifest.libraries) or "none is"
                raise UsageError(f"library {unknown[0]!r} is not attached to this session; attached: {attached}")
            left = tuple(name for name in manifest.libraries if name not in names)
            self._leave("detach " + " ".join(names), replace(manifest, libraries=left))

    def set_recall(self, recalls: bool) -> None:
        """Whether questions are looked up in the attached libraries. Off, what they brought in leaves."""
        with self._desk.editing():
            manifest = replace(self._desk.manifest, recalls=recalls)
            if recalls:
                self._desk.commit("recall on", manifest)
            else:
                self._leave("recall off", manifest)

    def _leave(self, operation: str, manifest: Manifest) -> None:
        """All passages go: those of libraries that stay come back with the next question that wants them."""
        self._desk.commit(operation, self._budget.fitting(with_passages(manifest, ())))

    def _name_of(self, library: Library | str) -> str:
        if not isinstance(library, str):
            return library.name
        if not self.loom.has_library(library):
            known = ", ".join(one.name for one in self.loom.libraries()) or "there is none yet"
            raise UsageError(f"there is no library {library!r}; libraries here: {known}")
        return library
