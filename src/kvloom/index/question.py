"""What a question asks of an index: its words, how rare each is, how well a passage answers. Knows no disk.

BM25 as Lucene computes it, whose weight of a word is never negative: SQLite's own takes a word that half of the
passages hold for nothing, which in a library of three passages is every word.
"""

from __future__ import annotations

import math
import re
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kvloom.errors import StoreError
from kvloom.index.values import CLOSED
from kvloom.text.words import TOKENIZER, joined_names, spaced, word_run

_MAX_WORDS = 256
"""Of a longer question the first are looked up; a pasted page says by then what it is about."""
_MAX_NAMES = 16
"""Names of several words that are looked up."""
_SATURATION = 1.2
_LENGTH_WEIGHT = 0.75
"""BM25's k1 and b, at their usual values."""
_HEADING_WEIGHT = 0.5
"""A word in the heading above a passage says less than one inside of it."""

_COMMON_WORDS = (
    "a about all also am an and any are as at be been being but by can could did do does doing for from had has have "
    "he her here him his how i if in into is it its just me my no nor not of on or our out she should so some such "
    "than that the their them then there these they this those to too us very was we were what when where which while "
    "who whom whose why will with would you your please tell explain describe"
)
"""English words that ask and join: in a small library they are rare by accident. Frequent words of any language are
left out by how many passages hold them."""
_COMMON = frozenset(_COMMON_WORDS.split())
_POINTING_WORDS = (
    "again another bit continue detail details elaborate else even example examples exactly explain fine first further "
    "go good hello hi instead it its last let like longer mean means more much name named next no now ok okay one ones "
    "other others part please previous really right same say says second see shorter show since so still sure thank "
    "thanks that them these they thing things third this those though true two well words yeah yes"
)
"""Words that point at what was said before, or say no more than that there is to be more of it."""
_POINTING = frozenset(_POINTING_WORDS.split())
_ASKING_WORDS = (
    "are can could describe did do does explain give has how is please remind repeat say show tell was were what when "
    "where which who whom whose why will would"
)
_ASKING = frozenset(_ASKING_WORDS.split())
"""A text that begins with one of these asks."""
_TELLING = frozenset({"remember", "note", "notice", "mind"})
"""A text without a question mark that has one of these tells: please remember that …"""
_REQUESTS = (" please ", " can you ", " could you ", " tell me ", " give me ", " show me ", " remind me ")
QUESTION_MARKS = ("?", "？", "؟", "\u037e")
"""Latin, full-width, Arabic, Greek."""
_STAND_IN_WORDS = "he her hers him his it its she that their theirs them these they this those"
_STAND_INS = frozenset(_STAND_IN_WORDS.split())
"""Words that stand for what a question before named."""
_FEW_WORDS = 2
"""With a word that stands for something, so few words of its own do not say what a question is about."""
_CAPITAL_NAMES = frozenset({"IT", "US"})
"""Names that are common words in small letters."""
_SENTENCE_ENDS = frozenset(".?!:;\n")
_WORD = re.compile(r"\w+")
_MIN_PHRASE = 3
"""Words from which a question of nothing but common ones is looked for as it stands: to be or not to be."""

_FILE_NAME_RUN = re.compile(r"[\w./\\-]+")
_FILE_ENDING = re.compile(r"(?<=\w)\.[A-Za-z]\w{0,7}(?!\w)")
_MAX_FILE_NAME_CHARS = 300
"""File systems take 255 for a name; a longer run is pasted data."""


@dataclass(frozen=True)
class Word:
    """A word of a question and the term that an index has of it.

    Of a name of several words (`MAX_SIZE`) both are its words with spaces between: a passage that has them one behind
    the other holds the name, which says more than its words here and there.
    """

    asked: str
    term: str


@dataclass(frozen=True)
class Query:
    """What is looked for: any of the words, or all of them as one phrase where `phrase` is not empty."""

    words: tuple[Word, ...]
    phrase: str = ""


