"""Slash commands on chunks: load, reload, switch, order, move between tiers, erase. Knows the façade only."""

from __future__ import annotations

import glob
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.cli import amounts
from kvloom.cli.context_view import trace_notes, used_tokens
from kvloom.cli.library_view import updated_lines
from kvloom.cli.options import file_path
from kvloom.cli.registry import Arguments, Result, slash
from kvloom.cli.slash import completion
from kvloom.cli.slash.books import Book, attached_as, open_book, refresh_books, wants_library
from kvloom.errors import CancelledError, ContentError, KvloomError, UnknownChunkError
from kvloom.session.recall import MIN_REF_CHARS

if TYPE_CHECKING:
    from kvloom.cli.chat import Chat
    from kvloom.session.loom import Loom
    from kvloom.session.values import Chunk, Reloaded, Turn

GROUP = "Chunks"

GLOB_CHARACTERS = frozenset("*?[")


def expand(pattern: str) -> list[Path]:
    """The files that a word names: itself, or what a glob matches (`**` goes into folders).

    Raises UsageError for an empty name, ContentError where nothing matches.
    """
    path = file_path(pattern).expanduser()
    if path.exists() or not GLOB_CHARACTERS.intersection(pattern):
        return [path]
    # glob.glob takes a pattern with folders and ~ as it stands; Path.glob would need it cut at the first wildcard.
    found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = [match for match in found if match.is_file()]
    if not files:
        raise ContentError(f"no file matches {pattern} (looked in {Path.cwd()})")
    return files


def place(chat: Chat, ref: str) -> tuple[int, int]:
    """First position and the position after the last one of a chunk in this context."""
    parts = [part for part in chat.session.usage().segments if part.kind == "chunk" and part.ref == ref]
    return (min(part.start for part in parts), max(part.stop for part in parts)) if parts else (0, 0)


@slash(
    "/load FILE…",
    "Add files as chunks and switch them on; globs work. Of folders, PDF and files that would fill half of the window "
    "every question gets the passages that it needs.",
    group=GROUP,
    complete=completion.files,
)
def load(chat: Chat, args: Arguments) -> Result:
    loaded: list[Chunk] = []
    failures: list[KvloomError] = []
    books: list[Book] = []
    for word in args.some("file"):
        try:
            for path in expand(word):
                if wants_library(chat, path):
                    books.append(open_book(chat, path))
                    continue
                chunk = _load_one(chat, path, failures)
                loaded += [chunk] if chunk is not None else []
        except CancelledError:  # Ctrl-C is for all that was asked for, not for this one
            raise
        except KvloomError as exc:
            failures.append(exc)
    if loaded:
        chat.warm()
    rows = []
    lines = []
    for chunk in loaded:
        start, stop = place(chat, chunk.id)
        rows.append(
            {"id": chunk.id, "name": chunk.name, "num_tokens": chunk.num_tokens, "start": start, "stop": stop,
             "num_parts": chunk.num_parts, "is_new": chunk.is_new}
        )  # fmt: skip
        lines.append(_loaded_line(chunk, start, stop))
    lines += [line for book in books for line in book.lines()]
    data: dict[str, object] = {"loaded": rows}
    if books:
        data["libraries"] = [book.document() for book in books]
    return Result(data, "\n".join(lines) or None, tuple(failures))


def _load_one(chat: Chat, path: Path, failures: list[KvloomError]) -> Chunk | None:
    try:
        return chat.session.load(path)
    except CancelledError:
        raise
    except KvloomError as exc:
        failures.append(exc)
        return None


def _loaded_line(chunk: Chunk, start: int, stop: int) -> str:
    known = "" if chunk.is_new else ", known already"
    parts = f" in {chunk.num_parts} parts" if chunk.num_parts > 1 else ""
    return (
        f"loaded {amounts.short_id(chunk.id)} {chunk.name}: "
        f"{amounts.tokens(chunk.num_tokens, is_estimate=chunk.is_estimate)} tokens{parts}, "
        f"positions {amounts.positions(start, stop)}{known}"
    )


