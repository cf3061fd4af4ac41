"""Makes grammars out of JSON Schemas, as the engine room's guides read them. Knows no tokens and no engine.

What a schema asks for and no grammar can hold to is refused by name: nothing is left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import llguidance

from kvloom.errors import UsageError

__all__ = ["JSON_OBJECT", "from_schema", "schema_for_lark"]

MAX_SCHEMA_NESTING = 24
"""Schemas within schemas; each is two or three brackets of the grammar."""
MAX_SCHEMA_NODES = 5_000

_OPTIONS = {"whitespace_pattern": r"[\x20\x0A]{1,32}"}
"""A small model that may write white space without end does so now and then; 32 indent ten levels."""
_OPTIONS_KEY = "x-guidance"
"""Where a schema itself carries options, "ignore what you cannot hold to" among them: refused."""

_SINGLE = ("items", "additionalProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_VALUES = (
    "type", "enum", "const", "$ref", "required", "minItems", "maxItems", "minProperties", "maxProperties", "minLength",
    "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
)  # fmt: skip
_ANNOTATIONS = (
    "title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$id",
    "$schema", "$anchor", "contentMediaType", "contentEncoding",
)  # fmt: skip
KNOWN_KEYWORDS = frozenset(_SINGLE + _LISTS + _MAPS + _VALUES + _ANNOTATIONS)


def from_schema(schema: Mapping[str, Any] | bool) -> str:
    """The grammar of every JSON text that `schema` (draft 2020-12) allows, its properties in the schema's order.

    Raises UsageError naming what cannot be held to. Compiling may still refuse it: `check_grammar` of the engine room.
    """
    text = schema_for_lark(schema)
    return _checked(llguidance.LLMatcher.grammar_from_json_schema(text), "the JSON schema")


def schema_for_lark(schema: Mapping[str, Any] | bool, where: str = "the JSON schema") -> str:
    """`schema` checked, with our options, as JSON: what stands behind `%json` in a grammar."""
    if isinstance(schema, bool):
        if not schema:
            raise UsageError(f"{where} is false: nothing satisfies it")
        schema = {}
    if not isinstance(schema, Mapping):
        raise UsageError(f"{where} is {type(schema).__name__}; it must be an object")
    _check_keywords(schema, where)
    try:
        return json.dumps({**schema, _OPTIONS_KEY: _OPTIONS}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON: {error}") from error


def _checked(grammar: str, what: str) -> str:
    wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong:
        raise UsageError(f"{what} cannot be held to: {' '.join(' '.join(messages).split())}")
    return grammar


def _check_keywords(schema: Mapping[str, Any], where: str) -> None:
    """Raises UsageError naming a keyword that is not known, its place, and a schema that is too large or too deep."""
    todo: list[tuple[str, Any, int]] = [("#", schema, 1)]
    num_nodes = 0
    while todo:
        path, node, depth = todo.pop()
        num_nodes += 1
        if depth > MAX_SCHEMA_NESTING or num_nodes > MAX_SCHEMA_NODES:
            raise UsageError(
                f"{where} is too large: at most {MAX_SCHEMA_NESTING} schemas within each other and "
                f"{MAX_SCHEMA_NODES:,} in all are allowed"
            )
        if not isinstance(node, Mapping):
            continue  # true, false, or something that compiling refuses
        for keyword in node:
            if keyword not in KNOWN_KEYWORDS and not (keyword.startswith("x-") and keyword != _OPTIONS_KEY):
                raise UsageError(f"{where} uses {keyword!r} at {path}, which is not supported")
        todo += ((f"{path}/{name}", child, depth + 1) for name, child in _children(node))


def _children(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas right within a schema."""
    for keyword, value in node.items():
        if keyword in _SINGLE and not isinstance(value, list):
            yield keyword, value
        elif keyword in (*_SINGLE, *_LISTS) and isinstance(value, list):
            yield from ((f"{keyword}/{index}", item) for index, item in enumerate(value))
        elif keyword in _MAPS and isinstance(value, Mapping):
            yield from ((f"{keyword}/{name}", item) for name, item in value.items())


JSON_OBJECT = from_schema({"type": "object"})
"""Any JSON object."""
