"""Looks at a home's catalog, the engine's build and endpoints without opening any for work. Changes nothing.

For `kvloom doctor` and `kvloom fit`; joins what the edges may not reach by themselves.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvloom.chunk.database import DATABASE_NAME
from kvloom.engine.remote.address import RemoteAddress, parse_address
from kvloom.errors import EngineUnsupportedError, UsageError
from kvloom.model.header import shape_of_metadata

if TYPE_CHECKING:
    from kvloom.config import Paths, Settings
    from kvloom.engine.remote.base import Endpoint
    from kvloom.model.shape import ModelShape

CHECK_TIMEOUT_S = 20.0
"""A server that is only asked what it is answers at once, or it is stuck."""


def catalog_fault(home: Path) -> str:
    """What SQLite's own check finds wrong in a home's catalog; empty where it is whole or not there yet."""
    path = home / DATABASE_NAME
    if not path.exists():
        return ""
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5.0)
        try:
            findings = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
        finally:
            connection.close()
    except sqlite3.Error as exc:
        return str(exc)
    return "" if findings == ["ok"] else "; ".join(findings)


@dataclass(frozen=True)
class EngineFindings:
    """`features`: what the build was made with, as llama.cpp prints it. `runs`: "runs", "crashed" or "unknown"."""

    features: str
    has_gpu: bool
    runs: str
    detail: str
    is_remembered: bool


def examine_engine(model: Path | None, where: Paths) -> EngineFindings:
    """Tries this build of llama.cpp on this CPU with a model, in a child process, unless the answer is known."""
    from kvloom.engine.llamacpp.build import build_features
    from kvloom.engine.llamacpp.load import LoadSettings
    from kvloom.engine.llamacpp.probe import probe

    features, has_gpu = build_features()
    if model is None:
        return EngineFindings(features, has_gpu, "unknown", "there is no model here to try it with", False)
    result = probe(LoadSettings(model, cache_dir=where.cache_dir))
    return EngineFindings(features, has_gpu, result.outcome.value, result.detail, result.is_remembered)


def is_address(model: str) -> bool:
    """Whether a model's name is the address of an endpoint. Raises UsageError where it is half of one."""
    return parse_address(model) is not None


@dataclass(frozen=True)
class EndpointFindings:
    """What answers at an address. A number of 0: it does not say."""

    where: str
    server: str
    model: str
    window: int
    max_window: int
    counts_exactly: bool
    is_resizable: bool


def examine_endpoint(model: str, settings: Settings) -> EndpointFindings:
    """Asks an endpoint what it is; computes nothing there. Raises EngineError, ModelNotFoundError, UsageError."""
    endpoint = _opened(_address(model), settings)
    try:
        facts = endpoint.facts
        return EndpointFindings(
            endpoint.where, facts.server, facts.model, facts.window, facts.max_window, endpoint.counts_exactly,
            endpoint.is_resizable,
        )  # fmt: skip
    finally:
        endpoint.close()


@dataclass(frozen=True)
class EndpointModel:
    """A model's shape and the bytes of its weights, as its endpoint tells them. `is_here`: on this machine."""

    shape: ModelShape
    weights_bytes: int
    is_here: bool


def read_endpoint_model(model: str, settings: Settings) -> EndpointModel:
    """Raises UsageError, saying what to do, where the endpoint does not tell; EngineError, ModelNotFoundError."""
    address = _address(model)
    endpoint = _opened(address, settings)
    try:
        metadata, size = endpoint.metadata()
        shape = shape_of_metadata(metadata, address.name)
        return EndpointModel(shape, size, address.is_loopback)
    except EngineUnsupportedError as error:
        facts = endpoint.facts
        # llama.cpp's server tells the path of its file instead of a digest.
        file = facts.digest if facts.digest.endswith(".gguf") else ""
        way = f"kvloom fit {file} on its machine" if file else "kvloom fit with its GGUF file or its config.json"
        window = f"; the window that it serves is {facts.window} tokens" if facts.window else ""
        raise UsageError(f"{error}, so its memory cannot be forecast from there; {way} does that{window}") from error
    finally:
        endpoint.close()


def _address(model: str) -> RemoteAddress:
    address = parse_address(model)
    if address is None:
        raise UsageError(f"{model} is no endpoint's address; give http://HOST:PORT/v1#MODEL or ollama:NAME")
    return address


def _opened(address: RemoteAddress, settings: Settings) -> Endpoint:
    from kvloom.engine.remote.open import open_endpoint

    key = settings.remote_key.get_secret_value() if settings.remote_key is not None else ""
    return open_endpoint(address, key, min(settings.remote_timeout_s, CHECK_TIMEOUT_S))
