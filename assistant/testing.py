"""For tests of ours and of plugin authors: real parts, small, on ports that the system picks.

    async with simulated("wecom", callback_url="http://127.0.0.1:8080/wecom") as platform:
        await platform.call("POST", "/simulator/members/zhangsan/messages?wait=1", {"text": "ping"})

Everything is an async context manager and leaves nothing behind.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from assistant import plugin


@asynccontextmanager
async def served(application: web.Application, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve an aiohttp application, by default on a free port of loopback; its URL, without a slash at the end."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        listening_host, listening_port = runner.addresses[0][:2]
        yield f"http://{listening_host}:{listening_port}"
    finally:
        await runner.cleanup()


@dataclass(frozen=True)
class SimulatedPlatform:
    """A channel's platform, played by its simulator."""

    url: str
    """Where its API and its page are, without a slash at the end."""
    settings: Mapping[str, Any]
    """The account's, by the names of the channel's settings."""
    simulator: plugin.Simulator
    """Seals callbacks and reads replies without any network."""
    http: aiohttp.ClientSession

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call it with JSON and return the JSON that it answers. Raises AssertionError for a status of 400 or more."""
        async with self.http.request(method, self.url + path, json=body) as response:
            if response.status >= 400:
                raise AssertionError(f"{method} {path}: HTTP {response.status}: {await response.text()}")
            return await response.json()


@asynccontextmanager
async def simulated(
    channel: str, callback_url: str, settings: Mapping[str, Any] | None = None
) -> AsyncIterator[SimulatedPlatform]:
    """Run a channel's simulator, which calls back at `callback_url`, with a new account or the one given."""
    facet: type[plugin.Simulator] = plugin.load("channels", channel, "simulator")
    settings = settings or facet.credentials()
    simulator = facet(settings)
    async with served(simulator.application(callback_url)) as url, aiohttp.ClientSession() as http:
        yield SimulatedPlatform(url, settings, simulator, http)
