"""Errors as OpenAI's clients expect them: every KvloomError and every wrong request has a status and one body.

Knows HTTP statuses and the error tree. What stands in a 5xx body names no path and nothing of another tenant.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from kvloom.errors import (
    AmbiguousChunkError,
    CancelledError,
    ChunkError,
    ConfigError,
    ContentError,
    ContextOverflowError,
    EngineMemoryError,
    EngineUnsupportedError,
    KvloomError,
    LoomClosedError,
    MemoryPressureError,
    ModelError,
    ModelNotFoundError,
    NothingToUndoError,
    PurgeIncompleteError,
    SessionBusyError,
    SessionClosedError,
    SessionError,
    StoreError,
    StoreFullError,
    TemplateError,
    UnknownChunkError,
    UnknownSessionError,
    UnknownSnapshotError,
    UsageError,
)
from kvloom.server.known_names import names_at

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
RATE_LIMIT = "rate_limit_error"
CLIENT_CLOSED = 499
"""Not in the RFC: the client left, so nobody reads this status but the log."""

RETRY_SOON_S = 1
"""Where nobody can say when there is room again: a client asks again this soon."""

SHOWN_NAME_CHARS = 64
"""Most characters of a client's own words that an error repeats."""

MAX_TOLD_NAMES = 12
"""Where a place takes more names than these, an error does not list them."""


class ApiError(KvloomError):
    """A request is refused at the edge; carries the whole answer. It never crosses into the rooms below."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.details = dict(details or {})

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return "insufficient_quota" if self.code == "insufficient_quota" else RATE_LIMIT
        return SERVER_ERROR if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else INVALID_REQUEST

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
                **self.details,
            }
        }


def unsupported(param: str, hint: str) -> ApiError:
    """A parameter that OpenAI knows and this server does not."""
    message = f"`{param}` is not supported by this server: {hint}"
    return ApiError(HTTPStatus.BAD_REQUEST, message, code="unsupported_parameter", param=param)


def invalid_value(param: str, message: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_value", param=param)


def unavailable(message: str, code: str, retry_after_s: float = RETRY_SOON_S) -> ApiError:
    """Not now: ask again after so many seconds."""
    headers = {"retry-after": str(max(1, round(retry_after_s)))}
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code=code, headers=headers)


def internal() -> ApiError:
    return ApiError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "the server failed on this request; its log has the reason under the request id in the header x-request-id",
        code="internal_error",
    )


@dataclass(frozen=True)
class _Answer:
    status: int
    code: str
    says_why: bool = True
    """Whether the error's own text may leave: false where it can name a path of this machine."""
    retries: bool = False


_ANSWERS: dict[type[BaseException], _Answer] = {
    ModelNotFoundError: _Answer(404, "model_not_found"),
    ModelError: _Answer(503, "model_unavailable", says_why=False),
    UnknownChunkError: _Answer(404, "chunk_not_found"),
    ChunkError: _Answer(400, "invalid_chunk"),
    ContentError: _Answer(400, "invalid_content"),
    TemplateError: _Answer(400, "invalid_messages"),
    EngineUnsupportedError: _Answer(400, "unsupported_value"),
    EngineMemoryError: _Answer(503, "out_of_memory", says_why=False, retries=True),
    MemoryPressureError: _Answer(503, "memory_pressure", says_why=False, retries=True),
    StoreFullError: _Answer(507, "store_full", says_why=False),
    UnknownSessionError: _Answer(404, "session_not_found"),
    UnknownSnapshotError: _Answer(404, "snapshot_not_found"),
    SessionBusyError: _Answer(409, "session_busy"),
    SessionClosedError: _Answer(409, "session_closed"),
    NothingToUndoError: _Answer(409, "nothing_to_undo"),
    SessionError: _Answer(409, "session_error"),
    PurgeIncompleteError: _Answer(409, "purge_incomplete", says_why=False),
    StoreError: _Answer(503, "store_unavailable", says_why=False, retries=True),
    ConfigError: _Answer(503, "misconfigured", says_why=False),
    LoomClosedError: _Answer(503, "unavailable", says_why=False, retries=True),
    CancelledError: _Answer(503, "cancelled", says_why=False, retries=True),
    UsageError: _Answer(400, "invalid_value"),
}

_SAID_INSTEAD = {
    "model_unavailable": "the model cannot be loaded now; the server's log says why",
    "out_of_memory": "the engine has no room for this request now; ask again, or send a shorter prompt",
    "memory_pressure": "memory is short on the server: new work is refused until there is more",
    "store_full": "the server has no space left to store this",
    "store_unavailable": "the server cannot read or write its store now",
    "purge_incomplete": "the chunk is purged, but its text may still stand in a library that is damaged: delete those "
    "that GET /v1/kvloom/libraries marks with is_damaged",
    "misconfigured": "the server's settings do not allow this; its log says which",
    "unavailable": "the server is closing",
    "cancelled": "the reply was cancelled before it was whole",
}


