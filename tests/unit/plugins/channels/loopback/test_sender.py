"""The loopback sender against the loopback simulator, over HTTP."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from assistant.api.message.v1.message_pb2 import Content, Member, Recipient, Text
from assistant.errors import (
    AssistantError,
    PlatformMisconfigured,
    PlatformOutcomeUnknown,
    PlatformRefused,
    PlatformThrottled,
    PlatformTokenRejected,
    PlatformUnavailable,
)
from assistant.settings import Secret
from assistant.testing import SimulatedPlatform, served, simulated
from plugins.channels.loopback import SenderSettings
from plugins.channels.loopback.sender import Sender

ALICE = Recipient(member=Member(id="alice"))
HELLO = [Content(text=Text(text="hello"))]


@pytest.fixture
async def platform() -> AsyncIterator[SimulatedPlatform]:
    async with simulated("loopback", callback_url="http://127.0.0.1:9") as platform:
        yield platform


def sender(platform: SimulatedPlatform, secret: str = "") -> Sender:
    settings = SenderSettings(secret=Secret(secret or platform.settings["secret"]), api_base=platform.url)
    return Sender(settings, platform.http)


async def test_a_message_is_delivered_once(platform: SimulatedPlatform) -> None:
    """A request that is sent twice reaches the member once."""
    ours = sender(platform)
    token = await ours.fetch_token()
    assert token.lifetime_s == 3600
    [request] = ours.render("delivery-1", 1, ALICE, HELLO)
    assert [request] == ours.render("delivery-1", 1, ALICE, HELLO)
    for _ in range(2):
        assert (await ours.send(request, token.value)).platform_message_id == "delivery-1"
    [message] = await platform.call("GET", "/messages")
    assert message["to"] == {"member": {"id": "alice"}}
    assert message["content"] == [{"text": {"text": "hello"}}]


async def test_the_account_is_checked(platform: SimulatedPlatform) -> None:
    """With a token of the platform's own, the platform accepts us."""
    ours = sender(platform)
    await ours.check((await ours.fetch_token()).value)


async def test_a_wrong_secret_is_told(platform: SimulatedPlatform) -> None:
    """A secret that the platform refuses is an operator's business."""
    with pytest.raises(PlatformMisconfigured):
        await sender(platform, secret="wrong").fetch_token()


async def test_an_old_token_is_told(platform: SimulatedPlatform) -> None:
    """A token that the platform no longer takes calls for another one."""
    with pytest.raises(PlatformTokenRejected):
        await sender(platform).send(b"{}", "old")


async def test_a_platform_that_is_away_is_told() -> None:
    """Nothing was sent when nobody listens."""
    async with served(web.Application()) as url, aiohttp.ClientSession() as http:
        pass
    async with aiohttp.ClientSession() as http:
        with pytest.raises(PlatformUnavailable):
            await Sender(SenderSettings(secret=Secret("x"), api_base=url), http).check("token")


@pytest.mark.parametrize(
    ("status", "expected"),
    [(429, PlatformThrottled), (500, PlatformUnavailable), (503, PlatformUnavailable), (400, PlatformRefused)],
)
async def test_a_status_says_what_to_do(status: int, expected: type[AssistantError]) -> None:
    """Each HTTP status of the platform is the error that says what to do."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Retry-After": "7"})

    with pytest.raises(expected) as told:
        await _check(answer)
    assert told.value.metadata == {"error_code": str(status)}
    assert told.value.retry_after_s == (7 if status == 429 else None)


async def test_an_answer_that_does_not_arrive_is_told() -> None:
    """When the connection breaks after the request, nobody knows whether it was done."""

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    with pytest.raises(PlatformOutcomeUnknown):
        await _check(answer)


async def _check(answer: Any) -> None:
    application = web.Application()
    application.router.add_get("/account", answer)
    async with served(application) as url, aiohttp.ClientSession() as http:
        await Sender(SenderSettings(secret=Secret("x"), api_base=url), http).check("token")


async def test_a_member_chats_on_the_platform() -> None:
    """What a member writes on the platform's page is called back, and the answer in the response is shown."""
    received: list[str] = []

    async def callback(request: web.Request) -> web.Response:
        received.append(request.query["signature"])
        return web.Response()

    application = web.Application()
    application.router.add_post("/loopback", callback)
    async with (
        served(application) as url,
        simulated("loopback", callback_url=f"{url}/loopback") as platform,
        platform.http.get(platform.url + "/") as page,
    ):
        assert page.content_type == "text/html"
        said = await platform.call("POST", "/say", {"member": "alice", "text": "ping"})
    assert (said["status"], said["reply"]) == (200, None)
    assert len(received) == 1
