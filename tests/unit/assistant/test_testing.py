"""What plugin authors test with."""

import socket

import pytest
from aiohttp import web

from assistant import plugin
from assistant.testing import served, simulated


@pytest.mark.parametrize("channel", list(plugin.channels()))
async def test_every_channel_can_be_simulated(channel: str) -> None:
    """A new account on a running platform, whose callbacks are sealed for that account."""
    async with simulated(channel, "http://127.0.0.1:1/") as platform:
        callback, message_id = platform.simulator.callback("ping", "zhangsan")
        async with platform.http.get(platform.url) as response:
            assert response.status < 500
    assert callback.body
    assert message_id
    assert set(platform.settings) <= plugin.channels()[channel].settings()


async def test_a_failure_is_told_with_its_answer() -> None:
    """A test that calls wrongly fails where it calls, and says what the platform answered."""
    async with simulated("wecom", "http://127.0.0.1:1/") as platform:
        with pytest.raises(AssertionError, match=r"400.*unknown field"):
            await platform.call("PUT", "/simulator/faults", {"slow": True})


async def test_nothing_is_served_afterwards() -> None:
    """The port is free again when the block ends."""
    async with served(web.Application()) as url, simulated("wecom", url) as platform:
        later = platform.url
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(later.rpartition(":")[2]))) != 0
