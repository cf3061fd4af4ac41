"""Every error of the tree has an answer: a status, OpenAI's body, and nothing of this machine in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kvloom import errors
from kvloom.errors import AmbiguousChunkError, ContextOverflowError, EntryCorruptError, KvloomError, QuotaExceededError
from kvloom.server.errors import ApiError, parameter_name, to_api_error, validation_error

SECRET = "/home/someone/.local/share/kvloom"


def kinds(kind: type[KvloomError] = KvloomError) -> Iterator[type[KvloomError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from kinds(below)


def made(kind: type[KvloomError]) -> KvloomError:
    special: dict[type[KvloomError], dict[str, Any]] = {
        ContextOverflowError: {"num_needed_tokens": 5, "num_window_tokens": 4},
        EntryCorruptError: {"reason": "crc"},
        QuotaExceededError: {"limit_name": "x", "limit": 1, "remaining": 0, "retry_after_s": 1.0},
    }
    return kind(f"something about {SECRET}", **special.get(kind, {}))


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_every_error_has_an_answer(kind: type[KvloomError]) -> None:
    answer = to_api_error(made(kind))
    error = answer.body["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert 400 <= answer.status < 600
    assert isinstance(error["code"], str) and error["code"]
    if answer.status >= 500:
        assert SECRET not in error["message"]
        assert error["type"] == "server_error"
    else:
        assert error["type"] == "invalid_request_error"


def test_an_error_that_nobody_expected_says_nothing() -> None:
    answer = to_api_error(ValueError(SECRET))
    assert (answer.status, answer.code) == (500, "internal_error")
    assert SECRET not in str(answer)


def test_candidates_and_numbers_come_along() -> None:
    ambiguous = to_api_error(AmbiguousChunkError("two", [("ab" * 32, "a.py"), ("ac" * 32, "b.py")]))
    assert ambiguous.body["error"]["candidates"][1] == {"id": "ac" * 32, "name": "b.py"}
    overflow = to_api_error(ContextOverflowError("too long", num_needed_tokens=9, num_window_tokens=8))
    assert (overflow.body["error"]["n_prompt_tokens"], overflow.body["error"]["n_ctx"]) == (9, 8)
    assert "maximum context length is 8 tokens" in str(overflow)


def test_waiting_helps_for_rate_limits_and_not_for_spent_quotas() -> None:
    assert ApiError(429, "x", code="rate_limit_exceeded").kind == "rate_limit_error"
    assert ApiError(429, "x", code="insufficient_quota").kind == "insufficient_quota"


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (("messages", 0, "user", "content", "str"), {"messages": [{"content": 5}]}, "messages[0].content"),
        (("tools", 1, "function", "name"), {"tools": [{}, {"function": {}}]}, "tools[1].function.name"),
        (("model",), {}, "model"),
        (("a" * 500,), {"a" * 500: 1}, "a" * 64 + "…"),
        (("\ud800",), {"\ud800": 1}, "?"),
        ((), {}, ""),
    ],
)
def test_a_parameter_is_named_as_the_client_wrote_it(path: tuple[Any, ...], body: Any, name: str) -> None:
    assert parameter_name(path, body) == name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Value error, 'merge' is not one of list, answer", "`words`: 'merge' is not one of list, answer."),
        ("Input should be greater than or equal to 10", "`words`: it should be greater than or equal to 10."),
    ],
)
def test_a_wrong_value_is_told_without_the_validators_own_words(words: str, told: str) -> None:
    item = {"type": "value_error", "loc": ("body", "words"), "msg": words}
    assert str(validation_error([item], {"words": 1})) == told
