"""Reads a stranger's PDF or HTML in a process of its own, which is ended when it takes too long. Knows no index.

Parsers of both can be kept busy for hours by a few kilobytes, and nothing ends a thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from kvloom.errors import CancelledError, ContentError, StoreError
from kvloom.read.document import DocumentKind, Extract, ReadLimits
from kvloom.read.reader import extract, is_plain

MAX_MEMORY_BYTES = 2 * 1024**3
"""Address space of the process, where the system can bound it: the largest page that is let in takes a tenth."""
_LOOK_S = 0.1
"""Between two looks at whether it is still wanted."""
_FAILED = 3
"""Exit status of a process that said itself why there is no text."""


def extract_apart(
    data: bytes, name: str, limits: ReadLimits, most_s: float, is_cancelled: Callable[[], bool] = lambda: False
) -> Extract:
    """`extract`, which takes at most `most_s`.

    Raises ContentError, CancelledError once it is cancelled, StoreError where no process can be started.
    """
    if is_plain(data, name):
        return extract(data, name, limits)  # takes a moment, whatever is in it
    order = json.dumps({"name": name, "limits": asdict(limits)}).encode()
    try:
        status, answer = _run(order + b"\n" + data, name, most_s, is_cancelled)
    except OSError as exc:
        raise StoreError(f"no process could be started to read {name} ({exc}): ask again later") from exc
    if status == _FAILED:
        raise ContentError(answer.decode())
    if status:
        raise ContentError(f"{name} could not be read: it is damaged, or takes more memory than is given to a file")
    found = json.loads(answer)
    return Extract(found["text"], DocumentKind(found["kind"]), found["note"])


def _run(order: bytes, name: str, most_s: float, is_cancelled: Callable[[], bool]) -> tuple[int, bytes]:
    """The process's status, and what it said."""
    # A file, not a pipe: whoever writes into a pipe cannot look at the clock meanwhile.
    with tempfile.TemporaryFile() as asked:
        asked.write(order)
        asked.seek(0)
        # -P: what lies in the working directory is not taken for our modules.
        command = [sys.executable, "-P", "-m", "kvloom.read.apart"]
        with subprocess.Popen(command, stdin=asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            try:
                answer = _answer(child, name, most_s, is_cancelled)
            finally:
                child.kill()  # nothing of it is left where it has ended
    return child.returncode, answer


def _answer(child: subprocess.Popen[bytes], name: str, most_s: float, is_cancelled: Callable[[], bool]) -> bytes:
    until = time.monotonic() + most_s
    while True:
        try:
            answer, _ = child.communicate(timeout=_LOOK_S)
            return answer
        except subprocess.TimeoutExpired:
            if is_cancelled():
                raise CancelledError(f"reading {name} was cancelled") from None
            if time.monotonic() > until:
                raise ContentError(
                    f"{name} could not be read within {most_s:g} s: save it as plain text, or split it"
                ) from None


def main() -> int:
    """The process: an order in a line and a file's bytes on stdin, what is in them or why nothing is on stdout."""
    _bound_memory()
    order = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    try:
        found = extract(data, order["name"], ReadLimits(**order["limits"]))
    except ContentError as exc:
        sys.stdout.buffer.write(str(exc).encode(errors="replace"))
        return _FAILED
    sys.stdout.buffer.write(json.dumps(asdict(found)).encode())
    return 0


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    with suppress(ValueError, OSError):  # a lower bound stands already
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


if __name__ == "__main__":
    sys.exit(main())