@slash(
    "/reload",
    "Take in the files of this context that changed on disk, each in its place, and those of the attached libraries.",
    group=GROUP,
)
def reload(chat: Chat, args: Arguments) -> Result:
    args.none()
    failures: list[KvloomError] = []
    refreshed = refresh_books(chat, failures)
    moved: list[Reloaded] = []
    try:
        moved = chat.session.reload()
    except ContentError as error:  # what the libraries read is told all the same
        failures.append(error)
    if moved:
        chat.warm()
    lines = [reloaded_line(item) for item in moved]
    if not moved and not failures and not any(book.is_changed for book in refreshed):
        lines.append("no file of this context has changed")
    lines += [line for book in refreshed for line in updated_lines(book.name, book.updated)]
    return Result({"reloaded": moved, "libraries": refreshed}, "\n".join(lines) or None, tuple(failures))


def reloaded_line(item: Reloaded) -> str:
    return (
        f"{item.name}: {amounts.short_id(item.old)} → {amounts.short_id(item.new)}, "
        f"{item.num_parts_changed} of {item.num_parts} parts changed"
    )


@slash("/activate ID…", "Switch chunks on; the model sees them again.", group=GROUP, complete=completion.chunks)
def activate(chat: Chat, args: Arguments) -> Result:
    refs = args.some("chunk")
    chat.session.activate(*refs)
    return _switched(chat, refs, "on")


@slash(
    "/deactivate ID…",
    "Switch chunks off; the model no longer attends to them, their KV is kept. An attached library, by its name or its "
    "file's, is detached.",
    group=GROUP,
    complete=completion.context_chunks_and_libraries,
)
def deactivate(chat: Chat, args: Arguments) -> Result:
    refs = args.some("chunk or library")
    books = {ref: name for ref in refs if (name := attached_as(chat, ref)) is not None}
    chunks = tuple(ref for ref in refs if ref not in books)
    detached = tuple(dict.fromkeys(books.values()))
    if chunks:  # the first: a wrong name among them is refused before anything is detached
        chat.session.deactivate(*chunks)
    if detached:
        chat.session.detach(*detached)
    return _switched(chat, chunks, "off", detached)


def _switched(chat: Chat, refs: tuple[str, ...], state: str, detached: tuple[str, ...] = ()) -> Result:
    usage = chat.session.usage()
    named = [_named(chat, ref) for ref in refs]
    notes = trace_notes(usage)
    lines = [f"{state}: {', '.join(name for _, name in named)}"] if named else []
    if detached:
        lines.append(f"detached: {', '.join(detached)}: no question is looked up there any more; /undo takes it back")
    lines += [*notes, f"{used_tokens(usage)} of {amounts.tokens(usage.capacity)} tokens used"]
    data = {"ids": [chunk for chunk, _ in named], "state": state, "used": usage.used, "notes": notes}
    if detached:
        data["detached"] = detached
    return Result(data, "\n".join(lines))


def _named(chat: Chat, ref: str) -> tuple[str, str]:
    """A chunk's id, and what to call it in a message."""
    try:
        chunk = str(chat.loom.resolve(ref))
    except UnknownChunkError:
        # It is erased, or known in this context alone: the command itself decides whether that will do.
        chunk = ref
    for segment in chat.session.usage().segments:
        if segment.kind == "chunk" and (segment.ref == chunk or segment.name == chunk):
            return segment.ref, f"{segment.name} ({amounts.short_id(segment.ref)})"
    return chunk, ref if ref == chunk else f"{ref} ({amounts.short_id(chunk)})"


