"""Flask inline on the event loop: no thread waits, and a view may return a response that is not there yet.

A view is a plain function that never blocks. It returns a `Response`, or a `Deferred` whose answer the loop
awaits; waiting then costs a few kilobytes instead of a thread.
"""

import io
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flask import Flask, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Hook = Callable[[], Awaitable[None]]


class Deferred(Response):
    """A response that is not there yet."""

    def __init__(self, answer: Awaitable[Response]) -> None:
        super().__init__()
        self.answer = answer


class FlaskOnLoop:
    """The ASGI application that a Flask app is on an event loop.

    `startup` runs on the loop before the first request, `shutdown` after the last. A body of more than
    `max_body_bytes` is answered 413 without being read to its end.
    """

    def __init__(self, app: Flask, *, startup: Hook, shutdown: Hook, max_body_bytes: int) -> None:
        self._app = app
        self._startup = startup
        self._shutdown = shutdown
        self._max_body_bytes = max_body_bytes

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
            response = Response('{"error":"PAYLOAD_TOO_LARGE"}', 413, content_type="application/json")
        else:
            response = self._dispatch(_environ(scope, body))
            if isinstance(response, Deferred):
                response = await response.answer
        data = response.get_data()
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": data if scope["method"] != "HEAD" else b""})

    async def _body(self, receive: Receive) -> bytes | None:
        event = await receive()
        body: bytes = event.get("body", b"")
        if not event.get("more_body"):
            return body if len(body) <= self._max_body_bytes else None
        chunks, size = [body], len(body)
        while event.get("more_body") and size <= self._max_body_bytes:
            event = await receive()
            chunks.append(event.get("body", b""))
            size += len(chunks[-1])
        return b"".join(chunks) if size <= self._max_body_bytes else None

    def _dispatch(self, environ: dict[str, Any]) -> Response:
        context = self._app.request_context(environ)
        context.push()
        try:
            return self._app.full_dispatch_request()
        except Exception as error:
            return self._app.handle_exception(error)
        finally:
            context.pop()


def _environ(scope: Scope, body: bytes) -> dict[str, Any]:
    """The WSGI environment (PEP 3333) of an ASGI request."""
    host, port = scope.get("server") or ("", 0)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode("utf-8").decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
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
