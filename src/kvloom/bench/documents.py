"""Real documents and questions for benchmarks: files of the standard library, cut to a number of tokens; seeded.

Knows texts and a counter of tokens, no engine.
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvloom.errors import UsageError

Count = Callable[[str], int]

FILES = (
    "argparse.py", "ast.py", "bisect.py", "calendar.py", "cmd.py", "codeop.py", "configparser.py", "contextlib.py",
    "copy.py", "csv.py", "dataclasses.py", "datetime.py", "decimal.py", "difflib.py", "dis.py", "enum.py",
    "filecmp.py", "fnmatch.py", "fractions.py", "ftplib.py", "functools.py", "getopt.py", "glob.py", "gzip.py",
    "heapq.py", "hmac.py", "inspect.py", "ipaddress.py", "locale.py", "mailbox.py", "netrc.py", "optparse.py",
    "pathlib.py", "pprint.py", "queue.py", "random.py", "sched.py", "selectors.py", "shlex.py", "shutil.py",
    "smtplib.py", "socketserver.py", "statistics.py", "string.py", "subprocess.py", "tarfile.py", "tempfile.py",
    "textwrap.py", "threading.py", "timeit.py", "tokenize.py", "trace.py", "uuid.py", "weakref.py", "zipfile.py",
)  # fmt: skip
"""Names in every supported Python's library, except those that a version has turned into a package."""

FILLERS = (
    "Answer", "in", "one", "short", "sentence", "and", "name", "the", "file", "that", "you", "took", "it", "from",
    "please", "be", "brief", "exact", "and", "very", "clear", "about", "what", "you", "found", "there", "today",
)  # fmt: skip

MIN_LINES = 20
"""A cut starts at least this far before the end of its file."""


@dataclass(frozen=True)
class Document:
    """A run of lines of a real file."""

    name: str
    text: str
    num_tokens: int


def stdlib_files() -> list[Path]:
    """The files that this Python has, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [path for name in FILES if (path := root / name).is_file()]


def documents(count: Count, number: int, num_tokens: int, start: int = 0) -> list[Document]:
    """`number` documents of at most `num_tokens`, each as long as whole lines allow.

    Another `start` takes other parts of the same files, so that no text is met twice.
    """
    found: list[Document] = []
    round_of_parts = start
    while len(found) < number:
        before = len(found)
        for path in stdlib_files():
            if len(found) == number:
                return found
            document = _cut(path, round_of_parts, count, num_tokens)
            if document is not None:
                found.append(document)
        if len(found) == before:
            raise UsageError(
                f"this Python's library holds {len(found)} of the {number} documents of {num_tokens} tokens that the "
                "benchmark needs; install its source files"
            )
        round_of_parts += 1
    return found


def _cut(path: Path, part: int, count: Count, num_tokens: int) -> Document | None:
    """Part `part` of a file as a document of `num_tokens`, None where the file is too short for it."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    # A line of code is about 10 tokens: parts that far apart do not overlap.
    first = part * (num_tokens // 5)
    if first + MIN_LINES > len(lines):
        return None
    low, high = 1, len(lines) - first
    if count("".join(lines[first:])) < num_tokens:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count("".join(lines[first : first + middle])) <= num_tokens else (low, middle - 1)
    text = "".join(lines[first : first + low])
    return Document(f"{path.stem}-{part}{path.suffix}", text, count(text))


class Questions:
    """A new question of exactly `num_tokens` each time, in an order that the seed decides."""

    def __init__(self, count: Count, num_tokens: int, seed: int) -> None:
        self._count = count
        self._num_tokens = num_tokens
        self._random = random.Random(f"kvloom-questions:{seed}")
        self._asked: set[str] = set()

    def next(self) -> str:
        topics = ("a class", "a loop", "an error", "a default value", "a regular expression", "a file", "a table")
        for _ in range(1000):
            first, second = self._random.sample(topics, 2)
            text = f"Which of these documents has {first} near {second}?"
            while self._count(text) < self._num_tokens:
                text += " " + self._random.choice(FILLERS)
            if self._count(text) == self._num_tokens and text not in self._asked:
                self._asked.add(text)
                return text
        raise UsageError(f"no question of exactly {self._num_tokens} tokens could be made for this tokenizer")
