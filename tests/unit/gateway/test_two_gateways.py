"""Two gateways on one database: a callback may come back to either of them."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from assistant.api.message.v1.message_pb2 import Account, InboundMessage
from gateway.inbox import InboxState, lane_of

if TYPE_CHECKING:
    from conftest import Away, House

KEY = "plain:default:1"
THINKS = "slow 0.8"


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that will be so soon."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_callback_that_comes_back_after_its_gateway_died_is_answered(house: "House", postgres_url: str) -> None:
    """A gateway that lost a turn to another one takes it up again when that one dies and the callback comes back."""
    async with house.life(database=postgres_url, name="test:7000") as first:
        held = asyncio.create_task(first.say(THINKS, budget_s=0.3))
        await until(lambda: len(house.engine.requests) == 1)
        async with house.life(database=postgres_url, name="test:7500", drain_s=0.0) as second:
            assert await second.inbox.adopt(KEY)  # it came there, and that gateway dies before it acknowledges it
            await held  # its claim came to nothing: the turn belongs to the second gateway
        assert await first.say(THINKS) is None
        await until(lambda: house.reply.delivered)
    assert house.reply.delivered == {KEY: [f"re: {THINKS}"]}


async def test_a_turn_that_comes_back_is_ours_again(house: "House", postgres_url: str) -> None:
    """A turn that another gateway had taken over meanwhile is acknowledged here only once it is ours, durably."""
    async with house.life(database=postgres_url, name="test:7000") as first:
        held = asyncio.create_task(first.say(THINKS))
        await until(lambda: len(house.engine.requests) == 1)
        async with house.life(database=postgres_url, name="test:7500", drain_s=0.0) as second:
            assert await second.inbox.adopt(KEY)
            assert await first.say(THINKS, budget_s=0.05) is None
        await until(lambda: house.reply.delivered)
        assert await held is None
    assert house.reply.delivered == {KEY: [f"re: {THINKS}"]}


async def test_what_another_gateway_acknowledged_is_answered_when_it_died(house: "House", postgres_url: str) -> None:
    """A gateway that still thinks about a turn which it had lost does not take its own thoughts for the answer owed."""
    async with house.life(database=postgres_url, name="test:7000") as first:
        held = asyncio.create_task(first.say(THINKS))
        await until(lambda: len(house.engine.requests) == 1)
        async with house.life(database=postgres_url, name="test:7500", drain_s=0.0) as second:
            assert await second.say(THINKS, budget_s=0.05) is None
        await first.turns.recover()
        await until(lambda: house.reply.delivered)
        assert await held is None
    assert house.reply.delivered == {KEY: [f"re: {THINKS}"]}


async def test_a_turn_waits_for_a_database_that_is_away(house: "House", postgres_url: str, away: "Away") -> None:
    """A message that is accepted and has not begun when the database goes is answered when it is back."""
    async with house.life(database=postgres_url) as gateway:
        first = asyncio.create_task(gateway.say(THINKS))
        await until(lambda: len(house.engine.requests) == 1)
        second = asyncio.create_task(gateway.say("next", number="2"))
        async with asyncio.timeout(10):
            while await gateway.inbox.get("plain:default:2") is None:
                await asyncio.sleep(0.01)
        with away():
            assert await first == f"re: {THINKS}"
            await asyncio.sleep(0.5)  # so long the second one has nothing to begin with
            assert len(house.engine.requests) == 1
        assert await second == "re: next"


async def test_what_is_taken_over_comes_before_what_waited_for_it(house: "House", postgres_url: str) -> None:
    """A message that waits for one of another gateway still waits for it when that gateway dies."""
    async with house.life(database=postgres_url, name="test:7000") as first:
        async with house.life(database=postgres_url, name="test:7500", drain_s=0.0) as second:
            assert await second.say(THINKS, budget_s=0.05) is None
            waits = asyncio.create_task(first.say("second", number="2", budget_s=8.0))
            also_waits = asyncio.create_task(first.say("third", number="3", budget_s=8.0))
            await until(lambda: len(first.taking) == 2)
            await asyncio.sleep(0.1)
        await first.turns.recover()
        await asyncio.gather(waits, also_waits)
        await until(lambda: house.reply.delivered)
    assert [request.message.message_id for request in house.engine.requests] == ["1", "1", "2", "3"]


async def test_the_next_message_waits_for_one_that_another_gateway_took_back(house: "House", postgres_url: str) -> None:
    """The callback of the first message comes back to the other gateway while the second waits here for the first."""
    async with (
        house.life(database=postgres_url, name="test:7000") as first,
        house.life(database=postgres_url, name="test:7500") as second,
    ):
        held = asyncio.create_task(first.say(THINKS, budget_s=8.0))
        await until(lambda: len(house.engine.requests) == 1)
        waits = asyncio.create_task(first.say("second", number="2", budget_s=8.0))
        moved = asyncio.create_task(second.say(THINKS, budget_s=8.0))
        await until(lambda: len(house.engine.requests) == 2)
        again = asyncio.create_task(first.say(THINKS, budget_s=8.0))  # and back
        for callback in (held, waits, moved, again):
            await callback
    assert [request.message.message_id for request in house.engine.requests][-1] == "2"


async def test_a_message_that_comes_back_to_another_gateway_still_waits_for_the_one_before(
    house: "House", postgres_url: str
) -> None:
    """Its callback broke while it waited there for the first message, which that gateway still thinks about."""
    async with (
        house.life(database=postgres_url, name="test:7000") as first,
        house.life(database=postgres_url, name="test:7500") as second,
    ):
        assert await second.say(THINKS, budget_s=0.05) is None
        broken = asyncio.create_task(second.say("second", number="2", budget_s=8.0))
        await until(lambda: len(second.taking) == 2)
        await asyncio.sleep(0.1)
        assert await first.say("second", number="2", budget_s=8.0) is None
        await until(lambda: len(house.reply.delivered) == 2)
        assert list(house.reply.delivered.values()) == [[f"re: {THINKS}"], ["re: second"]]
        await broken


async def test_turns_of_two_gateways_never_wait_in_a_circle(house: "House", postgres_url: str) -> None:
    """The third message, here, waits for the second, there, and that for the first, which comes back here at last."""
    async with (
        house.life(database=postgres_url, name="test:7000") as here,
        house.life(database=postgres_url, name="test:7500") as there,
    ):
        first = InboundMessage(account=Account(channel="plain", name="default"), message_id="1")
        first.conversation.id = first.sender.id = "zhang"
        first.content.add().text.text = "first"
        await here.inbox.admit(KEY, lane_of(first), first.SerializeToString(), InboxState.RECEIVED)
        second = asyncio.create_task(there.say("second", number="2", budget_s=8.0))
        await until(lambda: len(there.taking) == 1)
        third = asyncio.create_task(here.say("third", number="3", budget_s=8.0))
        await until(lambda: len(here.taking) == 1)
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            assert await here.say("first", budget_s=8.0) is None
            assert [await second, await third] == ["re: second", "re: third"]
    assert house.reply.delivered == {KEY: ["re: first"]}
    assert [request.message.message_id for request in house.engine.requests] == ["1", "2", "3"]


async def test_a_message_that_comes_back_late_waits_for_what_has_begun(house: "House", postgres_url: str) -> None:
    """The conversation went on without it. It comes before those that only wait, and waits for nobody for ever."""
    late_one = InboundMessage(account=Account(channel="plain", name="default"), message_id="1")
    late_one.conversation.id = late_one.sender.id = "zhang"
    late_one.content.add().text.text = "late"
    async with house.life(database=postgres_url, name="test:7500") as dead:
        await dead.inbox.admit(KEY, lane_of(late_one), late_one.SerializeToString(), InboxState.RECEIVED)
    async with house.life(database=postgres_url, name="test:7000") as life:
        second = asyncio.create_task(life.say("slow 0.5", number="2", budget_s=8.0))
        third = asyncio.create_task(life.say("third", number="3", budget_s=8.0))
        await until(lambda: len(house.engine.requests) == 1)  # the second waited for the first, and went on
        async with asyncio.timeout(10):
            assert await life.say("late", number="1", budget_s=8.0) is None
            assert [await second, await third] == ["re: slow 0.5", "re: third"]
            await until(lambda: house.reply.delivered)
    assert house.reply.delivered == {KEY: ["re: late"]}
    assert [request.message.message_id for request in house.engine.requests] == ["2", "1", "3"]


async def test_each_gateway_sees_what_was_said_at_the_other(house: "House", postgres_url: str) -> None:
    """Whichever gateway a message comes to, the engine sees the whole conversation, in order, and its own state."""
    async with (
        house.life(database=postgres_url, name="test:7000") as first,
        house.life(database=postgres_url, name="test:7500") as second,
    ):
        for number, gateway in enumerate([first, first, second, first, second, second, first]):
            assert await gateway.say("count", number=str(number)) == f"re: {number + 1}"
            said = [entry.content[0].text.text for entry in house.engine.requests[-1].history]
            assert said == [text for turn in range(max(0, number - 3), number) for text in ("count", f"re: {turn + 1}")]


async def test_a_new_conversation_is_one_at_every_gateway(house: "House", postgres_url: str) -> None:
    """What a member put an end to at one gateway is not seen at another that knew it."""
    async with (
        house.life(database=postgres_url, name="test:7000") as first,
        house.life(database=postgres_url, name="test:7500") as second,
    ):
        await second.say("secret", number="1")
        await first.say("new", number="2")
        await second.say("hello", number="3")
    assert list(house.engine.requests[-1].history) == []