@slash(
    "/move ID N",
    "Put a chunk at place N of the block of chunks, counted from 0.",
    group=GROUP,
    complete=completion.one_context_chunk,
)
def move(chat: Chat, args: Arguments) -> Result:
    if len(args.words) != 2:
        raise args.wrong(f"takes a chunk and a place, got {len(args.words)}")
    ref, place_text = args.words
    if not place_text.lstrip("-").isdigit():
        raise args.wrong(f"the place is a whole number, got {place_text!r}")
    chat.session.move(ref, int(place_text))
    segments = [segment for segment in chat.session.usage().segments if segment.kind == "chunk"]
    order = list(dict.fromkeys(segment.ref for segment in segments))
    names = {segment.ref: segment.name for segment in segments}
    return Result({"order": order}, f"order: {', '.join(names[chunk] for chunk in order)}")


def _pin(chat: Chat, args: Arguments, *, pinned: bool) -> Result:
    ref = args.one("chunk or turn")
    chat.session.pin(ref, pinned)
    turn = _turn(chat, ref)
    found, name = (turn.id, f"turn {turn.number}") if turn is not None else _named(chat, ref)
    return Result({"id": found, "pinned": pinned}, f"{'pinned' if pinned else 'unpinned'}: {name}")


def _turn(chat: Chat, ref: str) -> Turn | None:
    """The turn of a number or of an id's beginning, as `Session.pin` reads them: a number is a turn before a name."""
    turns = chat.session.history()
    if ref.isdigit() and 1 <= int(ref) <= len(turns):
        return turns[int(ref) - 1]
    found = [turn for turn in turns if len(ref) >= MIN_REF_CHARS and turn.id.startswith(ref)]
    return found[0] if len(found) == 1 else None


slash(
    "/pin ID|TURN",
    "Keep a chunk or a turn in the window and its KV in RAM, whatever the policy says.",
    group=GROUP,
    complete=completion.one_context_part,
)(partial(_pin, pinned=True))
slash("/unpin ID|TURN", "Let a chunk or a turn leave again.", group=GROUP, complete=completion.one_context_part)(
    partial(_pin, pinned=False)
)


def _tier_command(usage: str, about: str, act: Callable[[Loom, str], int], where: str) -> None:
    """A command that moves a chunk's KV between tiers."""

    def run(chat: Chat, args: Arguments) -> Result:
        ref = args.one("chunk")
        num_bytes = act(chat.loom, ref)
        # Named afterwards: /restore brings back what could not be found before.
        chunk, name = _named(chat, ref)
        status = chat.loom.chunk(chunk).status
        data = {"id": chunk, "bytes": num_bytes, "tier": status.tier}
        return Result(data, f"{name}: {amounts.size(num_bytes)} {where}")

    slash(usage, about, group=GROUP, complete=completion.one_chunk)(run)


_tier_command(
    "/offload ID",
    "Move a chunk's KV off the device, to RAM and disk.",
    lambda loom, ref: loom.offload(ref),
    "off the device",
)
_tier_command("/save ID", "Write a chunk's KV to disk.", lambda loom, ref: loom.save(ref), "on disk")
_tier_command(
    "/restore ID",
    "Bring a chunk's KV from disk to RAM; takes /erase back.",
    lambda loom, ref: loom.restore(ref),
    "in RAM",
)


@slash(
    "/purge ID",
    "Remove a chunk for good: its KV in every tier, its text, and its part in every session.",
    group=GROUP,
    complete=completion.one_chunk,
)
def purge(chat: Chat, args: Arguments) -> Result:
    ref = args.one("chunk")
    chunk, name = _named(chat, ref)
    freed = chat.session.purge(ref)
    return Result({"id": chunk, "bytes": freed}, f"gone for good: {name}, {amounts.size(freed)} freed")


@slash(
    "/erase ID",
    "Take a chunk out of this context and the store; /undo or /restore brings it back.",
    group=GROUP,
    complete=completion.one_chunk,
)
def erase(chat: Chat, args: Arguments) -> Result:
    ref = args.one("chunk")
    chunk, name = _named(chat, ref)
    chat.session.erase(ref)
    return Result({"id": chunk}, f"erased: {name}; /undo or /restore {amounts.short_id(chunk)} brings it back")
