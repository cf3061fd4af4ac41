"""Which names may stand at a place of a request's body: said where a client wrote another. Knows models, no values.

Knows no endpoint, and no pydantic but the fields of its models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def names_at(model: object, path: Sequence[Any]) -> list[str]:
    """The names beside the last one of `path`, of every model that may stand there; none where there is no model."""
    here = _models_in(model)
    for part in path[:-1]:
        # An index, and pydantic's own word for a branch of a union, lead to no field: the models stay.
        inner = {found for one in here for found in _models_in(_field(one, part))}
        here = inner or here
    return sorted({field.alias or name for one in here for name, field in one.model_fields.items()})


def _field(model: type[BaseModel], name: object) -> object:
    fields: dict[str, FieldInfo] = {field.alias or key: field for key, field in model.model_fields.items()}
    found = fields.get(name) if isinstance(name, str) else None
    return found.annotation if found is not None else None


def _models_in(kind: object) -> set[type[BaseModel]]:
    """Those that an annotation is made of: itself, or the parts of a list, of a union, …"""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {kind}
    return {found for part in get_args(kind) for found in _models_in(part)}
