"""A way between two processes that can be cut in the middle of what it carries."""

import asyncio


class Proxy:
    """Forwards connections to one port of this machine."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self._server: asyncio.Server | None = None
        self._cutting = False
        self._connections: set[asyncio.Task[None]] = set()
        self.cuts = 0
        """Connections that were cut in the middle of a write."""

    async def open(self) -> str:
        """Begin; the address to connect to instead."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """End, and all connections with it."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def cut(self) -> None:
        """Forward half of the next chunk on its way, then break the connection that it was on."""
        before, self._cutting = self.cuts, True
        while self.cuts == before:
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            ways = [
                asyncio.create_task(self._forward(reader, upstream_writer)),
                asyncio.create_task(self._forward(upstream_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                upstream_writer.transport.abort()
        except OSError:
            pass  # nobody listens there now: the caller sees a broken connection
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            if self._cutting and len(chunk) > 100:
                self._cutting = False
                self.cuts += 1
                writer.write(chunk[: len(chunk) // 2])
                await writer.drain()
                return
            writer.write(chunk)
            await writer.drain()
