"""What operators are told of the inbox, over gRPC, by a gateway with real turns."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from assistant.api.inbox.v1 import inbox_pb2
from assistant.api.inbox.v1.inbox_pb2 import (
    ANSWER_PATH_ACTIVE,
    ANSWER_PATH_PASSIVE,
    MESSAGE_STATE_ACKNOWLEDGED,
    MESSAGE_STATE_ANSWERED,
    MESSAGE_STATE_DEAD,
    GetMessageRequest,
    InboxMessage,
    ListMessagesRequest,
    MessageState,
    RetryMessageRequest,
)
from assistant.api.inbox.v1.inbox_pb2_grpc import InboxServiceStub
from assistant.client import connect
from assistant.errors import EngineUnavailable, InvalidRequest, NotRetryable, UnknownMessage
from assistant.server import Server
from assistant.settings import Address
from gateway.runtime import Gateway
from gateway.service import InboxService
from gateway.settings import Configuration, GatewaySettings, NlpSettings, SkillsSettings

if TYPE_CHECKING:
    from conftest import Away, House, Life

SERVICE = inbox_pb2.DESCRIPTOR.services_by_name["InboxService"]
KEY = "plain:default:1"


@asynccontextmanager
async def operator(house: "House", life: "Life", name: str = "operators") -> AsyncIterator[InboxServiceStub]:
    """Calls this gateway."""
    address = f"unix:{house.folder}/{name}"
    async with (
        Server({SERVICE: InboxService(life.inbox, life.turns)}, listen=address, drain_s=0.0),
        connect(address) as channel,
    ):
        yield InboxServiceStub(channel)


async def until(stub: InboxServiceStub, state: "MessageState.ValueType", key: str = KEY) -> InboxMessage:
    """The message, once it stands so."""
    async with asyncio.timeout(10):
        while True:
            message = (await stub.GetMessage(GetMessageRequest(key=key), timeout=5)).message
            if message.state == state:
                return message
            await asyncio.sleep(0.01)


async def test_a_message_is_shown_with_what_became_of_it(house: "House") -> None:
    """Its words and its answer, which way that went, and when."""
    async with house.life() as life, operator(house, life) as stub:
        await life.say("hello")
        await life.say("long", number="2")
        passive = await until(stub, MESSAGE_STATE_ANSWERED)
        active = await until(stub, MESSAGE_STATE_ANSWERED, "plain:default:2")
    assert [content.text.text for content in passive.content] == ["hello"]
    assert [content.text.text for content in passive.answer] == ["re: hello"]
    assert (passive.path, active.path) == (ANSWER_PATH_PASSIVE, ANSWER_PATH_ACTIVE)
    assert (passive.account.channel, passive.conversation.id, passive.sender.id) == ("plain", "zhang", "zhang")
    assert 0 < passive.received_at.ToNanoseconds() <= passive.updated_at.ToNanoseconds()
    assert (passive.attempts, passive.error) == (1, "")


async def test_a_list_tells_no_words(house: "House") -> None:
    """Of each message it tells how it stands, newest first, and what kinds of pieces it has."""
    async with house.life() as life, operator(house, life) as stub:
        for number in ("1", "2", "3"):
            await life.say("a secret of ours", number=number)
            await until(stub, MESSAGE_STATE_ANSWERED, f"plain:default:{number}")
        listed = await stub.ListMessages(ListMessagesRequest(), timeout=5)
    assert [message.key for message in listed.messages] == [f"plain:default:{number}" for number in (3, 2, 1)]
    assert {tuple(message.kinds) for message in listed.messages} == {("text",)}
    assert b"secret" not in listed.SerializeToString()


async def test_pages_hold_every_message_once(house: "House") -> None:
    """A page's token leads to the next one; the last page has none."""
    async with house.life() as life, operator(house, life) as stub:
        for number in range(5):
            await life.say("hello", number=str(number))
        pages, token = [], ""
        while not pages or token:
            page = await stub.ListMessages(ListMessagesRequest(page_size=2, page_token=token), timeout=5)
            pages.append([message.key[-1] for message in page.messages])
            token = page.next_page_token
    assert pages == [["4", "3"], ["2", "1"], ["0"]]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (ListMessagesRequest(page_size=1001), "page_size"),
        (ListMessagesRequest(page_token="-1"), "page_token"),
        (ListMessagesRequest(page_token="9" * 19), "page_token"),
        (ListMessagesRequest(state=99), "state 99"),  # type: ignore[arg-type]
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(house: "House", request_: ListMessagesRequest, said: str) -> None:
    """The field is named."""
    async with house.life() as life, operator(house, life) as stub:
        with pytest.raises(InvalidRequest, match=said):
            await stub.ListMessages(request_, timeout=5)


