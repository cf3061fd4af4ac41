"""What the commands over long texts share: reading files, and saying how far work came. Knows the façade only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.errors import ContentError

if TYPE_CHECKING:
    from kvloom.cli.output import Output, ProgressView
    from kvloom.session.values import Progress

STANDARD_INPUT = "-"
_MAX_SKIPPED_LINES = 5
"""Files that gave no text and are told by name; a folder may hold thousands."""


@dataclass(frozen=True)
class ReadText:
    """A text and what to call it."""

    name: str
    text: str


def read_one(path: Path) -> ReadText:
    """The text of one file, or of standard input. Raises ContentError, also for a folder of more than one."""
    found = read_all([path])
    if len(found.texts) > 1:
        raise ContentError(f"{path} holds {len(found.texts)} texts, and windows are laid over one: name one file")
    return found.texts[0]


@dataclass(frozen=True)
class ReadTexts:
    """`skipped`: the names of files that gave no text, with the reason."""

    texts: tuple[ReadText, ...]
    skipped: tuple[str, ...]

    def tell(self, output: Output) -> None:
        """What was left out, as notes."""
        for line in self.skipped[:_MAX_SKIPPED_LINES]:
            output.note(f"left out {line}")
        if len(self.skipped) > _MAX_SKIPPED_LINES:
            output.note(f"left out {len(self.skipped) - _MAX_SKIPPED_LINES} more")


def check_there(paths: Iterable[Path], hint: str = "") -> None:
    """Raises ContentError for the first file or folder that is not there."""
    for path in paths:
        if not path.expanduser().exists():
            raise ContentError(f"{path}: no such file or folder{hint}")


def read_all(paths: Sequence[Path]) -> ReadTexts:
    """The texts of files and folders. Raises ContentError where there is none, and for a path that does not exist."""
    from kvloom.session.long_texts import read_files

    check_there(path for path in paths if str(path) != STANDARD_INPUT)
    texts: list[ReadText] = []
    skipped: list[str] = []
    if any(str(path) == STANDARD_INPUT for path in paths):
        texts.append(ReadText("standard input", standard_input()))
    files = [path for path in paths if str(path) != STANDARD_INPUT]
    if files:
        found = read_files(files)
        texts += [ReadText(one.name, one.text) for one in found.documents]
        skipped += [f"{one.name}: {one.why}" for one in found.skipped]
    return ReadTexts(tuple(texts), tuple(skipped))


def standard_input() -> str:
    """All of it, with its line ends as they are. Raises ContentError where it is no text."""
    data = getattr(sys.stdin, "buffer", None)
    if data is None:
        return sys.stdin.read()
    try:
        return str(data.read().decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise ContentError(f"standard input is not UTF-8 text: byte {exc.start} cannot be read") from exc


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
