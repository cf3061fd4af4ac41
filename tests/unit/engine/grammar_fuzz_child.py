"""Compiles and follows random grammars in a process that may die of it. Prints how many were followed and refused.

The trial that goes before is left out: what it lets through by chance must do no harm either.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvloom.engine import grammar as room
from kvloom.engine.fake import FakeVocabulary
from kvloom.errors import KvloomError
from kvloom.text.gbnf import from_gbnf
from kvloom.text.grammar import from_schema

NUM_STEPS = 40
FALLBACKS = (("root", "a b | c | a"), ("a", '"x"'), ("b", '"y"'), ("c", '"z"'))
"""What a rule is that was not drawn."""
NAMES = ("root", "a", "b", "c", "undefined")
ODD = '"\\[](){}|*+?.<>/#:=!^-\n\r\t \x00é😀{1,}{0,99999}{5,2}\\x4\\u00e9\\UFFFFFFFF<[5]>%json{}%ignore start'

_outcomes: Counter[str] = Counter()
_guides = room.GrammarGuides(FakeVocabulary())

literal = st.text('ab"\\\n\té😀', max_size=4).map(
    lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
)
char_class = st.tuples(st.sampled_from(["", "^"]), st.text("abz09-]\\^", min_size=1, max_size=4)).map(
    lambda parts: "[" + parts[0] + parts[1].replace("\\", "\\\\").replace("]", "\\]") + "]"
)
repetition = st.sampled_from(["*", "+", "?", "{3}", "{0,2}", "{1,}", "{1,1000000}", "{900000000}", "{2,1}", "{0}"])


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=4).map(" ".join),
        st.lists(inner, min_size=1, max_size=4).map(" | ".join),
        inner.map(lambda text: f"({text})"),
        st.tuples(inner, repetition).map(lambda parts: f"({parts[0]}){parts[1]}"),
    )


expression = st.recursive(
    st.one_of(literal, char_class, st.sampled_from([*NAMES[:4], ".", ""])), _compound, max_leaves=12
)
gbnf = st.lists(st.tuples(st.sampled_from(NAMES[:4]), expression), min_size=1, max_size=5).map(
    lambda rules: "\n".join(f"{name} ::= {body}" for name, body in dict([*rules, *FALLBACKS][::-1]).items())
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A grammar with pieces cut out and odd ones put in."""
    text = draw(gbnf)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(ODD, max_size=5)) + text[at + draw(st.integers(0, 6)) :]
    return text


scalar = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-9, 9), st.text('ab"é', max_size=3))
keywords: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(
        ["string", "integer", "number", "object", "array", "boolean", "null", "wrong", ["string", "null"]]
    ),
    "enum": st.lists(scalar, max_size=3),
    "const": scalar,
    "minLength": st.integers(-1, 10**9),
    "maxLength": st.integers(-1, 10**9),
    "minItems": st.integers(0, 10**6),
    "maxItems": st.integers(0, 10**6),
    "minimum": st.floats(-1e9, 1e9),
    "maximum": st.floats(-1e9, 1e9),
    "multipleOf": st.sampled_from([0, 1, 0.1, 3, 7.25, 1e-9]),
    "pattern": st.sampled_from(["a+", "^(a|b){1,500}$", "(", "(?=a)", "(.*a){30}", "\\d{1000}", "[^"]),
    "format": st.sampled_from(["date-time", "email", "uuid", "nonsense"]),
    "required": st.lists(st.sampled_from(["p", "q", "z"]), max_size=3),
    "$ref": st.sampled_from(["#", "#/$defs/d", "#/properties/p", "#/nowhere", "http://example.invalid/x"]),
    "uniqueItems": st.booleans(),
}


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(st.sampled_from(["p", "q", "d"]), inner, max_size=2)
    return st.fixed_dictionaries(
        {},
        optional={
            **keywords,
            "properties": named,
            "$defs": named,
            "items": inner,
            "additionalProperties": inner,
            "anyOf": st.lists(inner, max_size=3),
            "allOf": st.lists(inner, max_size=2),
        },
    )


few_keywords = st.one_of(*(st.fixed_dictionaries({key: strategy}) for key, strategy in keywords.items()))
schema = st.recursive(st.one_of(st.booleans(), few_keywords), _schemas, max_leaves=8)


def follow(grammar: str, seed: int) -> None:
    """Some steps along the grammar, by any allowed token."""
    chance = random.Random(seed)
    try:
        guide = _guides.start(grammar)
        for _ in range(NUM_STEPS):
            allowed = guide.allowed().nonzero()[0].tolist()
            if not allowed:
                break
            guide.accept(chance.choice(allowed))
        _outcomes["followed"] += 1
    except KvloomError:
        _outcomes["refused"] += 1


def main(num_examples: int) -> None:
    """Raises whatever is no KvloomError; what is worse ends the process."""
    room._try = lambda data: ""
    profile = settings(max_examples=num_examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)

    @profile
    @given(text=st.one_of(gbnf, mutated()), seed=st.integers(0, 99))
    def fuzz_gbnf(text: str, seed: int) -> None:
        try:
            grammar = from_gbnf(text)
        except KvloomError:
            _outcomes["refused"] += 1
            return
        follow(grammar, seed)

    @profile
    @given(text=st.one_of(mutated(), st.text(ODD + "ab", max_size=40)), seed=st.integers(0, 99))
    def fuzz_text(text: str, seed: int) -> None:
        follow(text.replace("root ::=", "start:").replace("::=", ":"), seed)

    @profile
    @given(value=schema, seed=st.integers(0, 99))
    def fuzz_schema(value: Any, seed: int) -> None:
        try:
            grammar = from_schema(value)
        except KvloomError:
            _outcomes["refused"] += 1
            return
        follow(grammar, seed)

    fuzz_gbnf()
    fuzz_text()
    fuzz_schema()
    print(_outcomes["followed"], _outcomes["refused"])


if __name__ == "__main__":
    main(int(sys.argv[1]))
