"""Reads an uploaded text out of a request: multipart with one file, or JSON. A file's name is a label, never a path.

Knows the two forms; what a text must be to become a chunk or a document is the session room's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from kvloom.config import ServerSettings
from kvloom.server.errors import ApiError, invalid_value
from kvloom.server.limits import parse_json
from kvloom.server.schema.kvloom import ChunkUpload, Label
from kvloom.server.schema.kvloom_libraries import DocumentUpload

MAX_FIELDS = 4
"""Form fields beside the file: its name, whether to repair it, and some room for what is then refused by name."""

FIELDS = ("file", "name", "repair")
TRUE, FALSE = ("true", "1"), ("false", "0", "")

_LABEL: TypeAdapter[str] = TypeAdapter(Label)


@dataclass(frozen=True)
class Upload:
    """A text that is to become a chunk or a document. `repair`: invalid UTF-8 becomes U+FFFD instead of an error."""

    name: str
    data: bytes = field(repr=False)
    repair: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    is_file: bool = True
    """Whether it came as a file's bytes, not as text in JSON."""


Shape = type[ChunkUpload] | type[DocumentUpload]


async def read_upload(
    request: Request, limits: ServerSettings, shape: Shape = ChunkUpload, fields: Sequence[str] = FIELDS
) -> Upload:
    """`shape`: what JSON has to be, `fields`: what a form may hold.

    Raises ApiError (400, 413, 415), RequestValidationError for JSON of a wrong shape."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        upload = _from_json(parse_json(await request.body(), limits.max_json_depth), shape)
    elif kind == "multipart/form-data":
        upload = await _from_form(request, int(limits.max_upload_bytes), fields)
    else:
        message = "send multipart/form-data with one `file`, or application/json with `name` and `text`"
        raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, code="unsupported_media_type")
    if len(upload.data) > limits.max_upload_bytes:
        raise ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the text has {len(upload.data):,} bytes; at most {int(limits.max_upload_bytes):,} are taken (setting "
            "server.max_upload_bytes): upload parts of it",
            code="upload_too_large",
        )
    return upload


def _from_json(value: Any, shape: Shape) -> Upload:
    try:
        body = shape.model_validate(value)
    except ValidationError as exc:
        found = [{**item, "loc": ("body", *item["loc"])} for item in exc.errors()]
        raise RequestValidationError(found, body=value) from exc
    metadata = (body.metadata or {}) if isinstance(body, ChunkUpload) else {}
    return Upload(body.name, body.text.encode(), metadata=metadata, is_file=False)


async def _from_form(request: Request, max_bytes: int, fields: Sequence[str]) -> Upload:
    try:
        return await _read_form(request, max_bytes, fields)
    except HTTPException as exc:  # starlette's own, for a form that is none
        raise invalid_value("file", f"the form cannot be read: {exc.detail}") from exc


async def _read_form(request: Request, max_bytes: int, fields: Sequence[str]) -> Upload:
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=max_bytes) as form:
        unknown = next((name for name in form if name not in fields), None)
        if unknown is not None:
            message = f"Unknown parameter: `{unknown[:64]}`; a form takes {', '.join(fields)}"
            raise ApiError(HTTPStatus.BAD_REQUEST, message, code="unknown_parameter", param=unknown[:64])
        if len(form.multi_items()) != len(form):
            raise invalid_value("file", "a field of the form is there twice")
        file = form.get("file")
        if not isinstance(file, UploadFile):
            message = "Missing required parameter: `file`, with a file name."
            raise ApiError(HTTPStatus.BAD_REQUEST, message, code="missing_required_parameter", param="file")
        given = form.get("name", "")
        name = given if isinstance(given, str) and given else label_of(file.filename or "")
        return Upload(_checked_label(name), await file.read(), _flag(form.get("repair", "")))


def label_of(file_name: str) -> str:
    """The last part of what a client calls its file, whatever system it runs on."""
    return PurePosixPath(file_name.replace("\\", "/")).name


def _checked_label(name: str) -> str:
    try:
        return _LABEL.validate_python(name)
    except ValidationError as exc:
        raise invalid_value("name", f"`name`: {exc.errors()[0]['msg']}.") from exc


def _flag(value: object) -> bool:
    text = value.lower() if isinstance(value, str) else "?"
    if text not in (*TRUE, *FALSE):
        raise invalid_value("repair", "`repair` is true or false")
    return text in TRUE
