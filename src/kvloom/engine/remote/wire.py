"""HTTP to one server: JSON both ways, and lines as they come. Knows no protocol above that, and no model.

A thread of its own runs the connections, so that a cancel ends a request at any point of it, also where the server is
still silent over a long prompt.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from kvloom.engine.remote.faults import failed, not_understood, refused
from kvloom.errors import CancelledError, EngineError

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
"""A server that is there takes the connection within a second or two, however busy it is."""
POLL_S = 0.05
"""How long a cancel may go unnoticed while the server is silent."""
KEEP_ALIVE_S = 2.0
"""Servers close idle connections (llama.cpp's after 5 s): a request over one that is being closed would fail."""
STOP_TIMEOUT_S = 5.0
MAX_ERROR_BYTES = 65_536


@dataclass(frozen=True)
class WireSettings:
    """`timeout_s`: the longest silence of the server. `trusts_environment`: whether proxies of the system are used."""

    base_url: str
    key: str = ""
    timeout_s: float = 600.0
    trusts_environment: bool = True

    def __repr__(self) -> str:  # the key must not come into a log
        return f"WireSettings({self.base_url!r}, key={'…' if self.key else ''!r}, timeout_s={self.timeout_s})"


@dataclass(frozen=True)
class Asking:
    """What an error message says of a request: the model, and tokens of prompt and window."""

    model: str = ""
    sizes: tuple[int, int] = (0, 0)


NOTHING = Asking()


class Wire:
    """Requests to one server. Safe for several threads."""

    def __init__(self, settings: WireSettings) -> None:
        self._settings = settings
        self.where = settings.base_url
        self._lock = threading.Lock()
        self._is_closed = False
        headers = {"User-Agent": "kvloom"}
        if settings.key:
            headers["Authorization"] = f"Bearer {settings.key}"
        timeout = httpx.Timeout(settings.timeout_s, connect=CONNECT_TIMEOUT_S, pool=None)
        self._loop = asyncio.new_event_loop()
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S)
        self._client = httpx.AsyncClient(
            headers=headers, timeout=timeout, limits=limits, trust_env=settings.trusts_environment
        )
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvloom-remote", daemon=True)
        self._thread.start()

    def get(self, url: str) -> Any:
        """The JSON that is there. Raises EngineError, ModelNotFoundError."""
        return self._result(self._unary("GET", url, None, NOTHING))

    def post(self, url: str, body: Mapping[str, Any], asking: Asking = NOTHING) -> Any:
        """The JSON that answers `body`. Raises EngineError, ModelNotFoundError."""
        return self._result(self._unary("POST", url, body, asking))

    def lines(
        self, url: str, body: Mapping[str, Any], asking: Asking, is_cancelled: Callable[[], bool]
    ) -> Generator[str, None, None]:
        """The answer's lines as they come. Closing it, or a cancel (CancelledError), ends the request."""
        came: queue.SimpleQueue[str | asyncio.Task[None]] = queue.SimpleQueue()
        begun: list[asyncio.Task[None]] = []

        def begin() -> None:
            task = self._loop.create_task(self._pump(url, body, asking, came.put))
            task.add_done_callback(came.put)
            begun.append(task)

        with self._lock:  # what is begun is begun before `close` looks for what to end
            self._check_open()
            self._loop.call_soon_threadsafe(begin)
        has_ended = False
        try:
            while True:
                if is_cancelled():
                    raise CancelledError("the reply was cancelled; the context is as before the turn")
                try:
                    item = came.get(timeout=POLL_S)
                except queue.Empty:
                    self._check_open()
                    continue
                if isinstance(item, str):
                    yield item
                    continue
                has_ended = True
                self._raise_of(item)
                return
        finally:
            if not has_ended:
                self._end(begun, came)

    def close(self) -> None:
        """End every connection and the thread. Idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        ending = asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)
        try:
            ending.result(STOP_TIMEOUT_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_TIMEOUT_S)
            if not self._thread.is_alive():
                self._loop.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError(f"the connection to {self.where} was closed")

    def _result(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._is_closed:
                work.close()
                self._check_open()
            future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except httpx.HTTPError as error:
            raise failed(error, self.where, self._settings.timeout_s) from error
        except BaseException:
            future.cancel()
            raise

    def _raise_of(self, task: asyncio.Task[None]) -> None:
        """What ended a stream, if it was no proper end."""
        if task.cancelled():
            self._check_open()
            raise EngineError(f"the request to {self.where} was ended")
        error = task.exception()
        if isinstance(error, httpx.HTTPError):
            raise failed(error, self.where, self._settings.timeout_s) from error
        if error is not None:
            raise error

    def _end(self, begun: list[asyncio.Task[None]], came: queue.SimpleQueue[str | asyncio.Task[None]]) -> None:
        """End a request and wait until its connection is closed: the server stops computing then."""
        if self._is_closed:
            return
        self._loop.call_soon_threadsafe(lambda: begun[0].cancel())  # noqa: PLW0108 - it is begun in that thread, before this
        try:
            while isinstance(came.get(timeout=STOP_TIMEOUT_S), str):
                continue
        except queue.Empty:  # the thread is gone with the process
            return

    async def _unary(self, method: str, url: str, body: Mapping[str, Any] | None, asking: Asking) -> Any:
        response = await self._client.request(method, url, json=body)
        text = response.text
        if not response.is_success:
            raise self._refusal(response, text, asking)
        try:
            return json.loads(text)
        except ValueError as error:
            raise not_understood(self.where, text) from error

    async def _pump(self, url: str, body: Mapping[str, Any], asking: Asking, put: Callable[[str], None]) -> None:
        async with self._client.stream("POST", url, json=body) as response:
            if not response.is_success:
                text = (await response.aread())[:MAX_ERROR_BYTES].decode("utf-8", "replace")
                raise self._refusal(response, text, asking)
            async for line in response.aiter_lines():
                put(line)

    def _refusal(self, response: httpx.Response, text: str, asking: Asking) -> Exception:
        retry_after = response.headers.get("retry-after", "")
        return refused(response.status_code, text, self.where, asking.model, asking.sizes, retry_after)

    async def _shut_down(self) -> None:
        mine = asyncio.current_task()
        # A request that is ended may have begun others, such as a connection, that end after it.
        while others := [task for task in asyncio.all_tasks() if task is not mine]:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
        await self._loop.shutdown_asyncgens()