def weight(num_with: int, num_passages: int) -> float:
    """What having a word counts that `num_with` of `num_passages` hold; over 0, and the more the rarer."""
    return math.log(1 + (max(0, num_passages - num_with) + 0.5) / (num_with + 0.5))


def file_names(question: str) -> tuple[str, ...]:
    """What may be the name of a document (`notes.md`, `json/decoder.py`), as paths are written."""
    return tuple(dict.fromkeys(name for _, _, name in _file_names(question)))[:_MAX_NAMES]


def without_file_names(question: str, names: Collection[str]) -> str:
    """The question with a space in the place of each of `names`, which `file_names` gave."""
    parts, last = [], 0
    for start, end, name in _file_names(question):
        if name in names:
            parts.append(question[last:start])
            last = end
    return " ".join([*parts, question[last:]])


def _file_names(question: str) -> Iterator[tuple[int, int, str]]:
    """Where each begins and ends. In time linear in the question: of a run, the last ending alone is looked at."""
    for run in _FILE_NAME_RUN.finditer(question):
        if run.end() - run.start() > _MAX_FILE_NAME_CHARS:
            continue
        end = max((match.end() for match in _FILE_ENDING.finditer(run[0])), default=0)
        if end:
            yield run.start(), run.start() + end, run[0][:end].replace("\\", "/").strip("/")


def asks(text: str) -> bool:
    """Whether a text asks for something and tells nothing: by its question mark in any language, by its words in
    English ("please repeat it"; not where it names something behind a colon). A guess, as `is_follow_up` is."""
    if text.rstrip().endswith(QUESTION_MARKS):
        return True
    run = word_run(text.encode(errors="replace").decode())
    if not run or ":" in text or not _TELLING.isdisjoint(run):
        return False
    spoken = f" {' '.join(run)} "
    return run[0] in _ASKING or any(request in spoken for request in _REQUESTS)


def without_common_words(text: str) -> str:
    """The words that say what an English text is about; all of it where none do."""
    run = word_run(text.encode(errors="replace").decode())
    return " ".join(word for word in run if word not in _COMMON) or text


def is_follow_up(question: str) -> bool:
    """Whether an English question names too little to be looked up alone: "and why?", "who built it?".

    A guess by lists of words: one that names something ("How does it work in Python?") is none, and a name is told by
    its capital letters alone. So "how does it work in python?" passes for one, and what was asked before it is looked
    up as well; "Who Built It?" does not, and only its own words are.
    """
    question = question.encode(errors="replace").decode()
    run = word_run(question)
    if not run or _has_name(question):
        return False
    own = {word for word in run if word not in _COMMON and word not in _POINTING}
    return not own or (len(own) <= _FEW_WORDS and not _STAND_INS.isdisjoint(run))


def _has_name(question: str) -> bool:
    """Whether a word has a capital letter not for beginning a sentence. SHOUTED questions tell nothing."""
    if question.isupper():
        return False
    last = 0
    for match in _WORD.finditer(question):
        word, before = match[0], question[last : match.start()]
        is_opening = not last or not _SENTENCE_ENDS.isdisjoint(before)
        is_listed = word.lower() in _COMMON or word.lower() in _POINTING
        if word in _CAPITAL_NAMES or (not is_listed and any(c.isupper() for c in word[is_opening:])):
            return True
        last = match.end()
    return False


