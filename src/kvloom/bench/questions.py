"""Questions over real texts, made by rule, each with its place and an answer that a rule checks. Seeded, no model.

Knows syntax trees and the marks of the language's reference; how a text is cut or searched is not its business.
"""

from __future__ import annotations

import ast
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from kvloom.bench.corpus import Text
from kvloom.errors import UsageError

MAX_PLACE_LINES = 24
"""A place is to lie in one passage."""
MAX_ANSWER_CHARS = 40
GUESSES = ("0", "1", "-1", "2", "none", "true", "false", "", "utf-8", "ascii", "object", "rb", "wb", "self")
"""Answers that are right too often without having read anything."""
LITTLE_WORDS = frozenset(("is", "not", "in", "and", "or", "the", "it", "no", "yes", "for", "value"))
"""An answer of nothing but these stands in many a sentence."""
MAX_SAME_ANSWERS = 6
"""Of one kind: who always says the same must not be right often."""
MAX_OF_DOCUMENT = 10
"""Of one kind: no long table of one file is all that is asked."""

Fits = Callable[[Sequence["Question"]], Sequence["Question"]]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Kind(Enum):
    """What is asked for."""

    CONSTANT = "constant"
    DEFAULT = "default"
    RAISED = "raised"
    ENTRY = "entry"
    SINCE = "since"


@dataclass(frozen=True)
class Question:
    """A question, what answers it, and the lines of `document` that say so (from 1, both ends included).

    `rivals`: answers of other questions of the kind. A reply that names one of them first is wrong.
    """

    kind: Kind
    text: str
    answer: str
    document: str
    first_line: int
    last_line: int
    rivals: tuple[str, ...] = ()

    def is_right(self, reply: str) -> bool:
        """Whether the reply's first value is the answer. What the question says already counts for nothing."""
        said = normal(reply)
        at = _place(self.answer, said)
        if at is None:
            return False
        asked = normal(self.text)
        others = self.rivals if not _is_number(self.answer) else tuple(_NUMBER.findall(said))
        for other in others:
            if other != self.answer and _place(other, asked) is None:
                rival_at = _place(other, said)
                if rival_at is not None and rival_at < at and self.answer not in other:
                    return False
        return True

    def is_covered(self, document: str, first_line: int, last_line: int) -> bool:
        """Whether these lines hold the whole place."""
        return document == self.document and first_line <= self.first_line and self.last_line <= last_line


# -- comparing ----------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)*(?:e-?\d+)?(?!\w)")
_NUMERAL = re.compile(
    r"(?<![\w.])(?:0[xob][0-9a-f_]+|\d[\d_,]*\d(?!\w|\.\d)|\d+\.\d+(?:e-?\d+)?(?!\w|\.\d)|\d+e-?\d+)",
    re.IGNORECASE,
)


def normal(text: str) -> str:
    """Small letters, without quotes and marks, one space between words, every number in one spelling."""
    text = re.sub(r"[`'\"“”‘’*]", "", text).lower()
    text = _NUMERAL.sub(lambda found: _numeral(found.group()), text)
    return " ".join(text.split())


def _numeral(text: str) -> str:
    """0x10 as 16, 1_000 and 1,000 as 1000, 30.0 as 30; what is no number as it is."""
    if re.fullmatch(r"\d{1,3}(,\d{3})+", text):
        text = text.replace(",", "")
    if "," in text:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def _place(part: str, whole: str) -> int | None:
    """Where `part` stands in `whole` as words of its own; of `module.Name` the name is one."""
    before = r"(?<![\w-])" if part[:1].isalpha() else r"(?<![\w.-])"
    found = re.search(rf"{before}{re.escape(part)}(?!\w|\.\w)", whole) if part else None
    return found.start() if found else None


# -- making -------------------------------------------------------------------------------------------------------


def questions(texts: Sequence[Text], number: int, fits: Fits = list, seed: int = 1) -> list[Question]:
    """`number` questions, the kinds as evenly as there are such questions, of those that `fits` leaves.

    Raises UsageError where there are fewer.
    """
    pools = _pools(fits(all_questions(texts)), random.Random(f"kvloom-ask:{seed}"))
    found: list[Question] = []
    while len(found) < number and any(pools.values()):
        for pool in pools.values():
            if pool and len(found) < number:
                found.append(pool.pop())
    if len(found) < number:
        raise UsageError(f"the texts give {len(found)} of the {number} questions that the benchmark needs")
    return found


def all_questions(texts: Sequence[Text]) -> list[Question]:
    """Every question that the rules make, with its rivals, in the order of the texts."""
    found = [question for text in texts for question in _of_text(text) if _is_fair(question)]
    asked = Counter(question.text for question in found)
    found = [question for question in found if asked[question.text] == 1]
    answers: Mapping[Kind, set[str]] = defaultdict(set)
    for question in found:
        answers[question.kind].add(question.answer)
    return [replace(question, rivals=tuple(sorted(answers[question.kind] - {question.answer}))) for question in found]


def _pools(found: Sequence[Question], draw: random.Random) -> dict[Kind, list[Question]]:
    pools: dict[Kind, list[Question]] = {}
    for kind in Kind:
        mixed = [question for question in found if question.kind is kind]
        draw.shuffle(mixed)
        same: Counter[str] = Counter()
        near: Counter[str] = Counter()
        pools[kind] = []
        for question in mixed:
            if same[question.answer] < MAX_SAME_ANSWERS and near[question.document] < MAX_OF_DOCUMENT:
                same[question.answer] += 1
                near[question.document] += 1
                pools[kind].append(question)
    return pools


