"""Opens the endpoint of an address, in the protocol that is spoken there. Knows no session."""

from __future__ import annotations

from kvloom.engine.remote.address import Protocol, RemoteAddress
from kvloom.engine.remote.base import Endpoint
from kvloom.engine.remote.ollama import OllamaEndpoint
from kvloom.engine.remote.openai import OpenAIEndpoint
from kvloom.engine.remote.wire import WireSettings


def open_endpoint(address: RemoteAddress, key: str, timeout_s: float) -> Endpoint:
    """`key` is sent to this address only. Raises EngineError, ModelNotFoundError, each saying what to do."""
    settings = WireSettings(address.base_url, key, timeout_s, trusts_environment=not address.is_loopback)
    if address.protocol is Protocol.OLLAMA:
        return OllamaEndpoint(address, settings)
    return OpenAIEndpoint(address, settings)
