"""The models that an Ollama server on this machine keeps loaded: they hold memory that it may give back. Starts none.

Asks `GET /api/ps` (docs.ollama.com/api/ps): `size` is all that a model holds, `size_vram` the GPU's part of it.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from kvloom.memory.probe import Answer, Probe, Source
from kvloom.memory.reading import ServedModel

__all__ = ["OllamaProbe"]

DEFAULT_PORT = 11434
TIMEOUT_S = 0.5
"""It is asked over loopback, where a living server answers within milliseconds."""
MAX_ANSWER_BYTES = 1024**2
"""A loaded model takes about half a kilobyte."""


class OllamaProbe(Probe):
    """`address` as in the variable OLLAMA_HOST, which is taken by default."""

    name = "ollama"

    def __init__(self, address: str | None = None) -> None:
        given = os.environ.get("OLLAMA_HOST", "") if address is None else address
        self._scheme, self._host, self._port = _parsed(given.strip())

    def absence(self) -> str:
        if _is_here(self._host):
            return ""
        return f"OLLAMA_HOST names another machine ({self._host}): its models take no memory here"

    def sources(self) -> Sequence[Source]:
        return (Source(f"Ollama at {self._host}:{self._port}", self._read),)

    def _read(self) -> Answer:
        kind = http.client.HTTPSConnection if self._scheme == "https" else http.client.HTTPConnection
        # A connection of our own: no proxy stands between us and this machine.
        connection = kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", "/api/ps")
            response = connection.getresponse()
            body = response.read(MAX_ANSWER_BYTES)
        except ConnectionRefusedError:
            return Answer(absent=f"no server listens at {self._host}:{self._port}")
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ValueError(f"/api/ps was answered with status {response.status}")
        return _answer(body)


def _answer(body: bytes) -> Answer:
    """Raises ValueError where the body is no list of models."""
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ValueError(f"/api/ps was answered with no JSON: {body[:40]!r}") from error
    models = document.get("models", "none") if isinstance(document, Mapping) else "none"
    if models is None:  # an empty list, as a Go server may write it
        models = []
    if not isinstance(models, list):
        raise ValueError(f"/api/ps was answered without a list of models: {body[:40]!r}")
    served: list[ServedModel] = []
    failures: list[str] = []
    for model in models:
        fields = model if isinstance(model, Mapping) else {}
        name, size, vram = str(fields.get("name", "?")), fields.get("size"), fields.get("size_vram", 0)
        if not isinstance(size, int) or not isinstance(vram, int) or not 0 <= vram <= size:
            failures.append(f"{name} claims {size!r} bytes, {vram!r} of them on the GPU")
            continue
        served.append(ServedModel("ollama", name, vram, size - vram))
    return Answer(served=tuple(served), failures=tuple(failures))


def _parsed(address: str) -> tuple[str, str, int]:
    """Scheme, host and port of `host`, `host:port`, `:port` or a URL, as Ollama's own client reads them."""
    scheme, separator, rest = address.partition("://")
    scheme, rest = (scheme.lower(), rest) if separator else ("http", address)
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    default = {"http": 80, "https": 443}[scheme] if separator and scheme in ("http", "https") else DEFAULT_PORT
    # What a server binds to as "every address" is reached by loopback.
    return scheme, "127.0.0.1" if host in ("", "0.0.0.0", "::") else host, port or default


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
