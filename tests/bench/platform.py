"""The platform at the end of the way: takes what is sent by its API as cheaply as Python can, and keeps account.

Not the simulator, which checks everything and would be what is measured. `GET /delivered` tells what came.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import httptools
import orjson
import uvloop

_TOKEN = orjson.dumps({"errcode": 0, "errmsg": "ok", "access_token": "t", "expires_in": 7200, "ip_list": ["127.0.0.1"]})


class Delivered:
    """All requests of message/send, in the order in which they came."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []
        """Member and text."""
        self._seen: set[bytes] = set()
        self.repeated = 0
        """Equal requests: the platform would recognise them, since they ask it to, and show the first."""

    def add(self, body: bytes) -> None:
        """Take one request."""
        message = orjson.loads(body)
        if message.get("enable_duplicate_check"):
            if body in self._seen:
                self.repeated += 1
                return
            self._seen.add(body)
        self.messages.append((message["touser"], message.get("text", {}).get("content", "")))


class Connection(asyncio.Protocol):
    """One connection of HTTP/1.1, kept alive."""

    def __init__(self, delivered: Delivered) -> None:
        self._delivered = delivered
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._url, self._body = b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        answer = self._answer()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
        self._transport.write(head + answer)

    def _answer(self) -> bytes:
        path = self._url.partition(b"?")[0]
        if path == b"/delivered/count":
            return orjson.dumps({"count": len(self._delivered.messages)})
        if path == b"/delivered":
            return orjson.dumps({"messages": self._delivered.messages, "repeated": self._delivered.repeated})
        if path.endswith(b"/message/send"):
            self._delivered.add(self._body)
            return orjson.dumps({"errcode": 0, "errmsg": "ok", "msgid": f"m{len(self._delivered.messages)}"})
        return _TOKEN


async def _serve(port: int) -> None:
    delivered = Delivered()
    new_connection: Callable[[], Connection] = lambda: Connection(delivered)  # noqa: E731
    server = await asyncio.get_running_loop().create_server(new_connection, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
