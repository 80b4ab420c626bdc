"""A service as a process: what is asked of its admin address."""

import asyncio
import contextlib
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from assistant.api.crypto.v1 import crypto_pb2
from assistant.errors import InvalidSetting
from assistant.server import Server
from assistant.settings import Address

CRYPTO = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]


class Crypto:
    def __getattr__(self, name: str) -> object:
        return lambda request, call: None


@pytest.fixture
async def admin() -> AsyncIterator[tuple[Server, str]]:
    """A server, and the URL of its admin address."""
    async with contextlib.AsyncExitStack() as stack:
        while True:
            with socket.create_server(("127.0.0.1", 0)) as free:
                address = Address(f"127.0.0.1:{free.getsockname()[1]}")
            with contextlib.suppress(InvalidSetting):  # another process took the port in between
                server = Server({CRYPTO: Crypto()}, listen="127.0.0.1:0", admin=address, drain_s=0)
                await stack.enter_async_context(server)
                break
        yield server, f"http://{address}"


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_a_server_that_does_not_serve_is_alive(admin: tuple[Server, str]) -> None:
    """What a service depends on is no reason to end it."""
    server, url = admin
    server.health.set(CRYPTO.full_name, False)
    assert await asyncio.to_thread(status, f"{url}/healthz") == 503
    assert await asyncio.to_thread(status, f"{url}/livez") == 200


async def test_a_loop_that_hangs_is_not_alive(admin: tuple[Server, str]) -> None:
    """A process that answers nobody any longer says so, although its health was good."""
    _, url = admin
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(status, f"{url}/livez")
        assert asked.result(timeout=10) == 503  # the loop hangs meanwhile
    assert await asyncio.to_thread(status, f"{url}/livez") == 200
