"""Reads PDF and HTML in a process of its own, which is ended when a file takes too long. Knows no disk and no index.

Parsers can be kept busy for hours by a few kilobytes, and be brought down by as many; nothing ends a thread. The
process is started with the first file that needs it, reads all that follow, and is started anew where it ended: a
system that is short of memory ends it as well, whatever is in the file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import IO, Self

from kvloom.errors import CancelledError, ContentError, StoreError
from kvloom.read.document import DocumentKind, Extract, ReadLimits
from kvloom.read.extract import extract, is_plain

MOST_S = 60.0
"""For a file of any size: seconds are many for a page and for most books."""
BYTES_PER_S = 50_000
"""What is given beyond that, by size: a dense page of a PDF has some 4 kB and takes some 10 ms."""
_LOOK_S = 0.05
"""Between two looks at whether it is still wanted."""
_END_S = 5.0
"""For a process that has closed its end of the pipe to be gone: it has nothing left to do."""
_MAX_SAID_CHARS = 200
"""Of what it said when it could not start: the last line of a traceback is shorter."""

READY = b"kvloom.read.child is ready\n"
"""Ends the first line that is the process's own: what is loaded into every Python may have printed before it."""

_Answer = dict[str, str]


@dataclass(frozen=True)
class _Order:
    """A file to be read, and by when (on the monotonic clock)."""

    name: str
    line: bytes
    data: bytes = field(repr=False)
    most_s: float
    until_s: float


class _NotStartedError(Exception):
    """The process ended by itself before it could read: it would with every file. Its words are the reason."""


class Apart:
    """Reads one file after the other. A context manager: behind it, nothing of the process is left.

    `most_s`: for each file; by default what its size may need, and generously. For one thread at a time.
    """

    def __init__(
        self, limits: ReadLimits, is_cancelled: Callable[[], bool] = lambda: False, most_s: float | None = None
    ) -> None:
        self._limits = limits
        self._is_cancelled = is_cancelled
        self._most_s = most_s
        self._child: _Child | None = None

    def extract(self, data: bytes, name: str) -> Extract:
        """`read.extract.extract`, for so long and no longer.

        Raises ContentError (from TimeoutError where it took too long, from ChildProcessError where the process ended
        each time), CancelledError once it is cancelled, StoreError where no process can be started.
        """
        if is_plain(data, name):
            return extract(data, name, self._limits)  # takes a moment, whatever is in it
        most_s = MOST_S + len(data) / BYTES_PER_S if self._most_s is None else self._most_s
        asked = {"name": name, "limits": asdict(self._limits), "size": len(data), "most_s": most_s}
        order = _Order(name, json.dumps(asked).encode() + b"\n", data, most_s, time.monotonic() + most_s)
        # Once more, since it may have ended by what the system is short of, before or during this file.
        found = self._answer(order) or self._answer(order)
        if found is None:
            raise ContentError(
                f"{name} could not be read: the process that reads it ended, and so did a second one; it is damaged, "
                "or takes more memory than it can have: try again later, or save it as plain text"
            ) from ChildProcessError("ended before it had answered")
        if "why" in found:
            raise ContentError(found["why"])
        return Extract(found["text"], DocumentKind(found["kind"]), found["note"])

    def close(self) -> None:
        """Idempotent."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _answer(self, order: _Order) -> _Answer | None:
        """What the process says of a file; None where it has ended."""
        if self._child is None:
            try:
                self._child = _Child()
            except OSError as exc:
                raise StoreError(f"no process could be started to read {order.name} ({exc}): ask again later") from exc
        is_alive = False
        try:
            answer = self._waited(self._child.ask(order), order)
            is_alive = answer is not None
            return answer
        except _NotStartedError as exc:
            raise StoreError(
                f"the process that is to read {order.name} cannot start ({exc}): check this Python's installation"
            ) from exc
        finally:
            if not is_alive:  # whatever ended it, Ctrl-C too: what it was at is not waited for
                self.close()

    def _waited(self, answer: Future[_Answer | None], order: _Order) -> _Answer | None:
        while True:
            if self._is_cancelled():
                raise CancelledError(f"reading {order.name} was cancelled")
            try:
                return answer.result(timeout=_LOOK_S)
            except TimeoutError as exc:
                if time.monotonic() > order.until_s:
                    raise ContentError(
                        f"{order.name} could not be read within {order.most_s:.3g} s: save it as plain text, or split "
                        "it"
                    ) from exc


class _Child:
    """The process, and the thread that speaks with it: a pipe can neither be written nor read with a clock."""

    def __init__(self) -> None:
        # -P: what lies in the working directory is not taken for our modules. A session of its own: Ctrl-C is for us.
        command = [sys.executable, "-P", "-m", "kvloom.read.child"]
        # Both of its outputs in one pipe, until it is ready: what it says of a start that fails is on either.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._is_ready = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvloom-read")

    def ask(self, order: _Order) -> Future[_Answer | None]:
        """None, or _NotStartedError, where it has ended."""
        return self._thread.submit(self._exchange, order)

    def end(self) -> None:
        self._process.kill()
        self._thread.shutdown()  # the pipe is broken now: nothing waits in it
        for pipe in (self._process.stdin, self._process.stdout):
            _close(pipe)
        self._process.wait()

    def _exchange(self, order: _Order) -> _Answer | None:
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        try:
            if not self._is_ready:
                self._is_ready = self._starts(answered)
            if not self._is_ready:
                return None
            asked.write(order.line)
            asked.write(order.data)
            asked.flush()
            num_bytes = int(answered.readline())
            answer = json.loads(answered.read(num_bytes))
        except (OSError, ValueError):  # it has ended, at its last in the midst of an answer
            return None
        return answer if isinstance(answer, dict) else None

    def _starts(self, answered: IO[bytes]) -> bool:
        """False where something else ended it. Raises _NotStartedError where it ended by itself."""
        said = b""
        while line := answered.readline():
            if line.endswith(READY):
                return True
            said = line.strip() or said
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        status = self._process.returncode
        if status is not None and status < 0:  # a signal
            return False
        raise _NotStartedError(said.decode(errors="replace")[-_MAX_SAID_CHARS:] or f"it ended with status {status}")


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with suppress(OSError):  # what was still to be written has no reader
            pipe.close()
