"""Connections from Envoy: uvicorn's, with a lane past ASGI for the requests that come by the thousand.

A request in the lane is answered with one write, and no part of ASGI is made for it: no scope, no events, no task
that only waits. Whatever is not quite ordinary (another method, a pipelined request, `Expect`) goes uvicorn's way.
"""

import asyncio
from functools import cache
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.loop import TOO_LARGE, Answer, FlaskOnLoop, Lane


class Connection(HttpToolsProtocol):
    """A connection of the gateway's worker. `config.app` is a FlaskOnLoop."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        app = self.config.app
        assert isinstance(app, FlaskOnLoop)  # noqa: S101 - what our worker serves
        self._find_lane = app.find_lane
        self._max_body_bytes = app.max_body_bytes
        self._query = ""
        self._answered_at = 0.0

    # --- What the parser finds ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins. What ASGI needs is made when it is known that ASGI gets it."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Take the lane, if there is one."""
        lane = self._lane()
        if lane is not None:
            self.cycle = _InLane(self, lane, keep_alive=self.parser.should_keep_alive())  # type: ignore[assignment]
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def _lane(self) -> Lane | None:
        if self.parser.get_method() != b"POST" or self.parser.should_upgrade() or self.expect_100_continue:
            return None
        if self.cycle is not None and not self.cycle.response_complete:  # pipelined: one after the other
            return None
        path, _, query = self.url.decode("latin-1").partition("?")
        self._query = query
        return self._find_lane(path)

    def on_body(self, body: bytes) -> None:
        """A part of the body came."""
        cycle = self.cycle
        if not isinstance(cycle, _InLane):
            super().on_body(body)
        elif len(cycle.body) + len(body) <= self._max_body_bytes:
            cycle.body += body
        else:
            cycle.keep_alive = False  # nobody reads the rest
            cycle.respond(TOO_LARGE)

    def on_message_complete(self) -> None:
        """The request is whole."""
        cycle = self.cycle
        if not isinstance(cycle, _InLane):
            super().on_message_complete()
        elif not cycle.response_complete:
            cycle.begin(self._query, self.headers)

    # --- Idle connections ---------------------------------------------------------------------------------

    # uvicorn sets a timer after each answer and takes it back with the next request. One that looks at the time
    # and sets itself again does for all of them.

    def on_response_complete(self) -> None:
        """Go on with what was pipelined, or be idle."""
        self._answered_at = self.loop.time()
        if self.pipeline or self.timeout_keep_alive_task is None:
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.flow.resume_reading()

    def _unset_keepalive_if_required(self) -> None:
        if self.transport.is_closing():
            super()._unset_keepalive_if_required()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it was idle for so long, and look again later if it was not."""
        if self.transport.is_closing():
            return
        idle_s = self.loop.time() - self._answered_at
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or idle_s < self.timeout_keep_alive:
            left_s = self.timeout_keep_alive if busy else self.timeout_keep_alive - idle_s
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()


class _NobodyWaits:
    """uvicorn tells a request's coroutine what happens to it; here is none."""

    def set(self) -> None:
        """Nothing is to be told."""


class _InLane:
    """One request in the lane: an `Exchange`, and for uvicorn's connection a cycle of request and response."""

    message_event: ClassVar = _NobodyWaits()

    __slots__ = ("_connection", "_lane", "_task", "body", "disconnected", "keep_alive", "response_complete")

    def __init__(self, connection: Connection, lane: Lane, *, keep_alive: bool) -> None:
        self._connection = connection
        self._lane = lane
        self._task: asyncio.Task[None] | None = None
        self.body = b""
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False

    def begin(self, query: str, headers: list[tuple[bytes, bytes]]) -> None:
        """The request is whole. The task goes on after the answer where there is more to do."""
        work = self._lane(query, headers, self.body, self)
        self._task = self._connection.loop.create_task(work)

    @property
    def is_open(self) -> bool:
        """See `Exchange`."""
        return not (self.response_complete or self.disconnected)

    def respond(self, answer: Answer) -> None:
        """See `Exchange`."""
        if not self.is_open:
            return
        self.response_complete = True
        transport = self._connection.transport
        transport.write(_head(answer.status, answer.content_type, len(answer.body), self.keep_alive) + answer.body)
        if not self.keep_alive:
            transport.close()
        self._connection.on_response_complete()


def _head(status: int, content_type: str, size_bytes: int, keep_alive: bool) -> bytes:
    return b"%scontent-length: %d\r\n\r\n" % (_before_length(status, content_type, keep_alive), size_bytes)


@cache
def _before_length(status: int, content_type: str, keep_alive: bool) -> bytes:
    close = "" if keep_alive else "connection: close\r\n"
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{close}content-type: {content_type}\r\n".encode("latin-1")
