"""`kvloom libraries …`: what a home has read to look questions up in. Loads no model; knows the façade only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.library_view import (
    MAX_SKIPPED,
    found_view,
    known_library,
    libraries_table,
    library_view,
    updated_lines,
)
from kvloom.cli.line import check_utf8
from kvloom.cli.long_text import STANDARD_INPUT, check_there, question_on_input
from kvloom.cli.options import HOME, Options, file_path, takes
from kvloom.cli.registry import did_you_mean
from kvloom.errors import ContentError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvloom.session.home_libraries import HomeLibraries
    from kvloom.session.libraries import DocumentInfo, ReadLimits, StoredLibrary, Updated
    from kvloom.session.values import ProgressCallback

app = typer.Typer(
    help="List, make, search and delete libraries: what was read for `kvloom ask`.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A library's name, as `libraries list` shows it.")]
NamesArgument = Annotated[list[str], typer.Argument(metavar="NAME", help="Libraries, by name.")]


def libraries_of(options: Options) -> HomeLibraries:
    """The libraries of the home that the options name."""
    from kvloom.session.home_libraries import HomeLibraries

    return HomeLibraries(options.paths.home)


@contextmanager
def known(options: Options, name: str, limits: ReadLimits | None = None) -> Iterator[StoredLibrary]:
    """The library of that name. Raises UsageError with the nearest names where there is none."""
    home = libraries_of(options)
    library = home.open(known_library(name, home.names()), limits)
    try:
        yield library
    finally:
        library.close()


@app.command("list")
@takes(HOME)
def list_(options: Options) -> None:
    """List the libraries of the home.

    Those that `kvloom ask BOOK` made for itself are among them, below.
    """
    found = libraries_of(options).libraries()
    options.output.emit({"libraries": found}, lambda: libraries_table(found))


@app.command("show")
@takes(HOME)
def show(options: Options, name: NameArgument) -> None:
    """Show a library's documents."""
    with known(options, name) as library:
        info, documents = library.info(), library.documents()
        roots = [str(path) for path in library.roots()]
    data = {"library": info, "roots": roots, "documents": [_document(one) for one in documents]}
    options.output.emit(data, lambda: library_view(info, documents, roots))


def _document(document: DocumentInfo) -> dict[str, object]:
    from kvloom.session.libraries import is_given

    return {
        "name": document.name,
        # A document that was handed over has no file.
        "path": None if is_given(document) else document.path,
        "kind": document.kind,
        "size_bytes": document.size_bytes,
        "num_passages": document.num_passages,
        "note": document.note,
        "digest": document.digest,
    }


@app.command("add")
@takes(HOME)
def add(
    options: Options,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The library; made where there is none of that name.")],
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", parser=file_path, help="Files and folders, also PDF and HTML.")
    ],
) -> None:
    """Read files and folders into a library.

    What is known and unchanged is not read again. After Ctrl-C the same command goes on where it stopped.
    """
    from kvloom.config import create_home

    check_there(paths)
    limits = options.read_limits()
    home = libraries_of(options)
    is_new = not home.has(name)
    create_home(options.paths)
    library = home.open(name, limits)
    try:
        updated = _read(options, library, lambda progress, stopped: library.add(paths, progress, stopped))
        info = library.info()
    finally:
        is_empty = not library.documents()
        library.close()
        if is_new and is_empty:  # a name that nothing is behind would only be found in the list
            home.delete(name)
    if is_new and is_empty:
        why = "; ".join(f"{skipped.name} {skipped.why}" for skipped in updated.skipped[:MAX_SKIPPED])
        raise ContentError(f"there is no text in {', '.join(map(str, paths))}: {why or 'no file was found'}")
    view = (
        f"{info.name}: {amounts.counted(info.num_documents, 'document')}, "
        f"{amounts.counted(info.num_passages, 'passage')}"
    )
    options.output.emit({"library": info, "updated": updated}, amounts.printable(view))


