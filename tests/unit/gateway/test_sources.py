"""The addresses that callbacks are accepted from, with the list that the platform publishes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import REGISTRY

from assistant.api.message.v1.message_pb2 import Account
from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceStub
from assistant.client import connect
from assistant.errors import PlatformUnavailable, SourceNotPermitted
from gateway.sources import Sources

if TYPE_CHECKING:
    from conftest import House

ACCOUNT = Account(channel="plain", name="default")


@asynccontextmanager
async def listed(house: "House", given: str, refresh_s: float = 0.02) -> AsyncIterator[Sources]:
    """The sources of an account, which ask the platform again and again."""
    reply = connect(f"unix:{house.folder}/reply")
    policies = {("plain", "default"): house.policy(callback_sources=given)}
    sources = Sources(policies, ReplyServiceStub(reply), refresh_s=refresh_s, retry_s=0.02)
    refreshing = asyncio.create_task(sources.keep_fresh())
    try:
        yield sources
    finally:
        refreshing.cancel()
        await reply.close()


def accepts(sources: Sources, address: str) -> bool:
    try:
        sources.check(ACCOUNT, address)
    except SourceNotPermitted:
        return False
    return True


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_the_published_list_counts(house: "House") -> None:
    """Ranges and single addresses, of both families, beside those that the account names itself."""
    house.reply.sources = ["203.0.113.0/24", "198.51.100.7/32", "2001:db8:1::/48"]
    async with listed(house, "platform, 10.0.0.0/8") as sources:
        await until(lambda: not accepts(sources, "192.0.2.1"))
        for address in ("203.0.113.255", "198.51.100.7", "2001:db8:1::9", "10.1.2.3", "::ffff:203.0.113.1"):
            assert accepts(sources, address), address
        for address in ("203.0.114.0", "198.51.100.8", "2001:db8:2::9", "::ffff:192.0.2.1", "", "platform"):
            assert not accepts(sources, address), address
        labels = {"channel": "plain", "account": "default"}
        assert counted("assistant_callback_source_ranges", **labels) == 3


async def test_until_a_list_is_known_callbacks_are_accepted_and_counted(house: "House") -> None:
    """An outage of the platform's API at the start loses no message; then the list counts."""
    house.reply.failing = PlatformUnavailable("away")
    before = counted("assistant_unchecked_callbacks_total", channel="plain")
    async with listed(house, "platform") as sources:
        await until(lambda: house.reply.asked)
        assert accepts(sources, "192.0.2.1")
        assert counted("assistant_unchecked_callbacks_total", channel="plain") == before + 1
        house.reply.sources, house.reply.failing = ["203.0.113.0/24"], None
        await until(lambda: not accepts(sources, "192.0.2.1"))


@pytest.mark.parametrize("answer", [PlatformUnavailable("away"), [], ["not an address"]], ids=str)
async def test_the_last_list_goes_on_to_count(house: "House", answer: Any) -> None:
    """A platform that cannot be asked, or tells nothing that makes sense, changes nothing."""
    house.reply.sources = ["203.0.113.0/24"]
    async with listed(house, "platform") as sources:
        await until(lambda: not accepts(sources, "192.0.2.1"))
        if isinstance(answer, list):
            house.reply.sources = answer
        else:
            house.reply.failing = answer
        asked = len(house.reply.asked)
        await until(lambda: len(house.reply.asked) > asked + 1)
        assert accepts(sources, "203.0.113.9")
        assert not accepts(sources, "192.0.2.1")


async def test_a_new_list_replaces_the_old_one(house: "House") -> None:
    """Addresses that the platform no longer publishes are no longer accepted."""
    house.reply.sources = ["203.0.113.0/24"]
    async with listed(house, "platform") as sources:
        await until(lambda: not accepts(sources, "198.51.100.7"))
        house.reply.sources = ["198.51.100.0/24"]
        await until(lambda: accepts(sources, "198.51.100.7"))
        assert not accepts(sources, "203.0.113.9")


async def test_named_addresses_need_no_platform(house: "House") -> None:
    """Without `platform` nobody is asked, and nothing else is accepted from the first moment on."""
    async with listed(house, "203.0.113.9") as sources:
        assert accepts(sources, "203.0.113.9")
        with pytest.raises(SourceNotPermitted) as refused:
            sources.check(ACCOUNT, "203.0.113.8")
    assert "channels.plain.callback_sources" in refused.value.message
    assert "203.0.113.8" in refused.value.message
    assert house.reply.asked == []


async def test_other_accounts_are_not_concerned(house: "House") -> None:
    """An account without a list is called back from everywhere."""
    async with listed(house, "203.0.113.9") as sources:
        sources.check(Account(channel="plain", name="branch"), "192.0.2.1")
    nobody: Any = None
    assert Sources.of({("plain", "default"): house.policy(deny_members="zhang")}, nobody) is None
    assert Sources.of({("plain", "default"): house.policy(callback_sources="platform")}, nobody) is not None
