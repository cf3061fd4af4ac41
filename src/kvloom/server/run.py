"""Runs the application on uvicorn: binds first, drains on the first signal, ends on the second. Knows no route."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from kvloom.config import ServerSettings
from kvloom.errors import ConfigError
from kvloom.server.auth import is_loopback
from kvloom.server.connection import connections
from kvloom.server.lifecycle import Phase
from kvloom.server.service import Service

SIGNALS = (signal.SIGTERM, signal.SIGINT)

LAST_BYTES_S = 5
"""After the drain, a connection may take so long to hand over what was written."""

BACKLOG = 1024
"""Connections that wait to be accepted while the event loop is busy."""


def check_address(host: str, *, has_keys: bool) -> None:
    """Raises ConfigError for an address that others can reach while anyone may ask."""
    if not has_keys and not is_loopback(host):
        raise ConfigError(
            f"without keys the server listens on loopback only, not on {host}: make a key (`kvloom keys add NAME`), or"
            " use --host 127.0.0.1"
        )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ConfigError where the address is taken or is none of this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as exc:
        raise ConfigError(f"{host!r} is no address of this machine: {exc}") from exc
    bound = socket.socket(family, kind, protocol)
    try:
        # Two restarts in a row: the old connections' last state must not hold the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as exc:
        bound.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {exc.strerror}; {_way_out(exc)}") from exc
    return bound


def _way_out(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "give an address of this machine with --host, or 0.0.0.0 for all of them"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "choose a port above 1023 with --port"
    return "stop what listens there, or choose another port with --port"


def serve(app: FastAPI, settings: ServerSettings, bound: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until a signal, then drain. `announce` is called once the model is loaded.

    Raises what the backend could not start with.
    """
    server = DrainingServer(uvicorn_config(app, settings), app.state.service, announce)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(server.serve_on(bound))


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, which takes half the time for an event, where it exists."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def uvicorn_config(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="on",
        http=connections(settings.stalled_client_s),
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        # Our own limit answers in our shape, up to twice of it.
        h11_max_incomplete_event_size=2 * int(settings.max_header_bytes),
        timeout_graceful_shutdown=LAST_BYTES_S,
    )


class DrainingServer(uvicorn.Server):
    """A server that still answers (with 503) while replies finish, and whose end by a signal is an ordinary one."""

    def __init__(self, config: uvicorn.Config, service: Service, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._announce = announce
        self._is_announced = False
        self._num_signals = 0
        self._draining: asyncio.Task[None] | None = None

    async def serve_on(self, bound: socket.socket) -> None:
        """Raises what the backend could not start with."""
        try:
            await self.serve(sockets=[bound])
            if self.force_exit and self.started:
                # uvicorn leaves it out of a forced end, and the application's last things with it.
                await self.lifespan.shutdown()
        finally:
            await self._service.close()
        if self._service.failure is not None:
            raise self._service.failure

    def stop(self) -> None:
        """Drain and end; the second time at once. From any thread or signal handler."""
        self._num_signals += 1

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises a captured signal again at the end, and the program would die of it instead of ending."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's signature
        self.stop()

    async def on_tick(self, counter: int) -> bool:
        if self._service.failure is not None:
            return True
        if not self._is_announced and self._service.lifecycle.phase is Phase.SERVING:
            self._is_announced = True
            self._announce()
        if self._num_signals > 1:
            self.force_exit = True
            return True
        if self._num_signals and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        await self._service.drain()
        self.should_exit = True