@app.command("refresh")
@takes(HOME)
def refresh(options: Options, names: NamesArgument) -> None:
    """Read again what has changed.

    Everything that was ever added: what is new comes in, what is gone leaves.
    """
    home, limits, done = libraries_of(options), options.read_limits(), []
    every = home.names()
    for name in dict.fromkeys([known_library(name, every) for name in names]):
        with known(options, name, limits) as library:
            updated = _read(options, library, library.refresh)
            done.append({"library": library.info(), "updated": updated})
            if not updated_lines(name, updated):
                options.output.note(f"{name}: nothing has changed")
    shown = ", ".join(dict.fromkeys(names))
    options.output.emit({"refreshed": done}, f"refreshed: {amounts.printable(shown)}")


def _read(
    options: Options, library: StoredLibrary, update: Callable[[ProgressCallback, Callable[[], bool]], Updated]
) -> Updated:
    """Carries an update out and says what it did. Raises CancelledError after Ctrl-C."""
    from kvloom.cli.chat import Stop, cancel_on_interrupt

    stop = Stop()
    with options.output.progress() as progress, cancel_on_interrupt(stop):
        updated = update(progress, stop.is_cancelled)
    stop.check("stopped: the same command goes on where it stopped")
    for line in updated_lines(library.name, updated):
        options.output.note(line)
    return updated


@app.command("remove")
@takes(HOME)
def remove(
    options: Options,
    name: NameArgument,
    documents: Annotated[
        list[str], typer.Argument(metavar="DOCUMENT", help="Documents, by name as `libraries show` lists them.")
    ],
) -> None:
    """Remove documents from a library; their files stay."""
    with known(options, name) as library:
        there = {one.name: one for one in library.documents()}
        # Every name is looked up first: a wrong one among them removes nothing.
        wanted = [there[_known_document(library, word, list(there))] for word in dict.fromkeys(documents)]
        for one in wanted:
            library.remove(one.name)
        roots, info = library.roots(), library.info()
    again = [one.name for one in wanted if any(root in one.path.parents for root in roots)]
    if again:
        options.output.note(
            f"{', '.join(again)}: in a folder that belongs to the library; `kvloom libraries refresh` reads it again"
        )
    shown = ", ".join(one.name for one in wanted)
    data = {"library": info, "removed": [one.name for one in wanted], "comes_back": again}
    options.output.emit(data, f"removed: {amounts.printable(shown)}")


def _known_document(library: StoredLibrary, name: str, names: Sequence[str]) -> str:
    if name in names:
        return name
    raise UsageError(
        f"library {library.name} has no document {name!r}{did_you_mean(name, names)}; `kvloom libraries show` lists "
        f"the {len(names)} that it has"
    )


@app.command("search")
@takes(HOME)
def search(
    options: Options,
    name: NameArgument,
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What to look up; - reads it from standard input.")
    ],
    limit: Annotated[int, typer.Option("--limit", min=1, max=256, metavar="N", help="Most passages to show.")] = 8,
    text: Annotated[bool, typer.Option("--text", help="Show the passages themselves, too.")] = False,
) -> None:
    """Look a question up in a library, without any model.

    The passages that `kvloom ask` would choose from, with their places, scores and the words they were found by.
    """
    asked = question_on_input() if question == STANDARD_INPUT else check_utf8(question, "the question")
    if not asked.strip():
        raise UsageError("the question is empty; give it as the last argument, or on standard input with -")
    with known(options, name) as library:
        found = library.search(asked, limit)
    data = [{**_plain(one), "label": one.label} for one in found]
    options.output.emit({"library": name, "found": data}, lambda: found_view(found, with_text=text))


def _plain(value: object) -> dict[str, object]:
    from kvloom.cli.output import jsonable

    plain: dict[str, object] = jsonable(value)
    return plain


@app.command("delete")
@takes(HOME)
def delete(
    options: Options,
    names: NamesArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete libraries.

    The files that were read stay, and so does the KV of passages that were chosen before.
    """
    home = libraries_of(options)
    every = home.names()
    wanted = list(dict.fromkeys(known_library(name, every) for name in names))
    shown = amounts.printable(", ".join(wanted))
    if not yes:
        if not options.is_interactive:
            raise UsageError(f"nothing was deleted: say --yes to delete {shown}, nobody is here to be asked")
        if not typer.confirm(f"Delete {shown}?"):
            options.output.emit({"deleted": []}, "nothing was deleted")
            return
    for name in wanted:
        home.delete(name)
    options.output.emit({"deleted": wanted}, f"deleted: {shown}")
