"""Deliveries over each kind of database: one process after another, and on PostgreSQL two at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import orjson
import pytest
from aiohttp import web

from assistant.api.message.v1.message_pb2 import Account, Content, Member, Recipient, Text
from assistant.api.reply.v1.reply_pb2 import DeliverReplyRequest
from assistant.journal import Journal
from assistant.settings import Source
from assistant.testing import served
from reply_svc.accounts import Connections
from reply_svc.clock import Clock
from reply_svc.lanes import Lanes
from reply_svc.outbox import Outbox, State, delivery_id


class Platform:
    """Takes everything, a little slowly, or nothing for a while."""

    def __init__(self) -> None:
        self.url = ""
        self.texts: list[str] = []
        self.works = asyncio.Event()
        self.works.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/gettoken"):
            return web.json_response({"errcode": 0, "access_token": "t", "expires_in": 7200})
        body = orjson.loads(await request.read())
        await asyncio.sleep(0.002)
        await self.works.wait()
        self.texts.append(body["text"]["content"])
        return web.json_response({"errcode": 0, "msgid": "m1"})


@dataclass
class Replica:
    """One process' part of it."""

    outbox: Outbox
    lanes: Lanes

    async def deliver(self, text: str) -> None:
        request = DeliverReplyRequest(
            request_id=text,
            account=Account(channel="wecom"),
            recipient=Recipient(member=Member(id="zhangsan")),
            content=[Content(text=Text(text=text))],
        )
        delivery, new = await self.outbox.admit(request)
        if new:
            self.lanes.add(delivery)

    async def finished(self, text: str) -> None:
        async with asyncio.timeout(30):
            while (await self.outbox.get(delivery_id(text))).row.state != State.DELIVERED:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def replica(url: str, owner: str, platform: Platform) -> AsyncIterator[Replica]:
    account = {"corpid": "ww0", "secret": "s", "agentid": 1, "api_base": platform.url}
    async with aiohttp.ClientSession() as http:
        source = Source({"channels": {"wecom": account}}, {}, "the test")
        connections = Connections.configured(source, http, Clock())
        journal = await Journal.open(url, Outbox.migrations())
        outbox = Outbox(journal, owner)
        await outbox.open()
        lanes = Lanes(outbox, connections, Clock())
        await lanes.recover()
        yield Replica(outbox, lanes)
        await lanes.close()
        connections.close()
        await outbox.close()
        await journal.close()


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    platform = Platform()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", platform.handle)
    async with served(application) as platform.url:
        yield platform
        platform.works.set()


async def test_the_next_process_delivers_what_remains(database_url: str, platform: Platform) -> None:
    """In order, and each once."""
    async with replica(database_url, "a", platform) as first:
        await first.deliver("0")
        await first.finished("0")
        platform.works.clear()
        for number in range(1, 4):
            await first.deliver(str(number))
        asyncio.get_running_loop().call_later(0.2, platform.works.set)  # the one under way is finished
    async with replica(database_url, "a", platform) as second:
        await second.finished("3")
        assert await second.outbox.list(0, None, 1)
    assert platform.texts == ["0", "1", "2", "3"]


async def test_replicas_keep_a_members_order(postgres_url: str, platform: Platform) -> None:
    """Answers that two processes accept in turn arrive in the order of acceptance, each once."""
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(replica(postgres_url, name, platform)) for name in "ab"]
        for number in range(20):
            await replicas[number % 2].deliver(f"{number:02}")
        await replicas[1].finished("19")
    assert platform.texts == [f"{number:02}" for number in range(20)]


async def test_a_repeated_request_is_known_to_all(postgres_url: str, platform: Platform) -> None:
    """Whichever process is asked, a request is delivered once."""
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(replica(postgres_url, name, platform)) for name in "ab"]
        await asyncio.gather(*(replicas[number % 2].deliver("once") for number in range(10)))
        await replicas[0].finished("once")
    assert platform.texts == ["once"]


async def test_a_dead_process_is_succeeded(postgres_url: str, platform: Platform) -> None:
    """When its lease is over another process takes its deliveries, and what waited behind them follows."""
    async with AsyncExitStack() as stack:
        dying = await stack.enter_async_context(replica(postgres_url, "a", platform))
        living = await stack.enter_async_context(replica(postgres_url, "b", platform))
        platform.works.clear()
        await dying.deliver("first")
        await living.deliver("second")
        await dying.lanes.close()
        await dying.outbox.close()  # as its lease will end by itself
        platform.works.set()
        async with asyncio.timeout(20):
            while len(platform.texts) < 2:
                await living.lanes.recover()
                await asyncio.sleep(0.05)
        await living.finished("second")
    assert platform.texts[-2:] == ["first", "second"]
