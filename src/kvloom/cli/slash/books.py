"""Files that are too long for the window, in a chat: read into a library that every question is looked up in, read
anew, told by the file's name.

Knows the façade only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.cli import amounts
from kvloom.cli.chat import Stop, cancel_on_interrupt
from kvloom.cli.library_view import MAX_SKIPPED, updated_lines
from kvloom.errors import CancelledError, ContentError, KvloomError, UsageError
from kvloom.session.libraries import adhoc_name, meant_by

if TYPE_CHECKING:
    from kvloom.cli.chat import Chat
    from kvloom.session.libraries import Library, Updated

BYTES_PER_TOKEN = 4
"""Of English text, about; code and other languages take fewer, and are then tried as chunks first."""
SHARE = 0.5
"""Of the window: a file that takes more leaves no room to talk about it."""
PDF = ".pdf"


@dataclass(frozen=True)
class Book:
    """A library that was made for one path of `/load`, and what was read for it."""

    path: Path
    library: Library
    updated: Updated

    def lines(self) -> list[str]:
        documents = self.library.documents()
        num_passages = sum(document.num_passages for document in documents)
        of = f"{amounts.counted(len(documents), 'document')}, " if len(documents) > 1 else ""
        return [
            *updated_lines(self.library.name, self.updated),
            f"{self.path.name} is looked up passage by passage ({of}{amounts.counted(num_passages, 'passage')}): every "
            "question gets those that it needs; /recall off stops that",
        ]

    def document(self) -> dict[str, object]:
        return {"name": self.library.name, "path": str(self.path), "updated": self.updated}


def wants_library(chat: Chat, path: Path) -> bool:
    """Whether a path is better looked up than read whole; a person is asked where both would do."""
    if path.is_dir() or path.suffix.lower() == PDF:
        return True
    try:
        num_tokens = path.stat().st_size // BYTES_PER_TOKEN
    except OSError:  # told where it is loaded
        return False
    window = chat.session.window
    if num_tokens <= SHARE * window:
        return False
    if chat.confirm is None or num_tokens > window:
        return True
    return chat.confirm(
        f"{path.name} has about {amounts.tokens(num_tokens)} tokens, and the window is {amounts.tokens(window)}. Look "
        "it up passage by passage instead of reading it whole?"
    )


def open_book(chat: Chat, path: Path) -> Book:
    """The path as a library, attached. Raises ContentError where there is no text in it."""
    library = chat.loom.library(adhoc_name([path]))
    stop = Stop()
    with chat.screen.progress() as progress, cancel_on_interrupt(stop):
        updated = library.add(path, progress, stop.is_cancelled)
    is_empty = not library.documents()
    if is_empty:  # a library that nothing is in would only be found in the list
        chat.loom.delete_library(library.name)
    stop.check(f"stopped: {path.name} is not attached; /load goes on where it stopped")
    if is_empty:
        why = "; ".join(f"{skipped.name} {skipped.why}" for skipped in updated.skipped[:MAX_SKIPPED])
        raise ContentError(f"there is no text in {path}: {why or 'no file was found'}")
    chat.session.attach(library)
    return Book(path, library, updated)


def attached_as(chat: Chat, word: str) -> str | None:
    """The attached library of this name, or that was made for this file; None where it is a chunk's, or nothing's.

    Raises UsageError where several were made for files of this name.
    """
    libraries = chat.session.libraries
    is_chunk = any(part.kind == "chunk" and part.name == word for part in chat.session.usage().segments)
    found = [name for name in libraries if name == word] if is_chunk else meant_by(word, libraries)
    if len(found) > 1:
        raise UsageError(f"{len(found)} attached libraries are called {word!r}; name one of {', '.join(found)}")
    return found[0] if found else None


@dataclass(frozen=True)
class Refreshed:
    """What reading the files of a library anew did to it."""

    name: str
    updated: Updated

    @property
    def is_changed(self) -> bool:
        return bool(self.updated.num_added or self.updated.num_changed or self.updated.num_removed)


def refresh_books(chat: Chat, failures: list[KvloomError]) -> list[Refreshed]:
    """Those files of the attached libraries that changed are read anew; a library that is gone or damaged goes to
    `failures`. Raises CancelledError after Ctrl-C."""
    done, stop = [], Stop()
    with chat.screen.progress() as progress, cancel_on_interrupt(stop):
        for name in chat.session.libraries:
            try:
                if not chat.loom.has_library(name):
                    raise UsageError(f"library {name} is not in this home any more; /deactivate {name} detaches it")
                updated = chat.loom.library(name).refresh(progress, stop.is_cancelled)
            except CancelledError:
                raise
            except KvloomError as error:  # the others may be read all the same
                failures.append(error)
                continue
            stop.check("stopped: /reload goes on where it stopped")
            done.append(Refreshed(name, updated))
    return done
