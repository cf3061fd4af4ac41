"""Reads the YAML file: values, the line of each, the name under which each stands there. Knows no setting's meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvloom.config.document import Location, parse_document, read_text
from kvloom.config.foreign import FOREIGN_GROUP, FOREIGN_KEYS, converted, leaves, names_beside
from kvloom.config.names import nearest
from kvloom.errors import ConfigError


@dataclass(frozen=True)
class ConfigFile:
    """What a file says. `lines` and `names` are by our names; `names` has those that are written otherwise there."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Location, int] = field(default_factory=dict)
    names: dict[Location, str] = field(default_factory=dict)


def read_config_file(path: Path) -> ConfigFile:
    """The file's values; empty where there is no file. Raises ConfigError."""
    text = read_text(path)
    if text is None:
        return ConfigFile(path)
    document = parse_document(path, text)
    values = document.values
    if values is None:
        return ConfigFile(path)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{path}, line 1: expected settings as `name: value`, one to a line")
    return _translated(ConfigFile(path, _named(values), document.lines))


def _named(values: Any) -> Any:
    """The values with every key a text, so that a number for a name is an unknown name and not a puzzle."""
    return {str(k): _named(v) for k, v in values.items()} if isinstance(values, dict) else values


def _translated(file: ConfigFile) -> ConfigFile:
    """The file with another program's `context:` group, where it has one, as settings of ours."""
    group = file.values.get(FOREIGN_GROUP)
    if not isinstance(group, Mapping):
        return file
    values = {name: value for name, value in file.values.items() if name != FOREIGN_GROUP}
    lines, names = dict(file.lines), dict(file.names)
    for where, value in leaves(group):
        written = ".".join((FOREIGN_GROUP, *where))
        line = file.lines.get((FOREIGN_GROUP, *where), file.lines[(FOREIGN_GROUP,)])
        ours = FOREIGN_KEYS.get(where)
        if ours is None:
            raise ConfigError(_unknown(file, where, line))
        if ours in file.lines:
            raise ConfigError(
                f"{file.path}, line {line}: `{written}` is the same setting as `{'.'.join(ours)}` in line "
                f"{file.lines[ours]}; keep one of them"
            )
        lines[ours], names[ours] = line, written
        _put(values, ours, converted(ours[-1], value))
    return ConfigFile(file.path, values, lines, names)


def _put(values: dict[str, Any], where: Location, value: Any) -> None:
    """Sets a value in its group; not where the group is none: that is told where all values are checked."""
    *groups, name = where
    for group in groups:
        inner = values.setdefault(group, {})
        if not isinstance(inner, dict):
            return
        values = inner
    values[name] = value


def _unknown(file: ConfigFile, where: Location, line: int) -> str:
    written = ".".join((FOREIGN_GROUP, *where))
    valid = names_beside(where)
    if where[:1] and len(where) == 1 and where[0] in valid:
        inside = ", ".join(names_beside((where[0], "")))
        return f"{file.path}, line {line}: `{written}` is a group; expected {inside} below it"
    return f"{file.path}, line {line}: there is no setting `{written}`; {nearest(where[-1], valid)}"
