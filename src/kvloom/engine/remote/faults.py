"""What went wrong at an endpoint, in our own errors: with its numbers, and what to do. Asks nobody.

An endpoint's words are quoted, cut short and on one line; a key is never among them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import httpx

from kvloom.engine.remote.address import KEY_VARIABLE
from kvloom.errors import ContextOverflowError, EngineError, KvloomError, ModelNotFoundError

QUOTED_CHARS = 300

_OVERFLOW_TYPES = {"exceed_context_size_error", "context_length_exceeded"}
_OVERFLOW_WORDS = re.compile(
    r"(?i)context (?:length|size|window)[^.]{0,80}\bexceed|exceed[^.]{0,80}\bcontext\b|maximum context length"
    r"|prompt (?:is )?too long|input (?:is )?too long"
)
_WINDOW = re.compile(
    r"(?i)(?:maximum context length (?:is|of)|context (?:length|size|window)(?: of| is|:)?|num_ctx\D{0,3}) *\(?(\d+)"
)
_NUMBER = re.compile(r"\d+")


def failed(error: Exception, where: str, timeout_s: float) -> EngineError:
    """A request that came to no answer, or whose answer broke off."""
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return EngineError(
            f"nothing answers at {where} ({_words(error)}); is the server running, and the address right?"
        )
    if isinstance(error, httpx.TimeoutException):
        return EngineError(
            f"{where} was silent for {timeout_s:g} s; a long prompt on a slow machine takes longer: raise "
            "remote_timeout_s, or make the context smaller"
        )
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
        return EngineError(
            f"{where} broke off its answer ({_words(error)}); the context is as before, ask again or look at the "
            "server's log"
        )
    return EngineError(f"{where} cannot be asked: {_words(error)}")


def cut_off(where: str) -> EngineError:
    """A stream that ended without saying that it was the end."""
    return EngineError(
        f"{where} ended its answer in the middle; the context is as before, ask again or look at the server's log"
    )


def refused(
    status: int, body: str, where: str, model: str, sizes: tuple[int, int] = (0, 0), retry_after: str = ""
) -> KvloomError:
    """An answer that is no success. `sizes`: the prompt's tokens as we count them, and the window."""
    fields = _error_fields(body)
    said = " ".join(str(fields.get("message", "")).split())[:QUOTED_CHARS] or f"HTTP {status}"
    overflow = _overflow(status, fields, said, sizes, where)
    if overflow is not None:
        return overflow
    if status in (401, 403):
        return EngineError(f"{where} wants a key, or does not accept this one ({said}); set {KEY_VARIABLE}")
    if status == 404:
        asked = f" {model}" if model else ""
        return ModelNotFoundError(f"{where} has no model{asked} ({said}); name one that it serves behind the #")
    if status == 429:
        wait = f" in {retry_after} s" if retry_after.isdigit() else " later"
        return EngineError(f"{where} takes no more requests for now ({said}); ask again{wait}")
    if status == 503:
        return EngineError(f"{where} is not ready ({said}); it may be loading the model, ask again in a moment")
    if status >= 500:
        return EngineError(f"{where} failed with HTTP {status}: {said}; look at the server's log")
    if 300 <= status < 400:
        return EngineError(f"{where} sends elsewhere (HTTP {status}); name the address that it sends to")
    return EngineError(f"{where} refused the request with HTTP {status}: {said}")


def not_understood(where: str, body: str) -> EngineError:
    """An answer that is not what the protocol says."""
    return EngineError(f"{where} gave an answer that is none: {' '.join(body.split())[:QUOTED_CHARS]!r}")


def _error_fields(body: str) -> Mapping[str, Any]:
    """The error object of a body: OpenAI's, vLLM's, FastAPI's or Ollama's; else the body as its message."""
    try:
        document = json.loads(body)
    except ValueError:
        return {"message": re.sub(r"<[^>]*>", " ", body)}
    found = document
    if isinstance(document, Mapping):
        found = document.get("error", document.get("detail", document))
    if isinstance(found, Mapping):
        return found
    return {"message": found}


def _overflow(
    status: int, fields: Mapping[str, Any], said: str, sizes: tuple[int, int], where: str
) -> ContextOverflowError | None:
    kinds = {str(fields.get("type", "")), str(fields.get("code", ""))}
    if not kinds & _OVERFLOW_TYPES and not (status in (400, 413, 422, 500) and _OVERFLOW_WORDS.search(said)):
        return None
    needed, window = _whole(fields.get("n_prompt_tokens")), _whole(fields.get("n_ctx"))
    if not window and (named := _WINDOW.search(said)):
        window = int(named[1])
    others = [int(number) for number in _NUMBER.findall(said) if window and int(number) > window]
    needed = needed or max(others, default=0) or sizes[0]
    window = window or sizes[1]
    return ContextOverflowError(
        f"{where} refused {needed} tokens, its context length is {window} ({said}); switch chunks off, clear turns, "
        "choose a policy that makes room, or start the server with a larger context",
        num_needed_tokens=needed,
        num_window_tokens=window,
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:QUOTED_CHARS] or type(error).__name__