def to_api_error(error: BaseException) -> ApiError:
    """The answer to any error; an unexpected one says nothing of its inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextOverflowError):
        return context_overflow(str(error), error.num_needed_tokens, error.num_window_tokens)
    answer = next((_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS), None)
    if answer is None:
        return internal()
    message = str(error) if answer.says_why else _SAID_INSTEAD[answer.code]
    details: dict[str, Any] = {}
    if isinstance(error, AmbiguousChunkError):
        details["candidates"] = [{"id": chunk, "name": name} for chunk, name in error.candidates]
    headers = {"retry-after": str(RETRY_SOON_S)} if answer.retries else {}
    param = "model" if answer.code == "model_not_found" else None
    return ApiError(answer.status, message, code=answer.code, param=param, headers=headers, details=details)


def context_overflow(why: str, num_prompt_tokens: int, window: int) -> ApiError:
    """A prompt that leaves no room, or not enough for the reply that was asked for. Clients look for these words."""
    return ApiError(
        HTTPStatus.BAD_REQUEST,
        why if "maximum context length" in why else f"This model's maximum context length is {window} tokens. {why}",
        code="context_length_exceeded",
        param="messages",
        details={"n_prompt_tokens": num_prompt_tokens, "n_ctx": window},
    )


# --- wrong requests --------------------------------------------------------------------------------------------------

_UNSUPPORTED_PARTS = ("image_url", "input_image", "input_audio", "file", "input_file", "refusal", "audio")


def validation_error(items: Sequence[Any], body: Any, model: object = None) -> ApiError:
    """pydantic's errors as one answer: one that is a name's fault first, else the one that lies deepest.

    `model`: what the body was read as, for the names that it knows.
    """
    if not items:
        return invalid_value("", "the request is not valid")
    item = max(items, key=_weight)
    kind = item["type"]
    place, *path = item["loc"] or ("body",)
    if place in ("query", "path", "header"):
        param = printable(str(path[-1])) if path else ""
    else:
        path = path if place == "body" else [place, *path]
        param = item.get("ctx", {}).get("param") or parameter_name(path, body, may_lack=kind == "missing")
    if kind == "unsupported_parameter":
        return unsupported(parameter_name([*path, item["ctx"]["name"]], body), item["ctx"]["hint"])
    if kind == "extra_forbidden":
        return _unknown(param, str(path[-1]), names_at(model, path))
    if kind == "missing":
        message = f"Missing required parameter: `{param}`." if param else "The request needs a JSON body."
        return ApiError(HTTPStatus.BAD_REQUEST, message, code="missing_required_parameter", param=param or None)
    if kind in ("json_invalid", "model_attributes_type", "model_type") and not param:
        message = "The body must be one JSON object, sent with content-type: application/json."
        return ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_json")
    if kind == "union_tag_invalid":
        return _wrong_tag(param, item["ctx"])
    if kind == "union_tag_not_found":
        return _no_tag(param, item)
    says_which = not param or "param" in item.get("ctx", {})
    words = _words(item["msg"])
    message = f"{words}." if says_which else f"`{param}`: {words}."
    return ApiError(HTTPStatus.BAD_REQUEST, message, code=_code(kind), param=param or None)


def _words(message: str) -> str:
    """What a validator says, without pydantic's way to begin it."""
    return message.removeprefix("Value error, ").replace("Input should be", "it should be")


def parameter_name(path: Sequence[Any], body: Any, *, may_lack: bool = True) -> str:
    """`messages[3].content[0].text`: the part of a location that stands in the body.

    pydantic's own words for the branch of a union that it tried (`str`, `user`, …) are no part of it.
    `may_lack`: the last name is one that the body should have.
    """
    name, here = "", body
    for place, part in enumerate(path):
        if isinstance(part, int):
            name += f"[{part}]"
            here = here[part] if isinstance(here, list) and part < len(here) else None
        elif isinstance(here, dict) and (part in here or (may_lack and place == len(path) - 1)):
            name += f".{part}" if name else str(part)
            here = here.get(part)
    return printable(name)


def printable(text: str) -> str:
    """A client's own words, short and safe to repeat."""
    shown = text if len(text) <= SHOWN_NAME_CHARS else text[:SHOWN_NAME_CHARS] + "…"
    return shown.encode("utf-8", "replace").decode("utf-8")


def _weight(item: Any) -> tuple[bool, bool, bool, int]:
    named = item["type"] in ("unsupported_parameter", "extra_forbidden", "union_tag_invalid")
    # Of a union, the branches of another type say only that they are not meant.
    is_meant = not item["type"].endswith("_type")
    return named, is_meant, item["type"] not in ("string_type", "list_type"), len(item["loc"])


def _unknown(param: str, name: str, known: Sequence[str]) -> ApiError:
    shown = printable(name)
    close = difflib.get_close_matches(shown, known, 1, 0.7)
    hint = "."
    if close:
        hint = f"; did you mean `{close[0]}`?"
    elif 0 < len(known) <= MAX_TOLD_NAMES:
        hint = f"; known here: {', '.join(known)}."
    return ApiError(
        HTTPStatus.BAD_REQUEST,
        f"Unknown parameter: `{param or shown}`{hint}",
        code="unknown_parameter",
        param=param or shown,
    )


def _wrong_tag(param: str, context: Mapping[str, Any]) -> ApiError:
    tag, expected = printable(str(context.get("tag", ""))), context.get("expected_tags", "")
    if tag in _UNSUPPORTED_PARTS:
        return unsupported(f"{param}.type", f"a part of type {tag!r} cannot be read; supported: {expected}")
    message = f"`{param}`: there is no {tag!r} here; supported: {expected}."
    return ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_value", param=param or None)


def _no_tag(param: str, item: Any) -> ApiError:
    """Nothing says which of several objects is meant: it has no `role`, or no `type`."""
    tag = item["ctx"]["discriminator"].strip("'")
    if not isinstance(item["input"], dict):
        message = f"`{param}`: Input should be an object with a `{tag}`."
        return ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_type", param=param or None)
    name = f"{param}.{tag}" if param else tag
    message = f"Missing required parameter: `{name}`."
    return ApiError(HTTPStatus.BAD_REQUEST, message, code="missing_required_parameter", param=name)


def _code(kind: str) -> str:
    if kind.startswith(("greater_than", "too_short", "string_too_short")):
        return "value_below_minimum"
    if kind.startswith(("less_than", "too_long", "string_too_long")):
        return "value_above_maximum"
    if kind.endswith(("_type", "_parsing", "_from_float")):
        return "invalid_type"
    return "invalid_value"