def _is_fair(question: Question) -> bool:
    """The answer is short, no commonplace, and the question does not say it, not even inside of a name."""
    return (
        0 < len(question.answer) <= MAX_ANSWER_CHARS
        and question.answer not in GUESSES
        and question.last_line - question.first_line < MAX_PLACE_LINES
        and not LITTLE_WORDS.issuperset(question.answer.split())
        and question.answer not in normal(question.text)
        and question.is_right(question.answer)
    )


def _of_text(text: Text) -> Iterator[Question]:
    if not text.is_code:
        yield from _since(text)
        return
    try:
        tree = ast.parse(text.text)
    except SyntaxError:
        return  # a file that another Python wrote
    for make in (_constants, _functions, _entries):
        yield from make(text, tree)


def _question(kind: Kind, text: Text, asked: str, answer: str, first: int, last: int) -> Question:
    return Question(kind, f"In {text.name}, {asked}", normal(answer), text.name, first, last)


def _constants(text: Text, tree: ast.Module) -> Iterator[Question]:
    """NAME = number or string, where the file gives the name a value only once."""
    places: defaultdict[str, list[ast.Assign]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    places[target.id].append(node)
    for name, nodes in places.items():
        value = _literal(nodes[0].value)
        if len(nodes) == 1 and value and len(name) > 2:
            node = nodes[0]
            asked = f"what is the value of `{name}`?"
            yield _question(Kind.CONSTANT, text, asked, value, node.lineno, _end(node))


def _functions(text: Text, tree: ast.Module) -> Iterator[Question]:
    """Defaults and exceptions of the functions whose names the file defines once."""
    found = [node for node in ast.walk(tree) if isinstance(node, FunctionNode)]
    names = Counter(node.name for node in found)
    for node in found:
        if names[node.name] > 1 or node.name.startswith("__"):
            continue
        yield from _defaults(text, node)
        raised = {(_name(n.exc), _end(n)) for n in _own(node) if isinstance(n, ast.Raise) and n.exc is not None}
        kinds = {name for name, _ in raised}
        if len(kinds) == 1 and (only := kinds.pop()) and only[0].isupper():
            last = min(line for _, line in raised)
            asked = f"which exception does the function `{node.name}` raise?"
            yield _question(Kind.RAISED, text, asked, only, node.lineno, last)


def _defaults(text: Text, node: FunctionNode) -> Iterator[Question]:
    plain = [*node.args.posonlyargs, *node.args.args]
    pairs = list(zip(plain[len(plain) - len(node.args.defaults) :], node.args.defaults, strict=True))
    pairs += [(arg, value) for arg, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if value]
    for argument, default in pairs:
        value = _literal(default)
        if value:
            asked = f"what is the default value of the parameter `{argument.arg}` of the function `{node.name}`?"
            yield _question(Kind.DEFAULT, text, asked, value, node.lineno, _end(default))


def _entries(text: Text, tree: ast.Module) -> Iterator[Question]:
    """What a table of the file says of a key that stands in its tables only once."""
    pairs = [
        (key, value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if key is not None
    ]
    keys = Counter(_literal(key) for key, _ in pairs)
    for key, value in pairs:
        name, said = _literal(key), _literal(value)
        if name and said and keys[name] == 1 and not _is_number(name):
            asked = f"which value does the table have for the key `{name}`?"
            yield _question(Kind.ENTRY, text, asked, said, key.lineno, _end(value))


_SIGNATURE = re.compile(r"^(\s*)(?:static |class |classmethod |async |coroutine )*([A-Za-z_][\w.]*)(?:\(|$)")
_VERSION = re.compile(r"(?:New|Added) in version (\d+\.\d+)")


def _since(text: Text) -> Iterator[Question]:
    """An entry of the reference, and the one version that its own block names as its first."""
    lines = text.lines
    heads = [(number, found) for number, line in enumerate(lines) if (found := _SIGNATURE.match(line))]
    for number, found in heads:
        name = found.group(2)
        if "." not in name and not name.startswith("__"):
            continue
        block = list(_block(lines, number, len(found.group(1))))
        versions = [(at, version.group(1)) for at, line in block if (version := _VERSION.search(line))]
        if len(versions) == 1:
            at, version_name = versions[0]
            asked = f"in which version of Python was `{name}` added?"
            yield _question(Kind.SINCE, text, asked, version_name, number + 1, at + 1)


def _block(lines: Sequence[str], head: int, indent: int) -> Iterator[tuple[int, str]]:
    """The lines behind `head` that are indented further."""
    for number in range(head + 1, len(lines)):
        line = lines[number]
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            return
        yield number, line


# -- of the tree --------------------------------------------------------------------------------------------------


def _literal(node: ast.expr) -> str:
    """A number or a string of words as text; "" for anything else."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return ""
    if isinstance(value, str) and not re.fullmatch(r"\.?[A-Za-z][\w .:/+-]{2,}", value):
        return ""
    return str(value)


def _name(node: ast.expr) -> str:
    """`a.b.C` and `a.b.C(…)` as C; "" for anything else."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _own(node: FunctionNode) -> Iterator[ast.AST]:
    """What stands in the function itself, not in one that it defines."""
    waiting: list[ast.AST] = list(ast.iter_child_nodes(node))
    while waiting:
        part = waiting.pop()
        if isinstance(part, FunctionNode | ast.ClassDef | ast.Lambda):
            continue
        yield part
        waiting += ast.iter_child_nodes(part)


def _end(node: ast.expr | ast.stmt) -> int:
    return node.end_lineno or node.lineno
