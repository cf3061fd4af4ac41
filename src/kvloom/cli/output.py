"""Where a command's result, notes, progress and errors go: stdout or stderr, as a view or as one JSON document.

Knows values and views, no command and no session. Rich is imported when something is shown, not before.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kvloom.cli import amounts
from kvloom.errors import AmbiguousChunkError, ContextOverflowError, KvloomError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from kvloom.session.values import Progress

PLAIN_WIDTH = 120
"""Columns of a table where the output is no terminal: ids and numbers stay on one line."""

PLAIN_PROGRESS_EVERY_S = 5.0
"""Where stderr is no terminal, one line of progress per task at most this often."""

_SLOW_UNITS = frozenset({"windows", "parts"})
"""Each takes seconds: where stderr is no terminal, a line says at once how many there are."""

DEBUG_VARIABLE = "KVLOOM_DEBUG"
"""Set to 1: an unexpected error shows its traceback."""


def jsonable(value: object) -> Any:
    """Plain JSON values of dataclasses, enums, paths, mappings, sequences and numpy scalars or arrays.

    NaN and infinities become null: JSON has none.
    """
    if isinstance(value, Enum):
        return jsonable(value.value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(jsonable(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [jsonable(item) for item in value]
        return sorted(items) if isinstance(value, (set, frozenset)) else items
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def error_document(error: BaseException) -> dict[str, Any]:
    """`{"error": {"type", "message", …}}` with the numbers and candidates that the error carries."""
    body: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, ContextOverflowError):
        body["num_needed_tokens"] = error.num_needed_tokens
        body["num_window_tokens"] = error.num_window_tokens
    if isinstance(error, AmbiguousChunkError):
        body["candidates"] = [{"id": chunk, "name": name} for chunk, name in error.candidates]
    return {"error": body}


def error_text(error: BaseException) -> str:
    """One message for a person: what a kvloom error says, or what happened and how to see the traceback."""
    if isinstance(error, AmbiguousChunkError):
        missing = [item for item in error.candidates if amounts.short_id(item[0]) not in str(error)]
        listed = ", ".join(f"{amounts.short_id(chunk)} ({name})" for chunk, name in missing)
        return f"{error}: {listed}" if missing else str(error)
    if isinstance(error, KvloomError):
        return str(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"unexpected error ({what}); run again with {DEBUG_VARIABLE}=1 for the traceback, and please report it"


def show_traceback(error: BaseException) -> None:
    """An unexpected error's traceback on stderr, where it was asked for."""
    if os.environ.get(DEBUG_VARIABLE) and not isinstance(error, KvloomError):
        traceback.print_exception(error)


def make_console(stream: TextIO) -> Console:
    """A console that honours NO_COLOR and never reads names or file content as markup."""
    from rich.console import Console

    width = None if stream.isatty() else int(os.environ.get("COLUMNS") or PLAIN_WIDTH)
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


class Output:
    """One command's output. With `json`, stdout gets one document from `emit` and nothing else."""

    def __init__(self, *, json: bool = False) -> None:
        self.is_json = json
        self._console: Console | None = None
        self._notes: Console | None = None

    @property
    def console(self) -> Console:
        """Standard output."""
        if self._console is None:
            self._console = make_console(sys.stdout)
        return self._console

    @property
    def notes(self) -> Console:
        """Standard error."""
        if self._notes is None:
            self._notes = make_console(sys.stderr)
        return self._notes

    def emit(self, data: object, view: RenderableType | Callable[[], RenderableType]) -> None:
        """The command's result: `data` as JSON, or `view` (made only when it is shown)."""
        if self.is_json:
            write_json(data)
            return
        shown = view() if callable(view) else view
        self.console.print(shown, soft_wrap=isinstance(shown, str))

    def note(self, text: str) -> None:
        """Something a person may want to know while waiting; stderr."""
        if not self.is_json:
            self.notes.print(amounts.printable(text), style="dim", soft_wrap=True)

    def error(self, error: BaseException) -> None:
        """The error on stderr, as a message or as a JSON document."""
        show_traceback(error)
        if self.is_json:
            sys.stderr.write(json.dumps(error_document(error), ensure_ascii=False) + "\n")
            return
        from rich.text import Text

        self.notes.print(Text.assemble(("error: ", "bold red"), amounts.printable(error_text(error))), soft_wrap=True)

    def progress(self) -> ProgressView:
        """A context manager whose value is called with `Progress` values; nothing is shown with `json`."""
        return ProgressView(None if self.is_json else self.notes)


def write_json(data: object, *, indent: int | None = 2) -> None:
    """The data as one JSON document, or with `indent` None as one line, on stdout."""
    sys.stdout.write(json.dumps(jsonable(data), ensure_ascii=False, indent=indent, allow_nan=False) + "\n")
    sys.stdout.flush()


class ProgressView:
    """The running task on stderr: one bar in a terminal, otherwise a line now and then. Callable from any thread."""

    def __init__(self, console: Console | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._last_line = clock()
        self._bars: Bars | None = None
        self._bar: TaskID | None = None
        self._task = ""
        self._num_known = 0

    def __enter__(self) -> ProgressView:
        return self

    def __exit__(self, *exc: object) -> None:
        self.clear()

    def __call__(self, progress: Progress) -> None:
        if self._console is None:
            return
        if self._console.is_terminal:
            self._show_bar(progress)
        else:
            self._show_line(progress)

    def clear(self) -> None:
        """Takes the bar off the screen; the next progress puts a new one there."""
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._bar = None, None

    def _show_bar(self, progress: Progress) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        if progress.task != self._task:
            self.clear()
            self._task, self._num_known = progress.task, 0
        if self._bars is None or self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[count]}"))
            self._bars = Bars(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._bars.start()
            self._bar = self._bars.add_task(amounts.printable(progress.task), total=None, count="")
        if progress.num_known != self._num_known:  # the time that remains is reckoned from what follows
            self._num_known = progress.num_known
            self._bars.reset(self._bar, completed=progress.done)
        self._bars.update(self._bar, completed=progress.done, total=progress.total or None, count=_count(progress))

    def _show_line(self, progress: Progress) -> None:
        assert self._console is not None
        now = self._clock()
        # Work that ends before it was ever worth a line stays silent.
        is_beginning = progress.unit in _SLOW_UNITS and not progress.done
        if is_beginning or now - self._last_line >= PLAIN_PROGRESS_EVERY_S:
            self._last_line = now
            self._console.print(amounts.printable(f"{progress.task}: {_count(progress)}"), soft_wrap=True)


def _count(progress: Progress) -> str:
    if progress.unit == "bytes":
        done, total = amounts.size(progress.done), amounts.size(progress.total)
        return f"{done} / {total}" if progress.total else done
    done = amounts.tokens(progress.done)
    unit = f" {progress.unit}" if progress.unit else ""
    return f"{done} / {amounts.tokens(progress.total)}{unit}" if progress.total else f"{done}{unit}"
