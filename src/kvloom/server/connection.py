"""One connection of a client: what uvicorn answers by itself, in our shape, and heads of requests that never come.

Knows HTTP/1.1 as h11 reads it; no route and no request's body.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from kvloom.server.errors import ApiError
from kvloom.server.wire import json_bytes

MAX_EARLY_BYTES = 64 * 1024
"""Of the requests behind one that is being answered so much is read ahead; the rest waits in the system's buffers."""
LINGER_S = 1.0
"""What a refused client still sends is read and thrown away for so long: a socket that is closed with bytes unread is
reset by the system, and the client may lose the answer that says why (RFC 9112, section 9.6)."""
MAX_LINGER_BYTES = 1024 * 1024
"""Who sends more than this meanwhile does not read."""


class Connection(H11Protocol):
    """A connection that is given up when the head of a request takes longer than `head_patience_s` to come.

    Without that, half-open connections would stay until the process has no file left to open.
    """

    head_patience_s: float

    _waiting: asyncio.TimerHandle | None = None
    _lingering: asyncio.TimerHandle | None = None
    _num_ignored_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        if self._lingering is not None:
            self._lingering.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._num_ignored_bytes += len(data)
            if self._num_ignored_bytes > MAX_LINGER_BYTES:
                self.transport.close()
            return
        super().data_received(data)
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) <= MAX_EARLY_BYTES:
            # uvicorn stops reading here until the reply has ended, and would not notice that the client leaves.
            self.flow.resume_reading()
        if self._lacks_head():
            self._watch()
        else:
            self._unwatch()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words say no more than ours
        message = "this cannot be read as HTTP/1.1: look at the request line, the headers and the lengths"
        self._refuse(ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_http"))

    def _unsupported_upgrade_warning(self) -> None:
        """What else is offered (a WebSocket, HTTP/2) need not be taken, and is nothing for a log."""

    def _lacks_head(self) -> bool:
        return self.conn.their_state is h11.IDLE and not self.transport.is_closing()

    def _watch(self) -> None:
        """One time for the whole head: a byte now and then does not prolong it."""
        if self._waiting is None:
            self._waiting = self.loop.call_later(self.head_patience_s, self._give_up)

    def _unwatch(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if not self._lacks_head():
            return
        if self.conn.trailing_data[0]:
            message = f"the head of the request did not come within {self.head_patience_s:g} s"
            self._refuse(ApiError(HTTPStatus.REQUEST_TIMEOUT, message, code="request_timeout"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer, where an answer has not begun already, and close: what comes next cannot be told apart."""
        before = self.conn.our_state
        if before not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = json_bytes(error.body)
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        reason = HTTPStatus(error.status).phrase.encode()
        events: list[h11.Event] = [
            h11.Response(status_code=error.status, headers=list(headers.items()), reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        if before is h11.SEND_RESPONSE:
            # The reply that is being made has nobody to go to.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.scope["method"] == "HEAD":
                del events[1]
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self._leave()

    def _leave(self) -> None:
        """Say that nothing more comes, and close when the client has seen it, or soon."""
        self._unwatch()
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self._lingering = self.loop.call_later(LINGER_S, self.transport.close)
        self.flow.resume_reading()
        with suppress(OSError):  # it has gone
            self.transport.write_eof()


def connections(head_patience_s: float) -> type[Connection]:
    """The class of a server's connections, as uvicorn wants one."""
    patience_s = head_patience_s

    class PatientConnection(Connection):
        head_patience_s = patience_s

    return PatientConnection
