"""reply_svc as a process that is killed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from assistant.api.message.v1.message_pb2 import Account, Content, Member, Recipient, Text
from assistant.api.reply.v1.reply_pb2 import DELIVERY_STATE_DELIVERED, DeliverReplyRequest, GetDeliveryRequest
from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceStub
from assistant.client import connect
from assistant.testing import served

REQUEST = DeliverReplyRequest(
    request_id="r1",
    account=Account(channel="wecom"),
    recipient=Recipient(member=Member(id="zhangsan")),
    content=[Content(text=Text(text="你好"))],
)


class Platform:
    """Accepts a message and does not answer, until it is told to."""

    def __init__(self) -> None:
        self.url = ""
        self.accepted: list[bytes] = []
        self.arrived = asyncio.Event()
        self.answers = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/gettoken"):
            return web.json_response({"errcode": 0, "access_token": "t", "expires_in": 7200})
        self.accepted.append(await request.read())
        self.arrived.set()
        await self.answers.wait()
        return web.json_response({"errcode": 0, "msgid": "m1"})


@asynccontextmanager
async def process(environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "reply_svc", env=os.environ | environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGKILL)
        await running.wait()


@pytest.fixture
def port_offset(reserve_ports: Callable[[], AbstractContextManager[int]]) -> Iterator[int]:
    with reserve_ports() as offset:
        yield offset


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    platform = Platform()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", platform.handle)
    async with served(application) as platform.url:
        yield platform
        platform.answers.set()


async def test_a_killed_process_repeats_itself_byte_for_byte(
    platform: Platform, tmp_path: Path, port_offset: int
) -> None:
    """Killed between the platform's accepting and our recording, the next one sends the same bytes; SIGTERM ends it
    well, and its log holds neither words nor secret.
    """
    environment = {
        "AI_ASSISTANT_HOME": str(tmp_path),
        "AI_ASSISTANT_PORT_OFFSET": str(port_offset),
        "WECOM_CORPID": "ww0123456789abcdef",
        "WECOM_SECRET": "s3cret-s3cret",
        "WECOM_AGENTID": "1000002",
        "WECOM_API_BASE": platform.url,
    }
    channel = connect(f"127.0.0.1:{7003 + port_offset}")
    stub = ReplyServiceStub(channel)
    try:
        async with process(environment):
            await stub.DeliverReply(REQUEST, timeout=20)
            await asyncio.wait_for(platform.arrived.wait(), 10)
        platform.answers.set()
        async with process(environment) as second:
            async with asyncio.timeout(20):
                while True:
                    found = await stub.GetDelivery(GetDeliveryRequest(request_id="r1"), timeout=10)
                    if found.delivery.state == DELIVERY_STATE_DELIVERED:
                        break
                    await asyncio.sleep(0.02)
            second.send_signal(signal.SIGTERM)
            log, _ = await asyncio.wait_for(second.communicate(), 20)
            assert second.returncode == 0
    finally:
        await channel.close()
    assert len(platform.accepted) == 2
    assert len(set(platform.accepted)) == 1
    assert b"delivery_finished" in log
    assert "你好".encode() not in log
    assert b"s3cret" not in log
