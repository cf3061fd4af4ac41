"""Asynchronous tests of the edge run on asyncio, the loop it is made for."""

from __future__ import annotations

from functools import partial

import httpx
import pytest

from tests.unit.server.live import PATIENCE_S


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx gives up after 5 s where a call does not say how long it waits: a busy disk may take that."""
    for name in ("get", "post", "put", "delete", "stream"):
        monkeypatch.setattr(httpx, name, partial(getattr(httpx, name), timeout=PATIENCE_S))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
