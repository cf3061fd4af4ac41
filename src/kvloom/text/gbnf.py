"""Rewrites a grammar in llama.cpp's form (GBNF) as the engine room's guides read it. Knows no tokens and no engine.

The two forms are close: symbol by symbol is enough. A class or dot with its repetition becomes one symbol, which takes
the longest text that it can: in `[a-z]* "x"` the class takes every x.
"""

from __future__ import annotations

import json
import re

from kvloom.errors import UsageError

__all__ = ["from_gbnf"]

_SYMBOL = re.compile(
    r"""(?P<space>[ \t]+|\#[^\r\n]*) | (?P<line>\r\n?|\n) | (?P<rule>[A-Za-z0-9_-]+(?=[ \t]*::=)) | (?P<define>::=)
      | (?P<name>[A-Za-z0-9_-]+) | (?P<literal>"(?:\\.|[^"\\])*") | (?P<class>\[(?:\\.|[^\]\\])*\]) | (?P<any>\.)
      | (?P<repeat>[*+?]|\{[ ]*\d{1,9}[ ]*(?:,[ ]*(?:\d{1,9}[ ]*)?)?\}) | (?P<open>\() | (?P<close>\)) | (?P<or>\|)""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(.)|(.)", re.DOTALL)
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"} | {char: char for char in '\\"[]-'}
_ROOT = "root"


def from_gbnf(text: str) -> str:
    """The grammar in the engine's form. Raises UsageError naming the line, or the rule that is missing."""
    return _Translation(text).grammar()


class _Translation:
    """One pass over the symbols. `_parts` is the rule at work; a line's end ends it unless something is open."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._rules: dict[str, list[str]] = {}
        self._used: dict[str, int] = {}
        self._parts: list[str] | None = None
        self._depth = 0
        self._can_repeat = False
        self._is_empty = True  # nothing yet in this alternative
        self._goes_on = False  # the line's end is no end

    def grammar(self) -> str:
        while self._at < len(self._text):
            match = _SYMBOL.match(self._text, self._at)
            if match is None or match.lastgroup is None:
                raise self._error("cannot be read")
            self._take(match.lastgroup, match.group())
            self._at = match.end()
        if self._depth:
            raise self._error("ends inside a bracket")
        self._end_rule()
        for name, at in self._used.items():
            if name not in self._rules:
                self._at = at
                raise self._error(f"uses the rule {name!r}, which is not defined")
        if _ROOT not in self._rules:
            raise UsageError(f"the grammar defines no rule {_ROOT!r}, where every reply begins")
        return "\n".join(f"{self._renamed(name)}: {' '.join(parts)}" for name, parts in self._rules.items())

    def _take(self, kind: str, symbol: str) -> None:
        if kind == "space":
            return
        if kind == "line":
            if not self._depth and not self._goes_on:
                self._end_rule()
            return
        if kind == "rule":
            self._begin_rule(symbol)
            return
        if self._parts is None:
            raise self._error("begins with no rule (name ::= …)")
        if kind == "repeat":
            self._repeat(symbol)
        elif kind in ("or", "close"):
            self._close(kind)
        elif kind != "define":
            self._add(kind, symbol)
        self._goes_on = kind in ("or", "define")

    def _begin_rule(self, name: str) -> None:
        if self._depth:
            raise self._error("begins a rule inside a bracket")
        self._end_rule()
        if name in self._rules:
            raise self._error(f"defines the rule {name!r} a second time")
        self._parts = self._rules[name] = []
        self._can_repeat, self._is_empty, self._goes_on = False, True, True

    def _end_rule(self) -> None:
        if self._parts is not None and self._is_empty:
            self._parts.append('""')
        self._parts = None

    def _add(self, kind: str, symbol: str) -> None:
        assert self._parts is not None
        if kind == "open":
            self._depth += 1
            self._parts.append("(")
            self._can_repeat, self._is_empty = False, True
            return
        if kind == "name":
            self._used.setdefault(symbol, self._at)
            self._parts.append(self._renamed(symbol))
        elif kind == "literal":
            self._parts.append(json.dumps("".join(self._characters(symbol[1:-1])), ensure_ascii=False))
        else:
            self._parts.append(f"/{'(?s:.)' if kind == 'any' else self._class(symbol)}/")
        self._can_repeat, self._is_empty = True, False

    def _close(self, kind: str) -> None:
        assert self._parts is not None
        if self._is_empty:
            self._parts.append('""')
        if kind == "close":
            if not self._depth:
                raise self._error("closes a bracket that is not open")
            self._depth -= 1
        self._parts.append("|" if kind == "or" else ")")
        self._can_repeat, self._is_empty = kind == "close", kind == "or"

    def _repeat(self, symbol: str) -> None:
        assert self._parts is not None
        if not self._can_repeat:
            raise self._error("repeats nothing")
        symbol = symbol.replace(" ", "")
        last = self._parts[-1]
        self._parts[-1] = f"{last[:-1]}{symbol}/" if last.startswith("/") and last.endswith("/") else last + symbol
        self._can_repeat = False

    def _class(self, symbol: str) -> str:
        """A character class in the regex form, every character by its number."""
        body = symbol[1:-1]
        negation = "^" if body.startswith("^") else ""
        if len(body) == len(negation):
            raise self._error("has an empty character class")
        return f"[{negation}{self._ranges(body[len(negation) :])}]"

    def _ranges(self, body: str) -> str:
        marks = [match.group() for match in _CHARACTER.finditer(body)]
        chars = self._characters(body)
        ranges: list[str] = []
        i = 0
        while i < len(chars):
            if i + 2 < len(chars) and marks[i + 1] == "-":
                if chars[i] > chars[i + 2]:
                    raise self._error(f"has the range {marks[i]}-{marks[i + 2]}, which runs backwards")
                ranges.append(f"\\x{{{ord(chars[i]):x}}}-\\x{{{ord(chars[i + 2]):x}}}")
                i += 3
            else:
                ranges.append(f"\\x{{{ord(chars[i]):x}}}")
                i += 1
        return "".join(ranges)

    def _characters(self, body: str) -> list[str]:
        chars: list[str] = []
        for match in _CHARACTER.finditer(body):
            number = match.group(1) or match.group(2) or match.group(3)
            if number:
                value = int(number, 16)
                if value > 0x10FFFF or 0xD800 <= value < 0xE000:
                    raise self._error(f"names {match.group()}, which is no character")
                chars.append(chr(value))
            elif (escaped := match.group(4)) is not None:
                if escaped not in _ESCAPES:
                    raise self._error(f"has the unknown escape {match.group()}")
                chars.append(_ESCAPES[escaped])
            else:
                chars.append(match.group(5))
        return chars

    def _renamed(self, name: str) -> str:
        """A rule's name of ours: what begins with a capital would be another kind of rule to the engine."""
        return "start" if name == _ROOT else f"rule_{name.encode().hex()}"

    def _error(self, what: str) -> UsageError:
        line = self._text.count("\n", 0, self._at) + 1
        near = self._text[self._at : self._at + 20].split("\n")[0]
        return UsageError(f"line {line} of the grammar {what}: {near!r}")
