"""Flask inline on the event loop: no thread waits, and a view may return a response that is not there yet.

A view is a plain function that never blocks. It returns a `Response`, or a `Deferred` whose answer the loop
awaits; waiting then costs a few kilobytes instead of a thread.
"""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, NamedTuple, Protocol

from flask import Flask, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Hook = Callable[[], Awaitable[None]]


class Answer(NamedTuple):
    """What an HTTP request is answered."""

    body: bytes
    content_type: str
    status: int = 200

    def response(self) -> Response:
        """As Flask has it."""
        return Response(self.body, self.status, content_type=self.content_type)


TOO_LARGE = Answer(b'{"error":"PAYLOAD_TOO_LARGE"}', "application/json", 413)


class Exchange(Protocol):
    """A request that somebody waits to have answered."""

    @property
    def is_open(self) -> bool:
        """Whether the answer would still reach them."""

    def respond(self, answer: Answer) -> None:
        """Answer; nothing happens if it is open no longer."""


Lane = Callable[[str, list[tuple[bytes, bytes]], bytes, Exchange], Coroutine[Any, Any, None]]
"""Sees a POST to its end, by its query, headers (names in lower case) and body. Responds once, at some time."""


class FutureExchange:
    """An exchange whose answer is awaited by a coroutine."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        """See `Exchange`."""
        return not self.answer.done()

    def respond(self, answer: Answer) -> None:
        """See `Exchange`."""
        if self.is_open:
            self.answer.set_result(answer)


class Deferred(Response):
    """A response that is not there yet."""

    def __init__(self, answer: Awaitable[Answer]) -> None:
        super().__init__()
        self.answer = answer


class FlaskOnLoop:
    """The ASGI application that a Flask app is on an event loop.

    `startup` runs on the loop before the first request, `shutdown` after the last. A body of more than
    `max_body_bytes` is answered 413 without being read to its end.

    What a request costs ASGI and Flask is more than half of what it costs us. So `find_lane` may know a way past
    both for the requests of a path; whoever serves the connections asks it: `gateway.connection`.
    """

    def __init__(
        self, app: Flask, *, startup: Hook, shutdown: Hook, max_body_bytes: int, find_lane: Callable[[str], Lane | None]
    ) -> None:
        self.find_lane = find_lane
        self.max_body_bytes = max_body_bytes
        self._app = app
        self._startup = startup
        self._shutdown = shutdown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of the server (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._startup()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._body(receive)
        if body is None:
            await _send(scope, send, TOO_LARGE)
        else:
            response = self._dispatch(_environ(scope, body))
            if isinstance(response, Deferred):
                await _send(scope, send, await response.answer)
            else:
                headers = [
                    (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers
                ]
                await _write(scope, send, response.status_code, headers, response.get_data())

    async def _body(self, receive: Receive) -> bytes | None:
        event = await receive()
        body: bytes = event.get("body", b"")
        if not event.get("more_body"):
            return body if len(body) <= self.max_body_bytes else None
        chunks, size = [body], len(body)
        while event.get("more_body") and size <= self.max_body_bytes:
            event = await receive()
            chunks.append(event.get("body", b""))
            size += len(chunks[-1])
        return b"".join(chunks) if size <= self.max_body_bytes else None

    def _dispatch(self, environ: dict[str, Any]) -> Response:
        context = self._app.request_context(environ)
        context.push()
        try:
            return self._app.full_dispatch_request()
        except Exception as error:
            return self._app.handle_exception(error)
        finally:
            context.pop()


async def _send(scope: Scope, send: Send, answer: Answer) -> None:
    headers = [
        (b"content-type", answer.content_type.encode("latin-1")),
        (b"content-length", str(len(answer.body)).encode("latin-1")),
    ]
    await _write(scope, send, answer.status, headers, answer.body)


async def _write(scope: Scope, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})


def _environ(scope: Scope, body: bytes) -> dict[str, Any]:
    """The WSGI environment (PEP 3333) of an ASGI request."""
    host, port = scope.get("server") or ("", 0)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode("utf-8").decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "REMOTE_ADDR": (scope.get("client") or ("", 0))[0],
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").upper().replace("-", "_")
        value = raw_value.decode("latin-1")
        if name == "CONTENT_TYPE":
            environ[name] = value
        elif name != "CONTENT_LENGTH":
            key = f"HTTP_{name}"
            environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ
