"""Draws of (documents, question, answer) over real source files: what a quality measurement is taken on. Seeded.

Knows texts and a counter of tokens, no engine. The answers are read off the documents, so no model decides them.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path

from kvloom.bench.documents import Count
from kvloom.errors import UsageError

MIN_FILE_BYTES, MAX_FILE_BYTES = 8_000, 200_000
SKIPPED = frozenset({"test", "tests", "site-packages", "idlelib", "lib2to3", "pydoc_data", "encodings", "turtledemo"})
"""Folders of the library that hold tests or tables."""

MIN_LINE = 24
"""Characters of a quoted line: shorter ones are seldom unique."""
MIN_ANSWER, MAX_ANSWER = 180, 260
"""Characters of a copied continuation: about 60 tokens of code."""
MIN_SIGNATURE = 30
LINES_PER_TOKEN = 1 / 6
"""Lines of code are longer than 6 tokens: enough lines are looked at."""
TRIES = 8

_DEF = re.compile(r"^[ \t]*(def (\w+)\(([^()]*(?:\([^()]*\)[^()]*)*)\)[^:\n]*:)", re.MULTILINE)


class Kind(Enum):
    """What a question asks for."""

    CONTINUE = "continue"  # a quoted line: the lines that follow it
    DEFAULT = "default"  # the default value of a parameter
    SIGNATURE = "signature"  # the def line of a function


SCHEDULE = (Kind.CONTINUE, Kind.DEFAULT, Kind.CONTINUE, Kind.SIGNATURE, Kind.CONTINUE, Kind.DEFAULT)
"""Copying is what needs the context most, and gives the most tokens."""


@dataclass(frozen=True)
class Draw:
    """Documents as (name, text), and what is asked about the one at `target`."""

    seed: int
    kind: Kind
    documents: tuple[tuple[str, str], ...]
    question: str
    answer: str
    target: int


@dataclass(frozen=True)
class _Function:
    name: str
    signature: str
    defaults: tuple[tuple[str, str], ...]


@lru_cache(maxsize=1)
def corpus() -> tuple[Path, ...]:
    """This Python's own library, without its tests, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = (path for path in root.rglob("*.py") if not SKIPPED.intersection(path.relative_to(root).parts))
    return tuple(sorted(path for path in found if MIN_FILE_BYTES < path.stat().st_size < MAX_FILE_BYTES))


def draw(seed: int, num_documents: int, num_tokens: int, count: Count) -> Draw:
    """The draw of this seed. Raises UsageError where the library has too few files."""
    rng = random.Random(f"kvloom-draw:{seed}:{num_documents}:{num_tokens}")
    kind = SCHEDULE[seed % len(SCHEDULE)]
    for _ in range(TRIES):
        chosen: list[tuple[str, str]] = []
        for path in rng.sample(corpus(), len(corpus())):
            text = _cut(path, num_tokens, rng, count)
            if text is not None:
                chosen.append((f"{path.parent.name}/{path.name}", text))
            if len(chosen) == num_documents:
                break
        for target in rng.sample(range(len(chosen)), len(chosen)):
            others = "\n".join(text for number, (_, text) in enumerate(chosen) if number != target)
            made = MAKERS[kind](chosen[target][1], others, rng)
            if made is not None:
                return Draw(seed, kind, tuple(chosen), made[0], made[1], target)
    raise UsageError(f"no question of the kind {kind.value} could be drawn from {len(corpus())} files of this library")


def _cut(path: Path, num_tokens: int, rng: random.Random, count: Count) -> str | None:
    """Whole lines of at most `num_tokens`, from a random line on; None where the file is too short."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for _ in range(TRIES):
        at = rng.randrange(max(1, len(lines) - int(num_tokens * LINES_PER_TOKEN)))
        size = 1
        while at + size < len(lines) and count("".join(lines[at : at + size + 1])) <= num_tokens:
            size += 1
        text = "".join(lines[at : at + size])
        if num_tokens * 3 // 4 <= count(text) <= num_tokens:
            return text
    return None


def _continue(text: str, others: str, rng: random.Random) -> tuple[str, str] | None:
    lines = text.split("\n")[:-1]
    spots = [
        number
        for number, line in enumerate(lines)
        if len(line.strip()) >= MIN_LINE
        and (text + others).count(line) == 1
        and len("\n".join(lines[number + 1 :])) >= MIN_ANSWER
    ]
    if not spots:
        return None
    spot = rng.choice(spots)
    after = "\n".join(lines[spot + 1 :])[:MAX_ANSWER]
    return f"Copy the code that follows the line `{lines[spot].strip()}` exactly.", f"```python\n{after}"


def _functions(text: str, others: str) -> list[_Function]:
    """Functions that only this document defines."""
    found = []
    for match in _DEF.finditer(text):
        name = match.group(2)
        if f"def {name}(" in others or text.count(f"def {name}(") != 1:
            continue
        try:
            node = ast.parse(match.group(1).strip() + " pass").body[0]
        except SyntaxError:
            continue
        if not isinstance(node, ast.FunctionDef):
            continue
        arguments = node.args.args[len(node.args.args) - len(node.args.defaults) :]
        pairs = zip(arguments, node.args.defaults, strict=True)
        defaults = tuple((argument.arg, ast.unparse(value)) for argument, value in pairs)
        found.append(_Function(name, " ".join(match.group(1).split()), defaults))
    return found


def _default(text: str, others: str, rng: random.Random) -> tuple[str, str] | None:
    found = [(f.name, *pair) for f in _functions(text, others) for pair in f.defaults]
    if not found:
        return None
    name, parameter, value = rng.choice(found)
    what = f"default value of the parameter `{parameter}` of `{name}`"
    return f"What is the {what}?", f"The {what} is `{value}`."


def _signature(text: str, others: str, rng: random.Random) -> tuple[str, str] | None:
    found = [f for f in _functions(text, others) if len(f.signature) > MIN_SIGNATURE]
    if not found:
        return None
    function = rng.choice(found)
    question = f"Which parameters does the function `{function.name}` take? Repeat its `def` line."
    return question, f"```python\n{function.signature}\n```"


Maker = Callable[[str, str, random.Random], "tuple[str, str] | None"]
MAKERS: dict[Kind, Maker] = {Kind.CONTINUE: _continue, Kind.DEFAULT: _default, Kind.SIGNATURE: _signature}
