"""What the commands over long texts share: reading files, and saying how far work came. Knows the façade only."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.cli.line import check_utf8
from kvloom.errors import ContentError, UsageError

if TYPE_CHECKING:
    from kvloom.cli.output import Output, ProgressView
    from kvloom.session.libraries import ReadLimits
    from kvloom.session.values import Progress

STANDARD_INPUT = "-"
_ADDRESS = re.compile(r"(https?|ftp|file):/", re.IGNORECASE)
"""As a path shows it, which has one slash where an address has two."""
_MAX_TOLD = 5
"""Files that gave no text, or not plainly, are told by name up to so many; a folder may hold thousands."""
_MAX_BLANK_BYTES = 64 * 1024
"""Of a file that is looked at for whether it is only white space."""


@dataclass(frozen=True)
class ReadText:
    """A text and what to call it. `note`: what was done to read it, where that was not plain."""

    name: str
    text: str
    note: str = ""

    def tell(self, output: Output) -> None:
        """How it was read, as a note, where there is something to say."""
        if self.note:
            output.note(f"{self.name}: {self.note}")


def read_one(path: Path, limits: ReadLimits) -> ReadText:
    """The text of one file, or of standard input. Raises ContentError, also for a folder of more than one."""
    return the_only_one(read_all([path], limits), path)


def the_only_one(found: ReadTexts, path: Path) -> ReadText:
    """Raises ContentError for a folder of more than one text."""
    if len(found.texts) > 1:
        raise ContentError(f"{path} holds {len(found.texts)} texts, and one is wanted: name one file")
    return found.texts[0]


def read_each(paths: Sequence[Path], limits: ReadLimits) -> ReadTexts:
    """The texts of files and folders as `read_all` reads them, in the order of `paths` and under their names.

    A file that holds nothing, or only white space, is a text of its own here. Raises ContentError for the first path
    that gives no text, and UsageError for standard input twice.
    """
    _check_input_once(paths)
    check_there(path for path in paths if str(path) != STANDARD_INPUT)
    found = [_read_named(path, limits) for path in paths]
    return ReadTexts(
        tuple(text for one in found for text in one.texts), tuple(line for one in found for line in one.skipped)
    )


def _read_named(path: Path, limits: ReadLimits) -> ReadTexts:
    if str(path) == STANDARD_INPUT:
        return ReadTexts((replace(standard_input(limits), name=STANDARD_INPUT),), ())
    blank = _blank(path)
    if blank is not None:
        return ReadTexts((ReadText(str(path), blank),), ())
    found = read_all([path], limits)
    if path.expanduser().is_dir():
        return found
    return replace(found, texts=tuple(replace(text, name=str(path)) for text in found.texts))


def _blank(path: Path) -> str | None:
    """What a file holds that is only white space."""
    path = path.expanduser()
    if not path.is_file() or path.stat().st_size > _MAX_BLANK_BYTES:
        return None
    try:
        data = path.read_bytes()
    except OSError:  # the reader of files says why
        return None
    return None if data.strip() else data.decode("ascii")


@dataclass(frozen=True)
class ReadTexts:
    """`skipped`: the names of files that gave no text, with the reason."""

    texts: tuple[ReadText, ...]
    skipped: tuple[str, ...]

    def tell(self, output: Output) -> None:
        """What was left out, and what was not read plainly, as notes."""
        _tell_some([f"left out {line}" for line in self.skipped], "left out", output)
        _tell_some([f"{text.name}: {text.note}" for text in self.texts if text.note], "so also", output)


def _tell_some(lines: Sequence[str], what: str, output: Output) -> None:
    for line in lines[:_MAX_TOLD]:
        output.note(line)
    if len(lines) > _MAX_TOLD:
        output.note(f"{what} {len(lines) - _MAX_TOLD:,} more")


def _check_input_once(paths: Sequence[Path]) -> None:
    if sum(str(path) == STANDARD_INPUT for path in paths) > 1:
        raise UsageError("standard input (-) is named more than once, and it can be read once: name it once")


def check_there(paths: Iterable[Path], hint: str = "") -> None:
    """Raises ContentError for the first file or folder that is not there."""
    for path in paths:
        if not path.expanduser().exists():
            if _ADDRESS.match(str(path)):
                address = _ADDRESS.sub(r"\1://", str(path))
                raise ContentError(f"{address}: addresses are not fetched; save the page or file, and name that")
            raise ContentError(f"{path}: no such file or folder{hint}")


def read_all(paths: Sequence[Path], limits: ReadLimits) -> ReadTexts:
    """The texts of files and folders.

    Raises ContentError where there is none, and for a path that does not exist; UsageError for standard input twice.
    """
    from kvloom.session.long_texts import read_files

    _check_input_once(paths)
    check_there(path for path in paths if str(path) != STANDARD_INPUT)
    texts: list[ReadText] = []
    skipped: list[str] = []
    if any(str(path) == STANDARD_INPUT for path in paths):
        texts.append(standard_input(limits))
    files = [path for path in paths if str(path) != STANDARD_INPUT]
    if files:
        found = read_files(files, limits)
        texts += [ReadText(one.name, one.text, one.note) for one in found.documents]
        skipped += [f"{one.name} {one.why}" for one in found.skipped]
    return ReadTexts(tuple(texts), tuple(skipped))


def standard_input(limits: ReadLimits) -> ReadText:
    """All of it, with its line ends as they are, read as a text file is. Raises ContentError where it is no text."""
    from kvloom.session.long_texts import read_input

    name = "standard input"
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        return ReadText(name, sys.stdin.read())
    data: bytes = stream.read()
    if not data.strip():
        return ReadText(name, data.decode("ascii"))
    found = read_input(data, name, limits)
    return ReadText(name, found.text, found.note)


def question_on_input() -> str:
    """All of standard input as a question. Raises UsageError where it is not UTF-8."""
    data = getattr(sys.stdin, "buffer", None)
    if data is None:
        return sys.stdin.read()
    return check_utf8(data.read().decode("utf-8", "surrogateescape"), "standard input")


class ToldProgress:
    """Shows progress and remembers that of one unit, to say how far work came that was stopped."""

    def __init__(self, view: ProgressView, unit: str) -> None:
        self._view, self._unit = view, unit
        self._last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.unit == self._unit:
            self._last = progress
        self._view(progress)

    def left_words(self) -> str:
        done = f"{self._last.done} of {self._last.total} {self._last.unit} are done and kept" if self._last else ""
        return f"{done or 'nothing was begun'}; run it again to go on"
