"""JSON Schemas as grammars: what they let through, and what they refuse by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvloom.engine.fake import IM_END, FakeVocabulary
from kvloom.engine.grammar import GrammarGuides
from kvloom.errors import UsageError
from kvloom.text.gbnf import from_gbnf
from kvloom.text.grammar import JSON_OBJECT, MAX_SCHEMA_NESTING, from_schema

_guides = GrammarGuides(FakeVocabulary())


def accepts(grammar: str, text: str) -> bool:
    """Whether `text` is a whole reply of the grammar."""
    guide = _guides.start(grammar)
    for byte in text.encode():
        if not guide.allowed()[byte]:
            return False
        guide.accept(byte)
    return bool(guide.allowed()[IM_END])


def test_json_object_is_any_object_and_nothing_else() -> None:
    for text in ("{}", '{"a": [1, -2.5e3, {"b": null}], "é": "\\n\\u0007"}', '{\n  "a": true\n}'):
        assert accepts(JSON_OBJECT, text)
    for text in ("[]", "1", '{"a" 1}', '{"a": 1', "{} x", " {}", '{"a": "\n"}', '{"a": 01}'):
        assert not accepts(JSON_OBJECT, text)


def test_white_space_comes_to_an_end() -> None:
    assert accepts(JSON_OBJECT, "{" + " " * 32 + "}")
    assert not accepts(JSON_OBJECT, "{" + " " * 33 + "}")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 12}, [3, 7, 12], [2, 13, 7.5, "7"]),
        ({"enum": ['q"\n\\', "é", 5, None]}, ['q"\n\\', 5, None], ["q", 6]),
        ({"const": {"a": ["\t"]}}, [{"a": ["\t"]}], [{"a": []}]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "éüx"], ["a", "abcd"]),
        ({"type": "string", "pattern": "^[a-c]+\\d$"}, ["abc7"], ["7", "abc", "d7"]),
        ({"type": "string", "format": "date-time"}, ["2024-02-29T12:00:00Z"], ["yesterday"]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], [1, 2, 3]]),
        ({"prefixItems": [{"const": 1}, {"const": 2}], "items": False, "type": "array"}, [[1, 2]], [[2], [1, 2, 3]]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, [5, None], ["5"]),
        ({"type": ["integer", "null"]}, [5, None], ["5"]),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, [3], [2]),
        (
            {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}},
            [[], [[], [[]]]],
            [1, [1]],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
                "required": ["a"],
                "additionalProperties": False,
            },
            [{"a": 1}, {"a": 1, "b": "x"}],
            [{}, {"b": "x"}, {"a": 1, "c": 1}, {"a": "1"}],
        ),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"x": 1}], [{"x": "1"}]),
        (True, [1, "x", [None]], []),
    ],
)
def test_a_schema_lets_through_what_satisfies_it(schema: Any, good: list[Any], bad: list[Any]) -> None:
    grammar = from_schema(schema)
    for value in good:
        assert accepts(grammar, json.dumps(value, ensure_ascii=False)), value
    for value in bad:
        assert not accepts(grammar, json.dumps(value, ensure_ascii=False)), value


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' at #"),
        ({"properties": {"a": {"not": {}}}}, "'not' at #/properties/a"),
        ({"items": [{"type": "string"}, {"then": {}}]}, "'then' at #/items/1"),
        ({"anyOf": [{"if": {}}]}, "'if' at #/anyOf/0"),
        ({"$defs": {"d": {"nullable": True}}}, "'nullable' at #/\\$defs/d"),
        ({"x-guidance": {"lenient": True}}, "'x-guidance' at #"),
        ({"type": "strang"}, "strang"),
        ({"type": "string", "format": "nonsense"}, "format"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"$ref": "http://example.invalid/x"}, "example.invalid"),
        ({"$ref": "#/$defs/nowhere"}, "nowhere"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum"),
        ({"enum": []}, "."),
        ({"const": float("nan")}, "no JSON"),
        (False, "nothing satisfies it"),
        ([], "list; it must be an object"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_name(schema: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_schema(schema)


def test_annotations_and_names_that_look_like_keywords_are_let_be() -> None:
    schema = {
        "title": "T",
        "description": "d",
        "x-order": 1,
        "type": "object",
        "properties": {"not": {"type": "integer", "default": 3, "examples": [{"if": 1}]}},
        "required": ["not"],
    }
    assert accepts(from_schema(schema), '{"not": 5}')


def test_a_schema_too_deep_or_too_large_is_refused() -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(MAX_SCHEMA_NESTING):
        deep = {"type": "object", "properties": {"a": deep}}
    with pytest.raises(UsageError, match="too large"):
        from_schema(deep)
    fits = deep["properties"]["a"]
    assert accepts(from_schema(fits), "{}")
    with pytest.raises(UsageError, match="too large"):
        from_schema({"anyOf": [{"type": "integer"}] * 5000})


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["y", "yesno"]),
        ('root ::= a{2,3} ("," b)* # c\na ::= [a-c] "\\t"\nb ::= .', ["a\tb\t", "a\ta\tc\t,x,\n"], ["a\t", "a\tb\t,"]),
        ('root ::=\n  "a" |\n  ("b"\n "c")\n', ["a", "bc"], ["b"]),
        ('root ::= "a" |', ["", "a"], ["aa"]),
        ('root ::= () "a"? ("b" | )', ["", "a", "ab", "b"], ["ba"]),
        ("root ::= [^a-c\\]\\\\-]+", ["de[", "é😀"], ["a", "]", "\\", "-"]),
        ('root ::= "\\x41\\u00e9\\U0001F600\\"" [\\u20ac-\\u20ad]', ['Aé😀"€'], ["A"]),
        ("root ::= [-a] [a-]", ["-a", "a-"], ["b-"]),
        ('root ::= start\nstart ::= Rule-1\nRule-1 ::= "x" start? "/"', ["x/", "xx//"], ["x"]),
        ('root ::= expr\nexpr ::= expr "+" expr | [0-9]+', ["1", "12+3+4"], ["1+", "+"]),
        ("", [], []),
    ],
)
def test_gbnf_means_what_it_means_to_llama_cpp(grammar: str, good: list[str], bad: list[str]) -> None:
    if not grammar:
        with pytest.raises(UsageError, match="no rule 'root'"):
            from_gbnf(grammar)
        return
    translated = from_gbnf(grammar)
    for text in good:
        assert accepts(translated, text), text
    for text in bad:
        assert not accepts(translated, text), text


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('root ::= "a"\nroot ::= "b"', "line 2 .* a second time"),
        ('root ::= "a" b', "line 1 .* the rule 'b', which is not defined"),
        ('root ::= ("a"', "ends inside a bracket"),
        ('root ::= "a")', "closes a bracket that is not open"),
        ('root ::= "a\n', "cannot be read"),
        ('root ::= * "a"', "repeats nothing"),
        ('root ::= "a" | *', "repeats nothing"),
        ("root ::= [z-a]", "runs backwards"),
        ("root ::= []", "empty character class|cannot be read"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "\\uD800"', "no character"),
        ("root ::= <token>", "cannot be read"),
        ('"a"', "begins with no rule"),
        ('root ::= "a"\n"b"', "line 2 .* begins with no rule"),
        ('root ::= (\nb ::= "x")', "begins a rule inside a bracket"),
    ],
)
def test_wrong_gbnf_is_refused_with_its_line(grammar: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_gbnf(grammar)
