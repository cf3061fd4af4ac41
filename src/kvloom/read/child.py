"""The process that reads PDF and HTML: orders on stdin, what is in the files on stdout. Knows no clock and no index.

Once it can read it says so in a line. An order is a line of JSON with the file's bytes behind it, an answer the number
of its bytes in a line, then JSON.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import IO

from kvloom.errors import ContentError
from kvloom.read.apart import READY
from kvloom.read.document import ReadLimits
from kvloom.read.extract import extract

MAX_MEMORY_BYTES = 2 * 1024**3
"""Address space, where the system can bound it: the largest page that is let in takes a tenth."""


def main() -> None:
    """Until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asked, who ends this
    _bound_memory()
    asked, answered = sys.stdin.buffer, _own_stdout()
    answered.write(READY)
    answered.flush()
    while line := asked.readline():
        order = json.loads(line)
        data = asked.read(order["size"])
        if len(data) < order["size"]:
            return  # whoever asked has gone
        _bound_time(order["most_s"])
        answer = json.dumps(_answer(data, order["name"], ReadLimits(**order["limits"]))).encode()
        answered.write(b"%d\n" % len(answer))
        answered.write(answer)
        answered.flush()


def _answer(data: bytes, name: str, limits: ReadLimits) -> dict[str, str]:
    try:
        return asdict(extract(data, name, limits))
    except ContentError as exc:
        return {"why": str(exc)}


def _own_stdout() -> IO[bytes]:
    """What answers are written to; what parsers print from here on, into stdout and stderr, goes nowhere."""
    own = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return own


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    with suppress(ValueError, OSError):  # a lower bound stands already
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


def _bound_time(most_s: float) -> None:
    """For a process whose parent was killed, and which nobody ends: the system does once it has worked that long."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft_s = math.ceil(used.ru_utime + used.ru_stime + most_s) + 1
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main()
