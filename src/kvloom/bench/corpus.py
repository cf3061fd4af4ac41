"""Long real texts that every machine with a Python has: the standard library's sources and the language's reference.

Knows texts and their size, no model and no index.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvloom.bench.documents import stdlib_files
from kvloom.errors import UsageError

Count = Callable[[str], int]

MORE_FILES = (
    "asyncio/base_events.py", "asyncio/sslproto.py", "asyncio/streams.py", "base64.py", "bdb.py", "codecs.py",
    "colorsys.py", "concurrent/futures/process.py", "concurrent/futures/thread.py", "doctest.py", "email/charset.py",
    "email/header.py", "email/message.py", "gettext.py", "html/parser.py", "http/client.py", "http/cookiejar.py",
    "http/cookies.py", "http/server.py", "imaplib.py", "json/decoder.py", "json/encoder.py", "logging/config.py",
    "logging/handlers.py", "mimetypes.py", "multiprocessing/connection.py", "multiprocessing/heap.py",
    "multiprocessing/managers.py", "multiprocessing/pool.py", "nturl2path.py", "numbers.py", "pdb.py", "pickle.py",
    "pickletools.py", "platform.py", "plistlib.py", "poplib.py", "profile.py", "pstats.py", "rlcompleter.py",
    "socket.py", "ssl.py", "sqlite3/dump.py", "stat.py", "symtable.py", "tabnanny.py", "unittest/case.py",
    "unittest/mock.py", "urllib/parse.py", "urllib/request.py", "urllib/robotparser.py", "wave.py", "webbrowser.py",
    "wsgiref/handlers.py", "xml/dom/minidom.py", "xml/sax/handler.py", "xmlrpc/client.py", "zipapp.py",
)  # fmt: skip
"""Further files, in packages too: with those of the other benchmarks, more than any window holds."""
MIN_TOPIC_CHARS = 2_000
"""Shorter topics of the reference are part of longer ones."""


@dataclass(frozen=True)
class Text:
    """One document of the corpus: a file of code, or a topic of the reference. Lines are counted from 1."""

    name: str
    text: str

    @property
    def is_code(self) -> bool:
        return self.name.endswith(".py")

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")


def texts() -> list[Text]:
    """All of them, always in the same order: code and reference in turns, so that a part of them has both."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [*stdlib_files(), *(root / name for name in MORE_FILES if (root / name).is_file())]
    code = [Text(_name_of(path, root), path.read_text(encoding="utf-8", errors="replace")) for path in files]
    prose = reference()
    mixed: list[Text] = []
    every = max(1, len(code) // max(1, len(prose)))
    for place, text in enumerate(code):
        mixed.append(text)
        if place % every == every - 1 and prose:
            mixed.append(prose.pop(0))
    return mixed + prose


def _name_of(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def reference() -> list[Text]:
    """The topics of the language's reference, the longest first: each is told once, in the longest that has it."""
    from pydoc_data.topics import topics

    by_length = sorted(topics.items(), key=lambda item: (-len(item[1]), item[0]))
    found: list[Text] = []
    for name, body in by_length:
        if len(body) < MIN_TOPIC_CHARS:
            break
        middle = body[len(body) // 2 :][: MIN_TOPIC_CHARS // 4]
        if not any(middle in longer.text for longer in found):
            found.append(Text(f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.rst", body))
    return found


def corpus(count: Count, num_tokens: int) -> list[Text]:
    """As many of the texts, whole and from the first on, as make at least `num_tokens`."""
    found: list[Text] = []
    total = 0
    for text in texts():
        if total >= num_tokens:
            return found
        found.append(text)
        total += count(text.text)
    if total < num_tokens:
        raise UsageError(
            f"this Python's library holds texts of {total:,} tokens of the {num_tokens:,} that the benchmark needs; "
            "install its source files"
        )
    return found


def num_tokens_of(found: Sequence[Text], count: Count) -> int:
    return sum(count(text.text) for text in found)
