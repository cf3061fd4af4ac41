"""Opens a loom over a model behind HTTP. What `kvloom.open` does where the model's name is an address."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from kvloom.config import Paths, Settings
from kvloom.engine.remote.address import RemoteAddress
from kvloom.engine.remote.base import Endpoint
from kvloom.engine.remote.engine import STAND_IN_TEMPLATE, CountingVocabulary, RemoteEngine
from kvloom.engine.remote.open import open_endpoint
from kvloom.errors import EngineUnsupportedError, UsageError
from kvloom.session.loom import Loom
from kvloom.session.remote_counting import RemoteCounts
from kvloom.session.remote_loom import RemoteLoom, automatic_window
from kvloom.session.rooms import join
from kvloom.types import Fidelity, ModelFingerprint

_LOG = logging.getLogger(__name__)

FOLDER = "remote"
"""In the home: what was learned about counting, one file for each model."""
NEEDS_KV = ("kv_type", "kv_type_k", "kv_type_v", "fidelity", "n_gpu_layers")
"""Settings that say how KV is held, computed or placed."""


def open_remote(address: RemoteAddress, settings: Settings, where: Paths, given: Mapping[str, Any]) -> Loom:
    """`given`: what the caller asked for by name. Raises EngineUnsupportedError for what needs KV, EngineError where
    nothing answers, ModelNotFoundError, UsageError for a window that the endpoint does not serve."""
    for name in ("kv_type", "fidelity"):
        value = given.get(name)
        if value not in (None, Fidelity.EXACT.value):
            raise EngineUnsupportedError(
                f"{name} {value} cannot be had: the KV of a model behind {address.base_url} is the server's own "
                "business; kvloom manages its messages"
            )
    unused = without_effect(settings)
    if unused:
        _LOG.warning(
            "%s: without effect, the model's KV is the business of the server behind %s", ", ".join(unused),
            address.base_url,
        )  # fmt: skip
    key = settings.remote_key.get_secret_value() if settings.remote_key is not None else ""
    endpoint = open_endpoint(address, key, settings.remote_timeout_s)
    try:
        return _joined(address, settings, where, endpoint)
    except BaseException:
        endpoint.close()
        raise


def without_effect(settings: Settings) -> list[str]:
    """The settings that somebody gave, as `name value`, and that need KV which a model behind HTTP keeps to itself."""
    given = [name for name in NEEDS_KV if name in settings.model_fields_set]
    values = {name: getattr(settings, name) for name in given}
    shown = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    return [f"{name} {value}" for name, value in shown.items() if value not in (None, Fidelity.EXACT.value)]


def _joined(address: RemoteAddress, settings: Settings, where: Paths, endpoint: Endpoint) -> Loom:
    window = settings.context or automatic_window(settings, endpoint)
    _check_window(window, endpoint)
    fingerprint = _fingerprint(address, endpoint)
    counts = RemoteCounts(endpoint, where.home / FOLDER / f"{fingerprint[:16]}.json")
    facts = endpoint.facts
    vocabulary = CountingVocabulary(
        counts.number, facts.chat_template or STAND_IN_TEMPLATE, facts.bos_text, facts.eos_text
    )
    engine = RemoteEngine(endpoint, vocabulary, fingerprint, window)
    if endpoint.is_resizable:
        endpoint.resize(window)
    # The server's memory is not this machine's, and none of it is ours to give back.
    guard = settings.guard.model_copy(update={"enabled": False})
    chosen = settings.model_copy(update={"context": window, "fidelity": Fidelity.EXACT, "guard": guard})
    name = address.name if address.model else f"{address.base_url}#{facts.model}"
    return join(engine, chosen, where.home, (name, Path(facts.model)), partial(RemoteLoom, counts=counts))


def _check_window(window: int, endpoint: Endpoint) -> None:
    limit = endpoint.facts.max_window
    if 0 < limit < window:
        raise UsageError(
            f"a window of {window} tokens is more than the {limit} that {endpoint.where} serves for "
            f"{endpoint.facts.model}; give less with --context"
        )


def _fingerprint(address: RemoteAddress, endpoint: Endpoint) -> ModelFingerprint:
    """Of what counts and answers there: sessions that were counted by something else are counted anew."""
    facts = endpoint.facts
    parts = (address.protocol.value, address.base_url, facts.model, facts.digest, facts.chat_template)
    return ModelFingerprint(hashlib.sha256("\0".join(("kvloom-remote", *parts)).encode()).hexdigest())
