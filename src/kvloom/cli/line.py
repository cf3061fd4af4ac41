"""Parses what is typed into a chat: a question, or a slash command with its words.

Knows no command's name and no session.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvloom.errors import UsageError

FENCE = '"""'
"""Opens and closes a question of many lines."""


@dataclass(frozen=True)
class Question:
    """Text for the model, exactly as typed."""

    text: str


@dataclass(frozen=True)
class Command:
    """A slash command: its name without the slash, its words with quotes taken off, and the text behind the name."""

    name: str
    words: tuple[str, ...]
    rest: str


Line = Question | Command


def check_utf8(text: str, what: str) -> str:
    """The text. Raises UsageError where bytes of it are no UTF-8: those stand in it as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        place, byte = len(text[: exc.start].encode()), os.fsencode(text[exc.start])
        raise UsageError(
            f"{what} is not UTF-8 text: byte {place} (0x{byte.hex()}) cannot be read; convert it first "
            "(iconv -f LATIN1 -t UTF-8)"
        ) from exc
    return text


def parse_line(text: str) -> Line:
    """A line that starts with one slash is a command; `//` starts a question that begins with a slash.

    Raises UsageError where a quote is left open.
    """
    stripped = text.strip()
    if stripped.startswith("//"):
        return Question(stripped[1:])
    if not stripped.startswith("/"):
        return Question(stripped)
    name, _, rest = stripped[1:].partition(" ")
    rest = rest.strip()
    return Command(name.lower(), split_words(rest), rest)


def split_words(text: str) -> tuple[str, ...]:
    """Words as a shell splits them: "…" and '…' keep blanks, a backslash quotes one character."""
    try:
        return tuple(shlex.split(text))
    except ValueError as exc:
        raise UsageError(
            f"a quote is not closed in: {text} (put the name in quotes, or a backslash before a single one)"
        ) from exc


def opens_fence(line: str) -> bool:
    """Whether more lines belong to this one: it starts with `\"\"\"` and does not end with another."""
    stripped = line.strip()
    return stripped.startswith(FENCE) and not (len(stripped) >= 2 * len(FENCE) and stripped.endswith(FENCE))


def unfence(text: str) -> str:
    """The text between the fences, with the line breaks next to them taken off."""
    inner = text.strip().removeprefix(FENCE).removesuffix(FENCE)
    return inner.removeprefix("\n").removesuffix("\n")


def read_fenced(first: str, next_line: Callable[[], str | None]) -> str:
    """The whole of a fenced text whose first line is `first`. `next_line` returns None at the end of the input.

    Raises UsageError where the input ends before the closing fence.
    """
    lines = [first]
    while True:
        line = next_line()
        if line is None:
            raise UsageError(f"the input ended inside {FENCE} … {FENCE} (opened with: {first.strip()[:40]})")
        lines.append(line)
        if line.rstrip().endswith(FENCE):
            return unfence("\n".join(lines))


@dataclass(frozen=True)
class ScriptLine:
    """One unit of a script: what to show when it is run, and what it means."""

    shown: str
    parse: Callable[[], Line]


def read_script(lines: Iterator[str]) -> Iterator[ScriptLine]:
    """Splits a script into units: a line each, fenced texts as one, empty lines left out.

    Parsing is left to the caller, so that everything before a wrong line is run first.
    """

    def following() -> str | None:
        line = next(lines, None)
        return None if line is None else line.rstrip("\n")

    for raw in lines:
        line = raw.rstrip("\n")
        if not line.strip():
            continue
        try:
            check_utf8(line, "the line")
        except UsageError as exc:
            yield ScriptLine(line.strip().encode(errors="replace").decode(), _failing(exc))
            return
        if not line.strip().startswith(FENCE):
            yield ScriptLine(line.strip(), lambda line=line: parse_line(line))  # type: ignore[misc]
            continue
        try:
            text = read_fenced(line, following) if opens_fence(line) else unfence(line)
            check_utf8(text, f"the text in {FENCE} … {FENCE}")
        except UsageError as exc:
            yield ScriptLine(line.strip(), _failing(exc))
            return
        yield ScriptLine(f"{FENCE}\n{text}\n{FENCE}" if "\n" in text else text, lambda text=text: Question(text))  # type: ignore[misc]


def _failing(failure: UsageError) -> Callable[[], Line]:
    """What parses a line that cannot be: it fails when its turn has come."""

    def parse() -> Line:
        raise failure

    return parse
