"""Reads PDF and HTML in a process of its own, which is ended when a file takes too long. Knows no disk and no index.

Parsers can be kept busy for hours by a few kilobytes, and be brought down by as many; nothing ends a thread. The
process is started with the first file that needs it, reads all that follow, and is started anew behind one that ended
it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
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

        Raises ContentError (from TimeoutError where it took too long), CancelledError once it is cancelled, StoreError
        where no process can be started.
        """
        if is_plain(data, name):
            return extract(data, name, self._limits)  # takes a moment, whatever is in it
        most_s = MOST_S + len(data) / BYTES_PER_S if self._most_s is None else self._most_s
        order = {"name": name, "limits": asdict(self._limits), "size": len(data), "most_s": most_s}
        answer = self._answer(json.dumps(order).encode() + b"\n", data, name, most_s)
        if answer is None:
            raise ContentError(f"{name} could not be read: it is damaged, or takes more memory than is given to a file")
        found = json.loads(answer)
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

    def _answer(self, order: bytes, data: bytes, name: str, most_s: float) -> bytes | None:
        """What the process says of a file; None where that was its end."""
        if self._child is None:
            try:
                self._child = _Child()
            except OSError as exc:
                raise StoreError(f"no process could be started to read {name} ({exc}): ask again later") from exc
        is_alive = False
        try:
            answer = self._waited(self._child.ask(order, data), name, most_s)
            is_alive = answer is not None
            return answer
        finally:
            if not is_alive:  # whatever ended it, Ctrl-C too: what it was at is not waited for
                self.close()

    def _waited(self, answer: Future[bytes | None], name: str, most_s: float) -> bytes | None:
        until = time.monotonic() + most_s
        while True:
            if self._is_cancelled():
                raise CancelledError(f"reading {name} was cancelled")
            try:
                return answer.result(timeout=_LOOK_S)
            except TimeoutError as exc:
                if time.monotonic() > until:
                    raise ContentError(
                        f"{name} could not be read within {most_s:.3g} s: save it as plain text, or split it"
                    ) from exc


class _Child:
    """The process, and the thread that speaks with it: a pipe can neither be written nor read with a clock."""

    def __init__(self) -> None:
        # -P: what lies in the working directory is not taken for our modules. A session of its own: Ctrl-C is for us.
        command = [sys.executable, "-P", "-m", "kvloom.read.child"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvloom-read")

    def ask(self, order: bytes, data: bytes) -> Future[bytes | None]:
        return self._thread.submit(self._exchange, order, data)

    def end(self) -> None:
        self._process.kill()
        self._thread.shutdown()  # the pipe is broken now: nothing waits in it
        for pipe in (self._process.stdin, self._process.stdout):
            _close(pipe)
        self._process.wait()

    def _exchange(self, order: bytes, data: bytes) -> bytes | None:
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        try:
            asked.write(order)
            asked.write(data)
            asked.flush()
            head = answered.readline()
            answer = answered.read(int(head)) if head else b""
        except OSError:  # it has ended
            return None
        return answer if head and len(answer) == int(head) else None


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with suppress(OSError):  # what was still to be written has no reader
            pipe.close()