class Terms:
    """Cuts words and texts just as the index does, by the same tokenizer over a table in memory. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute(
            f"CREATE VIRTUAL TABLE texts USING fts5(heading, body, content = '', tokenize = '{TOKENIZER}')"
        )
        self._db.execute("CREATE VIRTUAL TABLE found USING fts5vocab(texts, instance)")

    def of_question(self, question: str) -> Query:
        """The question's words, each term once. Those that only ask and join are left out.

        A question of nothing else is looked for as a phrase, or not at all where it is too short for one.
        """
        run = word_run(question.encode(errors="replace").decode())
        asked = tuple(dict.fromkeys(word for word in run if word not in _COMMON))
        is_phrase = not asked and len(run) >= _MIN_PHRASE
        if is_phrase:
            asked = tuple(dict.fromkeys(run))
        asked = asked[:_MAX_WORDS]
        with self._held():
            self._fill([("", word) for word in asked])
            rows = self._db.execute("SELECT doc, term FROM found ORDER BY doc, offset DESC").fetchall()
        terms = dict(rows)
        unique: dict[str, Word] = {}
        for number, word in enumerate(asked):
            if number in terms:
                unique.setdefault(terms[number], Word(word, terms[number]))
        names = [] if is_phrase else [Word(name, name) for name in joined_names(question)[:_MAX_NAMES]]
        return Query((*unique.values(), *names), " ".join(run[:_MAX_WORDS]) if is_phrase else "")

    def counts(self, texts: Sequence[tuple[str, str]], terms: Sequence[str]) -> list[dict[str, float]]:
        """How often each (heading, text) holds each of `terms`, words in the heading counting half."""
        counts: list[dict[str, float]] = [{} for _ in texts]
        names = [term for term in terms if " " in term]
        terms = [term for term in terms if " " not in term]
        marks = ", ".join("?" * len(terms))
        with self._held():
            self._fill([(spaced(heading), spaced(text)) for heading, text in texts])
            rows = self._db.execute(
                f"SELECT doc, term, col, count(*) FROM found WHERE term IN ({marks}) GROUP BY 1, 2, 3", terms
            )
            for number, term, column, count in rows:
                share = count * (_HEADING_WEIGHT if column == "heading" else 1.0)
                counts[number][term] = counts[number].get(term, 0.0) + share
            for name in names:
                for number, share in self._holding(name):
                    counts[number][name] = counts[number].get(name, 0.0) + share
        return counts

    def _holding(self, name: str) -> list[tuple[int, float]]:
        """The texts that hold all words of a name one behind the other, and what that counts."""
        found = []
        for column, share in (("heading", _HEADING_WEIGHT), ("body", 1.0)):
            rows = self._db.execute("SELECT rowid FROM texts WHERE texts MATCH ?", (f'{column}: "{name}"',))
            found += [(int(number), share) for (number,) in rows]
        return found

    def close(self) -> None:
        """Idempotent."""
        with self._held():
            self._db.close()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The table for one thread, SQLite's errors as ours: another may have closed it."""
        with self._lock:
            try:
                yield
            except sqlite3.ProgrammingError as exc:
                raise StoreError(CLOSED) from exc
            except sqlite3.Error as exc:
                raise StoreError(f"the question could not be looked up ({exc}): ask it in other words") from exc

    def _fill(self, texts: Sequence[tuple[str, str]]) -> None:
        self._db.execute("BEGIN")
        self._db.execute("INSERT INTO texts (texts) VALUES ('delete-all')")
        rows = ((number, heading, body) for number, (heading, body) in enumerate(texts))
        self._db.executemany("INSERT INTO texts (rowid, heading, body) VALUES (?, ?, ?)", rows)
        self._db.execute("COMMIT")


@dataclass(frozen=True)
class Asked:
    """A question against one index: its words, each with its weight there, and those that it writes as names."""

    query: Query
    weights: Mapping[str, float]
    """By term; words that no passage has are here too."""
    mean_chars: float
    names: frozenset[str] = frozenset()

    def score(self, counts: Mapping[str, float], num_chars: int) -> float:
        """BM25 over the most that any passage could have: 0 … 1."""
        most = sum(self.weights.values()) * (_SATURATION + 1)
        damping = _SATURATION * (1 - _LENGTH_WEIGHT + _LENGTH_WEIGHT * num_chars / max(1.0, self.mean_chars))
        total = sum(self.weights[t] * n * (_SATURATION + 1) / (n + damping) for t, n in counts.items())
        return total / most if most else 0.0

    def coverage(self, counts: Mapping[str, float]) -> float:
        """The share of the question's weight that a passage holds."""
        most = sum(self.weights.values())
        return sum(self.weights[term] for term in counts) / most if most else 0.0

    def words_in(self, counts: Mapping[str, float]) -> tuple[str, ...]:
        return tuple(word.asked for word in self.query.words if word.term in counts)
