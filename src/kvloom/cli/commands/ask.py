"""`kvloom ask` and `kvloom count`: one question about files or whole books, and exact token counts. Know the façade
only."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.library_view import MAX_SKIPPED, explanation, known_library, updated_lines
from kvloom.cli.line import check_utf8
from kvloom.cli.long_text import STANDARD_INPUT, ReadText, check_there, question_on_input, read_each
from kvloom.cli.options import LOOM, TALK, Options, file_path, num_tokens, takes
from kvloom.errors import CancelledError, ContentError, ContextOverflowError, UsageError

if TYPE_CHECKING:
    from kvloom.cli.output import Output, ProgressView
    from kvloom.cli.screen import Screen
    from kvloom.session.libraries import Library, Updated
    from kvloom.session.loom import Loom
    from kvloom.session.precompute import Precomputed
    from kvloom.session.session import Session
    from kvloom.session.values import Chunk, Reply


@takes(TALK)
def ask(  # noqa: PLR0913 - each is one option of the command line
    options: Options,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[BOOK]... QUESTION",
            help="Files and folders of any length to look the question up in, then the question; - reads it from "
            "standard input.",
        ),
    ],
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", metavar="FILE", parser=file_path, help="A file that is read whole; may be repeated."
        ),
    ] = None,
    library: Annotated[
        list[str] | None,
        typer.Option(
            "--library",
            "-l",
            metavar="NAME",
            help="A library to look the question up in, as it stands (see `kvloom libraries`); may be repeated.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System prompt.")] = None,
    precompute: Annotated[
        bool,
        typer.Option(
            "--precompute",
            help="Compute the KV of all passages of the books and libraries first; goes on where it stopped.",
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which passages were chosen, why, and what they cost.")
    ] = False,
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, max=256, metavar="N", help="Most passages to choose.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", parser=num_tokens(1), help="Longest reply, in tokens."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            min=0,
            metavar="T",
            help="0 always takes the likeliest token, and is the default of models that are loaded here.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Same seed, same reply.")] = None,
) -> None:
    """Ask one question about files.

    Books may be of any length, also folders, PDF and HTML: they are indexed once, and the passages that the question
    needs are taken out of them, or of a library that stands under a name. The KV of what was read is stored: the next
    question about it starts at once.
    """
    from kvloom.cli.screen import JsonScreen, TextScreen

    *given, question = words
    books = _books(given)
    check_there(file or [])
    text = _question(question)
    named = list(dict.fromkeys(library or []))
    if not (books or named) and (precompute or explain or depth is not None):
        raise UsageError(
            "--precompute, --explain and --depth are about books: name one before the question, or a --library"
        )
    _check_libraries(options, named)
    output = options.output
    way_on = "--max-tokens lets it be longer"
    screen: Screen = JsonScreen() if options.json else TextScreen(output, echoes=False, way_on=way_on)
    with output.progress() as progress, options.open_loom(progress) as loom:
        if depth is not None:
            recall = loom.settings.recall.model_copy(update={"depth": depth})
            loom.settings = loom.settings.model_copy(update={"recall": recall})
        opened = _opened(loom, books, output, progress) if books else None
        libraries = [*([opened.library] if opened is not None else []), *(loom.library(name) for name in named)]
        precomputed = _precomputed(libraries, progress) if precompute else None
        session = loom.session(system=system)
        try:
            chunks = [_loaded(session, path) for path in file or []]
            if libraries:
                session.attach(*libraries)
            # The model's own is for talk: drawn so, an answer from a text is another each time. A remote one may not
            # take any.
            if temperature is None and loom.settings.sampling.temperature is None and loom.status().kv_type:
                temperature = 0.0
            # Without a text at hand the model would make an answer up.
            must_find = bool(libraries) and not chunks
            reply = _stream(
                session, text, screen, max_tokens=max_tokens, temperature=temperature, seed=seed, must_find=must_find
            )
        finally:
            # One question is no conversation: what stays is the KV of the files.
            loom.delete_session(session.id)
        if options.json:
            more: dict[str, object] = {"library": opened.document()} if opened is not None else {}
            more |= {"libraries": [one.info() for one in libraries], "precomputed": precomputed} if libraries else {}
            output.emit({**_document(reply, chunks), **more}, "")
        elif explain:
            output.console.print(explanation(reply.sources))


def _books(given: list[str]) -> list[Path]:
    """What is in front of the question. Raises UsageError, ContentError for what is no file or folder."""
    if STANDARD_INPUT in given:
        raise UsageError(
            "- is the question on standard input, and stands last; a text to ask about is given as a file: save "
            "it first"
        )
    books = [file_path(book) for book in given]
    check_there(books, "; all but the last argument are books, so put a question in quotes")
    return books


def _question(given: str) -> str:
    """The last argument, or standard input for it. Raises UsageError for what is no question."""
    if given == STANDARD_INPUT:
        text = question_on_input()
    elif os.path.exists(given):  # noqa: PTH110 - Path's raises for a long text
        raise UsageError(
            f"{given} is there as a file or folder: give the question about it in quotes as the last argument (a "
            "question that is a file's name, too, can be given on standard input with -)"
        )
    else:
        text = check_utf8(given, "the question")
    if not text.strip():
        raise UsageError("the question is empty; give it as the last argument, or on standard input with -")
    return text


def _loaded(session: Session, path: Path) -> Chunk:
    """A file read whole. Raises ContextOverflowError that names the way for what is too long for that."""
    try:
        return session.load(path)
    except ContextOverflowError as exc:
        raise ContextOverflowError(
            f"{path} is too long to be read whole: that takes a window of {exc.num_needed_tokens:,} tokens, and it has "
            f'{exc.num_window_tokens:,}; name it as a book instead: kvloom ask {shlex.quote(str(path))} "…"',
            num_needed_tokens=exc.num_needed_tokens,
            num_window_tokens=exc.num_window_tokens,
        ) from exc


@dataclass(frozen=True)
class _Opened:
    """The library of the books of a question, and what had to be read for it."""

    library: Library
    updated: Updated

    def document(self) -> dict[str, object]:
        return {"name": self.library.name, "num_documents": len(self.library.documents()), "updated": self.updated}


def _check_libraries(options: Options, names: list[str]) -> None:
    """Raises UsageError for a name that no library has, before a model is loaded for it."""
    from kvloom.session.home_libraries import HomeLibraries

    known = HomeLibraries(options.paths.home).names() if names else []
    for name in names:
        known_library(name, known)


def _precomputed(libraries: list[Library], progress: ProgressView) -> Precomputed:
    """All of their passages; the numbers of all together. Raises CancelledError after Ctrl-C."""
    from kvloom.cli.chat import Stop, cancel_on_interrupt
    from kvloom.session.precompute import Precomputed

    stop, done = Stop(), Precomputed(0, 0, 0, 0)
    for library in libraries:
        with cancel_on_interrupt(stop):
            one = library.precompute(progress, stop.is_cancelled)
        done = Precomputed(
            done.num_passages + one.num_passages,
            done.num_computed + one.num_computed,
            done.num_known + one.num_known,
            done.computed_tokens + one.computed_tokens,
            done.is_complete and one.is_complete,
            done.num_too_long + one.num_too_long,
        )
        stop.check(
            f"stopped: {done.num_known + done.num_computed} of {done.num_passages} passages are computed; the same "
            "command goes on where it stopped"
        )
    progress.clear()
    return done


def _opened(loom: Loom, books: list[Path], output: Output, progress: ProgressView) -> _Opened:
    """The books as a library, read as far as they are not known. Raises ContentError where there is nothing in them."""
    from kvloom.cli.chat import Stop, cancel_on_interrupt
    from kvloom.session.libraries import adhoc_name

    library, stop = loom.library(adhoc_name(books)), Stop()
    with cancel_on_interrupt(stop):
        updated = library.add(books, progress, stop.is_cancelled)
    documents = library.documents()
    if not documents:  # a library that nothing is in would only be found in the list
        loom.delete_library(library.name)
    stop.check(
        f"stopped with {amounts.counted(len(documents), 'document')} indexed: the same command goes on where it stopped"
    )
    progress.clear()
    for line in updated_lines(library.name, updated):
        output.note(line)
    if not documents:
        why = "; ".join(f"{skipped.name} {skipped.why}" for skipped in updated.skipped[:MAX_SKIPPED])
        raise ContentError(f"there is no text in {', '.join(map(str, books))}: {why or 'no file was found'}")
    return _Opened(library, updated)


def _stream(session: Session, text: str, screen: Screen, **sampling: float | None) -> Reply:
    from kvloom.cli.chat import cancel_on_interrupt

    reply: Reply | None = None
    try:
        with (
            screen.progress() as progress,
            cancel_on_interrupt(session),
            session.stream(text, progress=progress, **sampling) as stream,  # type: ignore[arg-type]
        ):
            for delta in stream:
                progress.clear()
                screen.delta(delta)
            reply = stream.reply
    except CancelledError as exc:
        raise CancelledError("stopped: the KV of what was read is kept; the same command starts from there") from exc
    finally:
        screen.reply_ended(reply)
    return reply


def _document(reply: Reply, chunks: list[Chunk]) -> dict[str, object]:
    return {
        "text": reply.text,
        "reasoning": reply.reasoning,
        "finish_reason": reply.finish_reason,
        "usage": reply.usage,
        "notices": reply.notices,
        "chunks": chunks,
        "sources": reply.sources,
    }


@takes(LOOM)
def count(
    options: Options,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Text, Markdown, source, HTML or PDF files, or folders; - is standard input."
        ),
    ],
) -> None:
    """Count the tokens of files, as the model sees them.

    Exactly, or marked with ~ where the model is behind an endpoint that counts nothing beforehand.
    """
    output = options.output
    found = read_each(files, options.read_limits())
    found.tell(output)
    with output.progress() as progress, options.open_loom(progress) as loom:
        rows = [_counted(loom, text) for text in found.texts]
        model = loom.status().model
    total = sum(row.num_tokens for row in rows)
    is_estimate = any(row.is_estimate for row in rows)
    lines = [
        f"{amounts.tokens(row.num_tokens, is_estimate=row.is_estimate):>12}  {amounts.printable(row.file)}"
        for row in rows
    ]
    if len(rows) > 1:
        lines.append(f"{amounts.tokens(total, is_estimate=is_estimate):>12}  total")
    data = {"model": model, "files": rows, "num_tokens": total, "is_estimate": is_estimate}
    output.emit(data, "\n".join(lines))


@dataclass(frozen=True)
class Counted:
    """One file's count; `is_estimate` where the model is behind an endpoint that counts nothing beforehand."""

    file: str
    num_tokens: int
    num_characters: int
    is_estimate: bool


def _counted(loom: Loom, read: ReadText) -> Counted:
    count = loom.counted(read.text)
    return Counted(read.name, count.num_tokens, len(read.text), count.is_estimate)


def register(app: typer.Typer) -> None:
    app.command("ask")(ask)
    app.command("count")(count)
