"""The files of a batch: OpenAI's lines in, OpenAI's lines out, each of them durable. Runs nothing."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic_core import from_json

from kvloom.config import nearest
from kvloom.errors import ContentError, SessionBusyError, StoreReadOnlyError, UsageError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
FIELDS = ("custom_id", "method", "url", "body")
MAX_ID_CHARS = 512
MAX_TOLD = 20
"""Mistakes of a file that are told at once."""

KEY_CHARS = 1 << 16
"""Of the beginning of a prompt, by which lines are put in order. What follows is computed anyway."""


@dataclass(frozen=True)
class BatchLine:
    """One request of the input. Its body stays in the file. `key`: how its prompt begins."""

    number: int
    custom_id: str
    url: str
    model: str
    key: str = field(repr=False)
    offset: int = 0
    num_bytes: int = 0


def read_batch(path: Path) -> list[BatchLine]:
    """All lines, checked in their form. Raises UsageError with the mistakes, by file and line; ContentError."""
    lines: list[BatchLine] = []
    first: dict[str, int] = {}
    mistakes: list[str] = []
    try:
        with path.open("rb") as source:
            for number, offset, raw in _raw_lines(source):
                try:
                    line = _line(number, offset, raw)
                except ValueError as error:
                    mistakes.append(f"{path}, line {number}: {error}")
                    continue
                before = first.setdefault(line.custom_id, number)
                if before != number:
                    mistakes.append(f"{path}, line {number}: custom_id {line.custom_id!r} is that of line {before}")
                lines.append(line)
    except OSError as exc:
        raise ContentError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if mistakes:
        more = [f"… and {len(mistakes) - MAX_TOLD} more"] if len(mistakes) > MAX_TOLD else []
        raise UsageError("\n".join([*mistakes[:MAX_TOLD], *more]))
    if not lines:
        raise UsageError(f"{path} holds no requests; expected one JSON object to a line: {', '.join(FIELDS)}")
    return lines


def read_body(path: Path, line: BatchLine) -> bytes:
    """A line's body, as JSON. Raises ContentError where the file is not what it was."""
    try:
        with path.open("rb") as source:
            source.seek(line.offset)
            whole = from_json(source.read(line.num_bytes))
    except OSError as exc:
        raise ContentError(f"{path} cannot be read any more: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise ContentError(f"{path} was changed while the batch ran: line {line.number}") from exc
    if not isinstance(whole, dict) or whole.get("custom_id") != line.custom_id:
        raise ContentError(f"{path} was changed while the batch ran: line {line.number}")
    return json.dumps(whole["body"], ensure_ascii=True).encode("ascii")


def _raw_lines(source: Any) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    for number, raw in enumerate(source, 1):
        if raw.strip():
            yield number, offset, raw
        offset += len(raw)


def _line(number: int, offset: int, raw: bytes) -> BatchLine:
    """Raises ValueError for what is none."""
    try:
        values = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("expected a JSON object")
    for name in values:
        if name not in FIELDS:
            raise ValueError(f"there is no field `{name}`; {nearest(str(name), FIELDS)}")
    custom_id, url, body = values.get("custom_id"), values.get("url"), values.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_CHARS:
        raise ValueError(f"`custom_id` must be a text of 1 to {MAX_ID_CHARS} characters")
    if values.get("method") != "POST":
        raise ValueError(f"`method` must be POST, got {values.get('method')!r}")
    if url not in URLS:
        raise ValueError(f"`url` must be one of {', '.join(URLS)}, got {url!r}")
    if not isinstance(body, dict):
        raise ValueError("`body` must be a JSON object")
    if body.get("stream"):
        raise ValueError("`body.stream`: the replies of a batch are written whole; leave it out")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise ValueError("`body.model` is missing")
    return BatchLine(number, custom_id, url, model, prompt_key(body)[:KEY_CHARS], offset, len(raw))


def prompt_key(body: Mapping[str, Any]) -> str:
    """A text that begins alike for prompts that begin alike."""
    parts: list[str] = [json.dumps(body["tools"])] if body.get("tools") else []
    if isinstance(body.get("instructions"), str):
        parts.append(body["instructions"])
    given = body.get("messages", body.get("prompt", body.get("input")))
    return "\n".join([*parts, *_texts(given)])


def _texts(given: Any) -> Iterator[str]:
    if isinstance(given, str):
        yield given
    elif isinstance(given, dict):
        for name in ("role", "text", "id", "content", "tool_calls"):
            yield from _texts(given.get(name))
    elif isinstance(given, list) and given and isinstance(given[0], int):
        yield ",".join(map(str, given))
    elif isinstance(given, list):
        for one in given:
            yield from _texts(one)


class BatchOutput:
    """The output file: held by one process at a time, a line at a time added and made durable.

    `done`: the custom ids of lines that stand in it. What a killed process left of a last line is cut off.
    """

    def __init__(self, path: Path, known: Sequence[str]) -> None:
        """Raises SessionBusyError where another process writes it, UsageError where it is another batch's,
        StoreReadOnlyError."""
        self._path = path
        self._lock = threading.Lock()
        try:
            is_new = not path.exists()
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            if is_new:
                _sync_folder(path.parent)
        except OSError as exc:
            raise StoreReadOnlyError(f"{path} cannot be written: {exc.strerror or exc}") from exc
        try:
            self._hold()
            self.done = self._read(frozenset(known))
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """The record is on disk when this returns. Raises StoreReadOnlyError. Safe for several threads."""
        data = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._file, data) :]
                os.fsync(self._file)
            except OSError as exc:
                raise StoreReadOnlyError(
                    f"{self._path} cannot be written any more: {exc.strerror or exc}; what stands in it is whole, run"
                    " the batch again to go on"
                ) from exc

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hold(self) -> None:
        """The lock falls when the process dies."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise SessionBusyError(f"another process writes {self._path}; wait for it, or name another file") from exc
        except OSError:
            pass  # a file system without locks

    def _read(self, known: frozenset[str]) -> set[str]:
        done: set[str] = set()
        end = 0
        with self._path.open("rb") as source:
            for number, raw in enumerate(source, 1):
                if not raw.endswith(b"\n"):
                    break
                end += len(raw)
                if not raw.strip():
                    continue
                custom_id = _id_of(raw)
                if custom_id is None:
                    raise UsageError(f"{self._path}, line {number}: no line of a batch's output; name another file")
                if custom_id not in known:
                    raise UsageError(
                        f"{self._path}, line {number}: {custom_id!r} is no request of this batch; name another file"
                    )
                done.add(custom_id)
        os.ftruncate(self._file, end)
        return done


def _id_of(raw: bytes) -> str | None:
    try:
        values = json.loads(raw)
    except ValueError:
        return None
    found = values.get("custom_id") if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def _sync_folder(folder: Path) -> None:
    """So that the file's name is as durable as its lines."""
    with suppress(OSError):
        held = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(held)
        finally:
            os.close(held)
