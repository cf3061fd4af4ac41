"""Names that a question writes, and what a text says of which name."""

from __future__ import annotations

import time

import pytest

from kvloom.text.definitions import defined_in, defined_names_in, given_values, names_in


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("What is the value of `MAX_SIZE`?", {"max_size"}),
        ("How does parseHeader work?", {"parseheader"}),
        ("Which value has the key 'r+b' here?", {"r", "b"}),
        ('Where is "the old mill" now?', {"the", "old", "mill"}),
        ("What did “Anna” say in 1984?", {"anna", "1984"}),
        ("Don't ask what they're for", set()),
        ("What is the capital of France?", set()),
    ],
)
def test_names_are_quoted_or_look_like_identifiers(question: str, names: set[str]) -> None:
    assert names_in(question) == names


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("What is the value of `MAX_SIZE`?", {"max_size"}),
        ("What is `max-size` for, and what `config.limit`?", {"size", "limit"}),
        ("What happened at 12:30 in 1984?", set()),
        ("What is the capital of France?", set()),
    ],
)
def test_what_a_text_may_define_is_the_last_word_of_a_name_and_no_number(question: str, names: set[str]) -> None:
    assert defined_names_in(question) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("MAXLINE = 8192\n", {"maxline"}),
        ("    self.limit: int | None = 3\n", {"limit"}),
        ("def fetch(url, timeout=10, *, tries: int = 2):\n", {"fetch", "timeout", "tries"}),
        ("class Reader(Base):\n", {"reader"}),
        ("pub fn parse(text: &str)\n", {"parse"}),
        ("UNITS = {'usec': 1e-6, \"msec\": 1e-3}\n", {"units", "usec", "msec"}),
        ("indent: how far a line is moved\n", {"indent"}),
        ("if size == MAX_SIZE and mode >= OPEN:\n    use(size)\n", set()),
        ("They met at ten: it was late.\n12:05 Bob left\nsee http://a.b/c\n", set()),
        ("static const int LIMIT = 3;\nlet mut size = 4;\n", {"int", "limit", "mut", "size"}),
        ("this.limit = 3\nconfig.size = 4\ndepth := 5\n", {"limit", "size", "depth"}),
        ("max-size: 3\n- min_size: 2\nserver.port=80\nContent-Type: text\n", {"size", "min_size", "port", "type"}),
        ('{"max-size": 3, "r+b": 4}\n', {"size", "b"}),
        ("fetch(url, limit=LIMIT)\nif mode == 'size':\n    go()\nx => 3\na >= b\na += b\n", set()),
        ("int main(int argc, char **argv)\n{\n    return fetch(argc);\n}\n", {"main"}),
        ("static int\nread_all (FILE *in)\n{\n  while (more (in)) {\n", {"read_all"}),
        ("void List::add(T& item) const {\n  if (full(item)) { grow(); }\n", {"add"}),
        ("    public int size() throws Broken {\n        for (int i : all) { } }\n", {"size"}),
        ("if is_valid(x) {\nfor x in iter_all(y) {\nelsif (x) {\n  go func2(a) {\n  return new Thing(a) {\n", set()),
        ("} else if (ready) {\n  return make(3);\n}\nint later(int);\nx = new Reader() {\n", {"x"}),
        ("", set()),
    ],
)
def test_what_a_text_gives_a_value_or_declares(text: str, names: set[str]) -> None:
    assert defined_in(text) == names


def test_where_a_name_is_given_its_value() -> None:
    text = "use(limit)\nlimit = 3\n"
    assert [text[start : start + len(name)] for start, name in given_values(text)] == ["limit"]
    assert next(given_values(text))[0] == text.index("limit = 3")


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "'",
        '"a',
        "(",
        "a:",
        " ",
        "self.",
        "(a:",
        "“a",
        "„a“ ",
        "a ",
        "a-",
        "def f(a=",
        "aa aa aa aa ",
        "\n",
        "a b(",
        "a(\n",
        "a()\n",
        "a() ",
    ],
)
def test_a_long_run_of_anything_is_looked_through_at_once(piece: str) -> None:
    text = piece * 100_000
    began = time.thread_time()
    defined_in(text)
    names_in(text)
    assert time.thread_time() - began < 2.0
