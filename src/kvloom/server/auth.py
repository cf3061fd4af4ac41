"""Who asks, and what they may take: the seams of keys and quotas, and the check before anything of a request is read.

Knows no storage: `KeyCheck` and `Quota` are what it needs of one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from kvloom.server.errors import ApiError
from kvloom.server.wire import send_error

LOCAL_TENANT = "local"
"""Who asks where no key was made."""

OPEN_PATHS = frozenset(("/health",))
"""What needs no key."""


@dataclass(frozen=True)
class Caller:
    """Whose request it is. `key_id` names the key in logs and quotas; it is no secret."""

    tenant: str
    key_id: str = ""


class KeyCheck(Protocol):
    """The keys of a server. How long `check` takes says nothing of any key."""

    async def is_required(self) -> bool:
        """Whether any key was made: without one, everyone on this machine is the local tenant."""

    async def check(self, key: str) -> Caller | None:
        """Whose key it is; None where it is nobody's."""


class Reservation(Protocol):
    """What a request has set aside until it ends. Exactly one of `settle` and `release` counts, the first."""

    @property
    def headers(self) -> Mapping[str, str]:
        """`x-ratelimit-*` as they are now."""

    async def settle(self, used_tokens: int) -> None:
        """The request is over and took so many."""

    async def release(self) -> None:
        """The request failed by our fault: it took nothing."""


class Quota(Protocol):
    """What a caller may take. Raises ApiError (429, with Retry-After and x-should-retry) where it is too much."""

    async def reserve(self, caller: Caller, num_tokens: int, request_id: str) -> Reservation: ...


class NoKeys:
    """No key was ever made."""

    async def is_required(self) -> bool:
        return False

    async def check(self, key: str) -> Caller | None:  # noqa: ARG002 - the seam's signature
        return None


@dataclass
class _Unlimited:
    headers: Mapping[str, str] = field(default_factory=dict)

    async def settle(self, used_tokens: int) -> None:
        """Nothing is counted."""

    async def release(self) -> None:
        """Nothing was reserved."""


class NoQuota:
    """Everyone may take what there is."""

    async def reserve(self, caller: Caller, num_tokens: int, request_id: str) -> Reservation:  # noqa: ARG002
        return _Unlimited()


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class AuthMiddleware:
    """Puts the caller into the request's state, or answers 401 before the body is read."""

    def __init__(self, app: ASGIApp, keys: KeyCheck) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._caller(Headers(scope=scope))
        except ApiError as error:
            await send_error(error, scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    async def _caller(self, headers: Headers) -> Caller:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        found = await self._keys.check(key) if key else None
        if found is not None:
            return found
        # Clients send some key even where none is needed: it is nobody's, and is not looked at.
        if not await self._keys.is_required():
            _check_host(headers.get("host", ""))
            return Caller(LOCAL_TENANT)
        given = "the key is not valid" if key else "no key was given"
        raise ApiError(
            HTTPStatus.UNAUTHORIZED,
            f"{given}; send `Authorization: Bearer KEY` with a key of this server",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


def _check_host(host: str) -> None:
    """Without keys a foreign web page could reach us through a name of its own that it points at loopback."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if not is_loopback(name):
        message = "without keys this server answers to loopback names only (localhost, 127.0.0.1, [::1]); make a key"
        raise ApiError(HTTPStatus.FORBIDDEN, message, code="host_not_allowed")
