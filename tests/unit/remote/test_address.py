"""Which names are addresses of models behind HTTP, and what they mean."""

from __future__ import annotations

import pytest

from kvloom.engine.remote.address import Protocol, parse_address
from kvloom.errors import UsageError


@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "/models/a.gguf", "user/repo:Q4_K_M", "llama3.2:1b", "httpd"])
def test_names_of_files_and_of_models_are_no_addresses(name: str) -> None:
    assert parse_address(name) is None


@pytest.mark.parametrize(
    ("name", "base", "model"),
    [
        ("http://h:8080/v1#m", "http://h:8080/v1", "m"),
        ("http://h:8080/v1/#a/b:c", "http://h:8080/v1", "a/b:c"),
        ("HTTPS://host#m", "https://host/v1", "m"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1", ""),
        ("https://host/api/openai/v1#m", "https://host/api/openai/v1", "m"),
    ],
)
def test_an_openai_address_is_read(name: str, base: str, model: str) -> None:
    address = parse_address(name)
    assert address is not None
    assert (address.protocol, address.base_url, address.model) == (Protocol.OPENAI, base, model)


def test_the_servers_own_calls_are_beside_the_version() -> None:
    address = parse_address("http://h:1/v1#m")
    assert address is not None
    assert (address.root, address.is_loopback) == ("http://h:1", False)
    other = parse_address("http://127.0.0.1:1/path#m")
    assert other is not None
    assert (other.root, other.is_loopback) == ("http://127.0.0.1:1/path", True)


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("box:1234", "http://box:1234"),
        ("https://box", "https://box:443"),
        ("http://box", "http://box:80"),
        ("[::1]:5", "http://[::1]:5"),
    ],
)
def test_an_ollama_name_goes_to_the_server_of_ollama_host(
    host: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    address = parse_address("ollama:llama3.2:1b")
    assert address is not None
    assert (address.protocol, address.base_url, address.model) == (Protocol.OLLAMA, base, "llama3.2:1b")
    assert address.name == "ollama:llama3.2:1b"


@pytest.mark.parametrize("name", ["ollama:", "http://#m", "http://h:99999999/v1#m", "http://h/v1?a=b#m"])
def test_half_an_address_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        parse_address(name)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="KVLOOM_REMOTE_KEY") as refused:
        parse_address("https://me:geheim@host/v1#m")
    assert "geheim" not in str(refused.value)
