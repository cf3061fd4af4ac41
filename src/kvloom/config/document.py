"""A YAML or JSON file as plain values, with the line of every key and list item. Knows no meaning of any of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kvloom.errors import ConfigError

Location = tuple[str, ...]
"""Keys and, as text, list indexes, from the outermost on."""


@dataclass(frozen=True)
class Document:
    """What a file says. `lines`: where each key and each list item stands, from 1."""

    path: Path
    values: Any = None
    lines: dict[Location, int] = field(default_factory=dict)

    def where(self, location: Location) -> str:
        """`path, line N` of a place, or of what stands around it."""
        found = (self.lines.get(location[:depth]) for depth in range(len(location), 0, -1))
        return f"{self.path}, line {next(filter(None, found), 1)}"


def read_text(path: Path) -> str | None:
    """A file's text; None where there is no file. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_document(path: Path) -> Document:
    """The values of a file. Raises ConfigError where there is none, or it is neither YAML nor JSON."""
    text = read_text(path)
    if text is None:
        raise ConfigError(f"there is no file {path}")
    return parse_document(path, text)


def parse_document(path: Path, text: str) -> Document:
    """The values of a text. A file named `.json` is JSON, every other YAML. Raises ConfigError."""
    if path.suffix.lower() == ".json":
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise ConfigError(f"{path}{line}: not valid JSON: {what}") from error
        text = text.replace("\t", " ")  # JSON may be indented by them, YAML may not; inside texts they are escaped
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from error
    lines: dict[Location, int] = {}
    for where, number in _line_numbers(node, ()):
        if where in lines:
            raise ConfigError(
                f"{path}, line {number}: `{where[-1]}` stands here and in line {lines[where]}: only one can be meant"
            )
        lines[where] = number
    return Document(path, values, lines)


def _line_numbers(node: Any, prefix: Location) -> Iterator[tuple[Location, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*prefix, str(key.value))
            yield where, key.start_mark.line + 1
            yield from _line_numbers(value, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            where = (*prefix, str(index))
            yield where, item.start_mark.line + 1
            yield from _line_numbers(item, where)
