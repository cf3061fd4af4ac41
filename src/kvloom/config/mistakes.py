"""What to tell a person about a wrong setting: where it stands, what is wrong, which valid name is nearest.

Knows names, places and pydantic's errors; no setting by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from kvloom.config.document import Document, Location
from kvloom.config.file import ConfigFile
from kvloom.config.foreign import FOREIGN_VARIABLES
from kvloom.config.names import closest, nearest
from kvloom.errors import ConfigError

ENV_PREFIX = "KVLOOM_"
ENV_NESTING = "__"

_CHOICES = ("literal_error", "enum")
_QUOTED = re.compile(r"'([^']*)'")


@dataclass(frozen=True)
class Origins:
    """Where values came from: overrides, variables, the file, in the order in which they win."""

    given: Mapping[str, Any]
    file: ConfigFile

    def exact(self, location: Location) -> str:
        """The option, variable or line that gave a setting; "" where it was not given by itself."""
        if location and _holds(self.given, location):
            return f"option --{location[-1].replace('_', '-')}"
        wanted = {ENV_PREFIX + ENV_NESTING.join(location).upper()}
        wanted |= {variable for variable, name in FOREIGN_VARIABLES.items() if location == (name,)}
        for variable in os.environ:
            if variable.upper() in wanted and os.environ[variable].strip():
                return f"environment variable {variable}"
        line = self.file.lines.get(location)
        return f"{self.file.path}, line {line}" if line else ""

    def nearest(self, location: Location) -> str:
        """The same for a setting, or for the group around it."""
        around = (self.exact(location[:depth]) for depth in range(len(location), 0, -1))
        return next((place for place in around if place), "settings")

    def name(self, location: Location) -> str:
        """A setting as it is written where it was given: the file may use another program's name for it."""
        here = self.exact(location)
        written = self.file.names.get(location)
        return written if written and here.startswith(f"{self.file.path}, ") else ".".join(location)


def groups_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields of a model that are groups of settings."""
    types = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: kind for name, kind in types.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def named_groups_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields that hold groups under names of the user's own, with what such a group is."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        kind = get_args(field.annotation)[1] if get_origin(field.annotation) is dict else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found[name] = kind
    return found


def valid_names(model: type[BaseModel], prefix: Location = ()) -> list[str]:
    """The names of a model's settings, or of those in the group at `prefix`; none where there is no such group."""
    names = iter(prefix)
    for name in names:
        group = groups_of(model).get(name)
        if group is None:
            group = named_groups_of(model).get(name)
            # The next part of the place is the name that the user gave.
            if group is None or next(names, None) is None:
                return []
        model = group
    return list(model.model_fields)


def check_variables(model: type[BaseModel], others: Iterable[str]) -> None:
    """Refuse variables with our prefix that name no setting: a misspelt one would be ignored in silence."""
    valid = {f"{ENV_PREFIX}{name}".upper() for name in valid_names(model)} | set(others)
    for group in groups_of(model):
        valid |= {f"{ENV_PREFIX}{group}{ENV_NESTING}{name}".upper() for name in valid_names(model, (group,))}
    for variable in os.environ:
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in valid:
            hint = nearest(variable.upper(), valid)
            raise ConfigError(f"environment variable {variable}: there is no such setting; {hint}")


def explain(item: Any, model: type[BaseModel], origins: Origins) -> str:
    """One of pydantic's errors as a sentence."""
    location = tuple(str(part) for part in item["loc"])
    if item["type"] == "contradiction":
        return _contradiction(location, item["ctx"], origins)
    where, name = origins.nearest(location), origins.name(location)
    if item["type"] == "extra_forbidden":
        return f"{where}: there is no setting `{name}`; {nearest(location[-1], valid_names(model, location[:-1]))}"
    if group := valid_names(model, location):
        return f"{where}: `{name}` is a group; expected {', '.join(group)} below it, got {item['input']!r}"
    return f"{where}: `{name}`: {item['msg']}, got {item['input']!r}{_meant(item)}"


def explain_in(item: Any, model: type[BaseModel], document: Document, prefix: Location) -> str:
    """The same for a document that is no settings file, and a `model` whose values stand there at `prefix`."""
    location = tuple(str(part) for part in item["loc"])
    where, name = document.where((*prefix, *location)), ".".join(location)
    if item["type"] == "extra_forbidden":
        return f"{where}: there is no setting `{name}`; {nearest(location[-1], valid_names(model, location[:-1]))}"
    if item["type"] == "missing":
        return f"{where}: `{name}` is missing"
    shown = f"`{name}`: " if name else ""
    return f"{where}: {shown}{item['msg']}, got {item['input']!r}{_meant(item)}"


def _meant(item: Any) -> str:
    """The choice that was probably meant; all of them stand in the message already."""
    if item["type"] not in _CHOICES:
        return ""
    close = closest(str(item["input"]), _QUOTED.findall(str(item["ctx"]["expected"])))
    return f"; did you mean `{close}`?" if close else ""


def _contradiction(location: Location, context: Mapping[str, Any], origins: Origins) -> str:
    """Settings that do not go together; the place is that of the first among them that was given."""
    names = [(*location, name) for name in context["names"]]
    given = [name for name in names if origins.exact(name)]
    where = origins.exact(given[0]) if given else origins.nearest(location)
    return f"{where}: {', '.join(f'`{origins.name(name)}`' for name in names)}: {context['message']}"


def _holds(values: Any, location: Location) -> bool:
    for name in location:
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True