async def test_an_unknown_message_is_none(house: "House") -> None:
    """Neither shown nor retried."""
    async with house.life() as life, operator(house, life) as stub:
        with pytest.raises(UnknownMessage, match="'nobody'"):
            await stub.GetMessage(GetMessageRequest(key="nobody"), timeout=5)
        with pytest.raises(UnknownMessage, match="'nobody'"):
            await stub.RetryMessage(RetryMessageRequest(key="nobody"), timeout=5)


async def test_a_dead_message_is_answered_after_all(house: "House") -> None:
    """Once: when it is taken up, it is dead no longer, and another attempt is refused and does nothing."""
    async with house.life() as life, operator(house, life) as stub:
        house.engine.failing = EngineUnavailable()
        await life.say("fail please", budget_s=8.0)
        dead = await until(stub, MESSAGE_STATE_DEAD)
        assert dead.error == "ENGINE_UNAVAILABLE"
        listed = await stub.ListMessages(ListMessagesRequest(state=MESSAGE_STATE_DEAD), timeout=5)
        assert [message.key for message in listed.messages] == [KEY]
        house.engine.failing = None
        taken_up = (await stub.RetryMessage(RetryMessageRequest(key=KEY), timeout=5)).message
        assert taken_up.state in (MESSAGE_STATE_ACKNOWLEDGED, MESSAGE_STATE_ANSWERED)
        await until(stub, MESSAGE_STATE_ANSWERED)
        with pytest.raises(NotRetryable, match="answered"):
            await stub.RetryMessage(RetryMessageRequest(key=KEY), timeout=5)
        assert (await stub.ListMessages(ListMessagesRequest(state=MESSAGE_STATE_DEAD), timeout=5)).messages == []
    assert house.reply.delivered == {KEY: ["re: fail please"]}


async def test_any_gateway_answers_for_all(house: "House", postgres_url: str) -> None:
    """On a shared database: a message that one gateway gave up is seen and retried by way of another."""
    async with (
        house.life(database=postgres_url, name="test:7000") as first,
        house.life(database=postgres_url, name="test:7500") as second,
        operator(house, second) as stub,
    ):
        house.engine.failing = EngineUnavailable()
        await first.say("fail please", budget_s=8.0)
        await until(stub, MESSAGE_STATE_DEAD)
        house.engine.failing = None
        await stub.RetryMessage(RetryMessageRequest(key=KEY), timeout=5)
        await until(stub, MESSAGE_STATE_ANSWERED)
        async with operator(house, first, "others") as other:
            assert await until(other, MESSAGE_STATE_ANSWERED)
    assert house.reply.delivered == {KEY: ["re: fail please"]}


async def test_a_gateway_says_whether_its_inbox_can_be_asked(house: "House", postgres_url: str, away: "Away") -> None:
    """While the database is away, it does not serve; a watch of that does not hold up its end."""
    where = f"unix:{house.folder}/grpc"
    settings = GatewaySettings(database=postgres_url, grpc=cast("Address", where))
    gateway = await Gateway.create(Configuration(settings, NlpSettings(), SkillsSettings(), accounts={}))
    async with connect(where) as channel:
        request = HealthCheckRequest(service=SERVICE.full_name)
        states = cast("Any", HealthStub(channel)).Watch(request, timeout=60).__aiter__()
        assert (await anext(states)).status == HealthCheckResponse.SERVING
        assert not (await InboxServiceStub(channel).ListMessages(ListMessagesRequest(), timeout=5)).messages
        with away():
            assert (await anext(states)).status == HealthCheckResponse.NOT_SERVING
        assert (await anext(states)).status == HealthCheckResponse.SERVING
        async with asyncio.timeout(10):
            await gateway.close()
        assert all([state.status == HealthCheckResponse.NOT_SERVING async for state in states])  # and it ends
