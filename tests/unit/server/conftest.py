"""Asynchronous tests of the edge run on asyncio, the loop it is made for."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
