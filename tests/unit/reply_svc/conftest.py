"""reply_svc over real parts: a real SQLite outbox, a real gRPC server, the simulated WeCom, and a fast clock."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from assistant import plugin
from assistant.api.message.v1.message_pb2 import Account, Content, Member, Recipient, Text
from assistant.api.reply.v1 import reply_pb2
from assistant.api.reply.v1.reply_pb2 import (
    DELIVERY_STATE_PENDING,
    DeliverReplyRequest,
    DeliverReplyResponse,
    Delivery,
    GetDeliveryRequest,
)
from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceStub
from assistant.client import connect
from assistant.journal import Journal
from assistant.server import Server
from assistant.settings import Source
from assistant.testing import served
from reply_svc.accounts import Connections
from reply_svc.clock import Clock
from reply_svc.lanes import Lanes
from reply_svc.outbox import Outbox
from reply_svc.service import ReplyService

WECOM = Account(channel="wecom")


class FastClock(Clock):
    """Goes `factor` times as fast, or stands still: what a test does meanwhile takes no time, on any machine."""

    def __init__(self, factor: float) -> None:
        self._factor = self._pace = factor
        self._base = self._since = time.time()

    def now(self) -> float:
        return self._base + (time.time() - self._since) * self._pace

    async def sleep(self, seconds: float) -> None:
        until = self.now() + seconds
        while (left_s := until - self.now()) > 0:
            await asyncio.sleep(min(0.01, left_s / self._factor))

    def stand_still(self) -> None:
        """Until `go_on`."""
        self._set_pace(0.0)

    def go_on(self) -> None:
        """As fast as before."""
        self._set_pace(self._factor)

    def _set_pace(self, pace: float) -> None:
        self._base, self._since, self._pace = self.now(), time.time(), pace


@dataclass
class Platform:
    """The simulated WeCom, on the clock of the test."""

    url: str
    settings: dict[str, Any]
    http: aiohttp.ClientSession

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        async with self.http.request(method, f"{self.url}/simulator/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def faults(self, **faults: Any) -> None:
        """From now on this goes wrong, and nothing else."""
        await self.call("PUT", "faults", faults)

    async def books(self) -> dict[str, int]:
        """What happened there."""
        return dict(await self.call("GET", "books"))

    async def shown(self, member: str = "zhangsan") -> list[dict[str, Any]]:
        """What the member sees, in order."""
        return list(await self.call("GET", f"members/{member}/messages"))

    async def texts(self, member: str = "zhangsan") -> list[str]:
        """The words of it."""
        return [message["text"] for message in await self.shown(member)]

    async def sent(self, *texts: str) -> None:
        """Return once the member sees these words, and no others."""
        async with asyncio.timeout(20):
            while await self.texts() != list(texts):
                await asyncio.sleep(0.01)


@dataclass
class Reply:
    """A running reply_svc."""

    stub: ReplyServiceStub
    outbox: Outbox
    lanes: Lanes
    connections: Connections
    journal: Journal
    deliveries: list[str] = field(default_factory=list)

    async def deliver(
        self, request_id: str, text: str = "", member: str = "zhangsan", content: list[Content] | None = None
    ) -> DeliverReplyResponse:
        """Deliver words (by default the request_id), or something else."""
        request = DeliverReplyRequest(
            request_id=request_id,
            account=WECOM,
            recipient=Recipient(member=Member(id=member)),
            content=content or [Content(text=Text(text=text or request_id))],
        )
        return await self.stub.DeliverReply(request, timeout=10)

    async def look(self, request_id: str) -> Delivery:
        """How it stands."""
        response = await self.stub.GetDelivery(GetDeliveryRequest(request_id=request_id), timeout=5)
        return response.delivery

    async def over(self, request_id: str) -> Delivery:
        """How it ended."""
        return await self.when(request_id, lambda delivery: delivery.state != DELIVERY_STATE_PENDING)

    async def when(self, request_id: str, condition: Callable[[Delivery], bool]) -> Delivery:
        """How it stands once it stands so."""
        async with asyncio.timeout(20):
            while not condition(delivery := await self.look(request_id)):
                await asyncio.sleep(0.01)
        return delivery


@asynccontextmanager
async def _platform(clock: Clock) -> AsyncIterator[Platform]:
    facet = plugin.load("channels", "wecom", "simulator")
    settings = facet.credentials()
    simulator = facet(settings, clock=clock.now)
    async with served(simulator.application("http://127.0.0.1:1/")) as url, aiohttp.ClientSession() as http:
        yield Platform(url, {**settings, "api_base": url}, http)


@asynccontextmanager
async def _reply(folder: Path, settings: dict[str, Any], clock: Clock) -> AsyncIterator[Reply]:
    source = Source({"channels": {"wecom": settings}}, {}, "the test")
    async with aiohttp.ClientSession() as http:
        connections = Connections.configured(source, http, clock)
        journal = await Journal.open(f"sqlite:///{folder}/reply.db", Outbox.migrations())
        outbox = Outbox(journal, "test:1")
        await outbox.open()
        lanes = Lanes(outbox, connections, clock)
        await lanes.recover()
        service = ReplyService(outbox, lanes, connections, max_open=1000)
        descriptor = reply_pb2.DESCRIPTOR.services_by_name["ReplyService"]
        address = f"unix:{folder}/reply.sock"
        async with Server({descriptor: service}, listen=address, drain_s=0):
            channel = connect(address)
            yield Reply(ReplyServiceStub(channel), outbox, lanes, connections, journal)
            await channel.close()
        await lanes.close()
        connections.close()
        await outbox.close()
        await journal.close()


RunReply = Callable[..., AbstractAsyncContextManager[Reply]]


@pytest.fixture
def clock() -> Clock:
    """The real one; a test that waits for minutes takes its own."""
    return Clock()


@pytest.fixture
async def platform(clock: Clock) -> AsyncIterator[Platform]:
    """The platform."""
    async with _platform(clock) as platform:
        yield platform


@pytest.fixture
def run_reply(tmp_path: Path, platform: Platform, clock: Clock) -> RunReply:
    """Starts a reply_svc over one outbox file, again and again if need be; settings of the account can be changed."""
    return lambda **changed: _reply(tmp_path, {**platform.settings, **changed}, clock)


@pytest.fixture
async def reply(run_reply: RunReply) -> AsyncIterator[Reply]:
    """A running one."""
    async with run_reply() as reply:
        yield reply


@pytest.fixture
def fast_clock() -> type[FastClock]:
    """For tests that wait for minutes."""
    return FastClock
