"""Reads the name of a model behind HTTP: `http://host:port/v1#model`, `ollama:NAME`. Asks nobody."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from urllib.parse import urlsplit

from kvloom.errors import UsageError

OLLAMA_PREFIX = "ollama:"
OLLAMA_PORT = 11434
KEY_VARIABLE = "KVLOOM_REMOTE_KEY"
_DEFAULT_PATH = "/v1"
"""Where OpenAI-compatible servers answer, if the address does not say otherwise."""


class Protocol(Enum):
    """How an endpoint is spoken to."""

    OPENAI = "openai"
    OLLAMA = "ollama"


@dataclass(frozen=True)
class RemoteAddress:
    """`base_url` ends without a slash. `model` is "" where the endpoint's only one is meant."""

    protocol: Protocol
    base_url: str
    model: str

    @property
    def name(self) -> str:
        """What the status and the log of sessions call it."""
        if self.protocol is Protocol.OLLAMA:
            return f"{OLLAMA_PREFIX}{self.model}"
        return f"{self.base_url}#{self.model}" if self.model else self.base_url

    @property
    def root(self) -> str:
        """The server without the version in its path: llama.cpp's own calls are there."""
        return re.sub(r"/v\d+$", "", self.base_url)

    @property
    def is_loopback(self) -> bool:
        host = urlsplit(self.base_url).hostname or ""
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False


def parse_address(name: str) -> RemoteAddress | None:
    """None where `name` is no address but a file or a model's name. Raises UsageError where it is half of one."""
    if name.startswith(OLLAMA_PREFIX):
        model = name.removeprefix(OLLAMA_PREFIX).strip()
        if not model:
            raise UsageError("ollama: names no model; give ollama:NAME (ollama list shows those that are there)")
        return RemoteAddress(Protocol.OLLAMA, _ollama_url(os.environ.get("OLLAMA_HOST", "").strip()), model)
    if not re.match(r"(?i)https?://", name):
        return None
    address, _, model = name.partition("#")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{address} is no address: {error}") from error
    if parts.username or parts.password:
        raise UsageError(f"the address of {host} holds a password; give the key in {KEY_VARIABLE}")
    if not host or parts.query:
        raise UsageError(f"{address} is no endpoint; give http://HOST:PORT/v1#MODEL")
    place = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/") or _DEFAULT_PATH
    return RemoteAddress(
        Protocol.OPENAI, f"{parts.scheme.lower()}://{place}{f':{port}' if port else ''}{path}", model.strip()
    )


def _ollama_url(host: str) -> str:
    """The server of OLLAMA_HOST, as Ollama's own client reads it. Raises UsageError where it is no address."""
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = "http", host
    try:
        parts = urlsplit(f"//{rest}")
        name, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(f"OLLAMA_HOST is {host!r}, which is no address: {error}") from error
    # What a server binds to as "every address" is reached by loopback.
    name = "127.0.0.1" if name in ("", "0.0.0.0", "::") else name
    standard = {"http": 80, "https": 443}.get(scheme, OLLAMA_PORT) if separator else OLLAMA_PORT
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port or standard}{parts.path.rstrip('/')}"
