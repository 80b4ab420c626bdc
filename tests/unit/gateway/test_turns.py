"""Turns: which way an answer goes, in what order, and what a crash leaves of it."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from assistant.api.message.v1.message_pb2 import Account, InboundMessage
from assistant.api.reply.v1.reply_pb2 import DELIVERY_STATE_DELIVERED, DELIVERY_STATE_PENDING
from assistant.errors import EngineUnavailable
from gateway.inbox import InboxState, lane_of

if TYPE_CHECKING:
    from conftest import House, Life

KEY = "plain:default:1"


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that will be so soon."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def state_of(life: "Life", key: str = KEY) -> InboxState:
    row = await life.inbox.get(key)
    assert row is not None
    return InboxState(row.state)


async def until_state(life: "Life", state: InboxState, key: str = KEY) -> None:
    async with asyncio.timeout(10):
        while await state_of(life, key) != state:
            await asyncio.sleep(0.01)


async def test_an_answer_in_time_goes_back_in_the_http_answer(house: "House") -> None:
    """A quick answer is passive: nothing is delivered by the API."""
    async with house.life() as life:
        assert await life.say("hello") == "re: hello"
        await until_state(life, InboxState.ANSWERED)
    assert house.reply.delivered == {}


async def test_an_answer_past_the_budget_is_delivered_actively(house: "House") -> None:
    """A slow answer: the callback is acknowledged once we owe the answer durably, then it is delivered once."""
    async with house.life() as life:
        assert await life.say("slow 0.3", budget_s=0.05) is None
        assert await state_of(life) == InboxState.ACKNOWLEDGED
        await until_state(life, InboxState.ANSWERED)
    assert house.reply.delivered == {KEY: ["re: slow 0.3"]}


async def test_an_answer_that_does_not_fit_is_delivered_actively(house: "House") -> None:
    """What the platform takes only by its API goes there, however early it is there."""
    async with house.life() as life:
        assert await life.say("long one") is None
        await until(lambda: house.reply.delivered)
    assert house.reply.delivered[KEY][0].startswith("re: long one")


async def test_an_answer_whose_connection_broke_is_delivered_actively(house: "House") -> None:
    """The platform may have tried for the last time: what cannot be answered any more is owed by the API."""
    async with house.life() as life:
        broken = asyncio.Event()
        lost = asyncio.create_task(life.take(_inbound("slow 0.2"), connection=broken))
        await until(lambda: house.engine.requests)
        broken.set()
        await until_state(life, InboxState.ANSWERED)
        assert house.reply.delivered == {KEY: ["re: slow 0.2"]}
        assert await life.say("slow 0.2") is None
        await lost
    assert list(house.reply.delivered) == [KEY]


async def test_nothing_to_say_is_acknowledged(house: "House") -> None:
    """An engine may stay silent: the callback is acknowledged, and nothing is delivered."""
    async with house.life() as life:
        assert await life.say("silent") is None
        await until_state(life, InboxState.ANSWERED)
    assert house.reply.delivered == {}


async def test_a_repeated_callback_gets_the_same_answer_and_starts_nothing(house: "House") -> None:
    """Whether its turn is under way or over, a message is answered by one turn."""
    async with house.life() as life:
        both = await asyncio.gather(life.say("slow 0.1"), life.say("slow 0.1"))
        assert both == ["re: slow 0.1"] * 2
        assert await life.say("slow 0.1") == "re: slow 0.1"
    assert len(house.engine.requests) == 1


async def test_a_repeated_callback_of_an_active_turn_is_acknowledged(house: "House") -> None:
    """The answer that is on its way by the API is not given passively as well."""
    async with house.life() as life:
        assert await life.say("slow 0.3", budget_s=0.01) is None
        assert await life.say("slow 0.3", budget_s=4.0) is None
        await until_state(life, InboxState.ANSWERED)
        assert await life.say("slow 0.3") is None
    assert list(house.reply.delivered) == [KEY]


async def test_turns_of_a_conversation_run_in_order_and_others_do_not_wait(house: "House") -> None:
    """A slow turn holds back the next one of its member, and nobody else's."""
    async with house.life() as life:
        first = asyncio.create_task(life.say("slow 0.3", number="1"))
        await until(lambda: house.engine.requests)
        second = asyncio.create_task(life.say("hello", number="2"))
        assert await life.say("hello", number="3", member="li") == "re: hello"
        assert not first.done()
        await asyncio.gather(first, second)
    assert [request.message.message_id for request in house.engine.requests] == ["1", "3", "2"]


async def test_a_passive_answer_does_not_overtake_an_active_one(house: "House") -> None:
    """While an active answer is still on its way, the next of the conversation goes the same way."""
    async with house.life() as life:
        house.reply.state = DELIVERY_STATE_PENDING
        assert await life.say("long one", number="1") is None
        assert await life.say("hello", number="2") is None
        await until(lambda: len(house.reply.delivered) == 2)
        house.reply.state = DELIVERY_STATE_DELIVERED
        assert await life.say("hello", number="3") == "re: hello"


async def test_past_the_cap_callbacks_are_acknowledged_at_once(house: "House") -> None:
    """Overload makes answers slower, not lost: what cannot be held is answered actively."""
    async with house.life(held_callbacks=1) as life:
        held = asyncio.create_task(life.say("slow 0.3", number="1", member="zhang"))
        await until(lambda: house.engine.requests)
        assert await life.say("slow 0.2", number="2", member="li") is None
        assert await state_of(life, "plain:default:2") == InboxState.ACKNOWLEDGED
        assert await held == "re: slow 0.3"
        await until(lambda: "plain:default:2" in house.reply.delivered)


async def test_a_failing_engine_is_apologised_for_and_kept_as_a_dead_letter(house: "House") -> None:
    """The member is told in one sentence; an operator's retry answers for real."""
    house.engine.failing = EngineUnavailable("down")
    async with house.life() as life:
        async with asyncio.timeout(10):
            assert "抱歉" in (await life.say("fail 1", budget_s=8.0) or "")
        await until_state(life, InboxState.DEAD)
        house.engine.failing = None
        assert await life.turns.retry(KEY)
        await until_state(life, InboxState.ANSWERED)
        assert not await life.turns.retry(KEY)
    assert house.reply.delivered == {KEY: ["re: fail 1"]}


async def test_a_retried_message_whose_apology_was_delivered_is_answered_as_well(house: "House") -> None:
    """The apology took the message's request id; the answer that an operator asks for needs one of its own."""
    house.engine.failing = EngineUnavailable("down")
    async with house.life() as life:
        assert await life.say("fail 1", budget_s=0.05) is None
        await until_state(life, InboxState.DEAD)
        house.engine.failing = None
        assert await life.turns.retry(KEY)
        await until_state(life, InboxState.ANSWERED)
    assert list(house.reply.delivered) == [KEY, f"{KEY}+"]
    assert house.reply.delivered[f"{KEY}+"] == ["re: fail 1"]


async def test_what_needs_no_answer_is_recorded(house: "House") -> None:
    """An event that asks nothing is acknowledged, and the engine is not asked."""
    async with house.life() as life:
        event = InboundMessage(account=Account(channel="plain", name="default"), message_id="1")
        event.content.add().event.location.latitude = 23.1
        assert await life.take(event) is None
        assert await state_of(life) == InboxState.ANSWERED
    assert house.engine.requests == []


async def test_the_engine_sees_the_conversation_and_its_own_state(house: "House") -> None:
    """History is shown oldest first and bounded, state comes back, and both outlive the process."""
    async with house.life() as life:
        for index in range(5):
            await life.say(f"text {index}", number=f"a{index}")
        assert await life.say("count", number="b1") == "re: 1"
    async with house.life() as life:
        assert await life.say("count", number="b2") == "re: 2"
        assert await life.say("hello", number="c", member="li") == "re: hello"
    seen = {request.turn_id: request for request in house.engine.requests}
    texts = [entry.content[0].text.text for entry in seen["plain:default:b2"].history]
    assert texts == ["text 3", "re: text 3", "text 4", "re: text 4", "count", "re: 1"]
    assert list(seen["plain:default:c"].history) == []


async def test_a_new_conversation_forgets_what_was_said(house: "House") -> None:
    """After the member asked to start afresh the engine sees no history."""
    async with house.life() as life:
        await life.say("secret", number="1")
        await life.say("new", number="2")
        await life.say("hello", number="3")
    assert list(house.engine.requests[-1].history) == []


async def test_skills_run_between_the_rounds_of_a_turn(house: "House") -> None:
    """A proposed action is run for the sender, under the turn and its index, and the engine sees what it gave."""
    async with house.life() as life:
        await life.say("use clock", budget_s=4.0)
        await until_state(life, InboxState.ANSWERED)
        assert await life.say("use rocket", number="2") == "re: UNKNOWN_SKILL"
    assert house.engine.requests[1].skill_results[0].result["said"] == f"{KEY} 0 zhang"
    assert [skill.name for skill in house.engine.requests[0].skills] == ["clock"]


async def test_an_engine_that_goes_in_circles_is_stopped(house: "House") -> None:
    """After a few rounds of actions the turn fails and says so."""
    async with house.life() as life:
        assert "抱歉" in (await life.say("circle") or "")
    assert len(house.engine.requests) == 4


# --- What a crash leaves ----------------------------------------------------------------------------------


async def broken_off(house: "House", text: str, state: InboxState) -> None:
    """Leave a message in the inbox as a gateway does that is killed in the middle of its turn."""
    async with house.life() as life:
        inbound = _inbound(text)
        await life.inbox.admit(KEY, lane_of(inbound), inbound.SerializeToString(), state)


def _inbound(text: str) -> InboundMessage:
    made = InboundMessage(account=Account(channel="plain", name="default"), message_id="1")
    made.conversation.id = made.sender.id = "zhang"
    made.content.add().text.text = text
    return made


async def test_an_acknowledged_message_is_answered_after_a_crash(house: "House") -> None:
    """Once a callback was acknowledged, the next life of the gateway owes the answer."""
    await broken_off(house, "hello", InboxState.ACKNOWLEDGED)
    async with house.life() as life:
        await until_state(life, InboxState.ANSWERED)
    assert house.reply.delivered == {KEY: ["re: hello"]}


async def test_an_answer_that_was_handed_over_before_a_crash_is_not_sent_twice(house: "House") -> None:
    """The next life hands the answer over under the same request id."""
    house.reply.delivered[KEY] = ["re: hello"]
    await broken_off(house, "hello", InboxState.ACKNOWLEDGED)
    async with house.life() as life:
        await until_state(life, InboxState.ANSWERED)
    assert house.reply.repeated == 1
    assert house.reply.delivered == {KEY: ["re: hello"]}


async def test_a_callback_that_a_crash_cut_off_is_answered_when_it_is_repeated(house: "House") -> None:
    """The platform got no answer and repeats the callback: it is held no second time, and answered by the API."""
    await broken_off(house, "slow 0.5", InboxState.RECEIVED)
    async with house.life() as life:
        assert await life.say("slow 0.5") is None
        assert house.reply.delivered == {}
        await until_state(life, InboxState.ANSWERED)
    assert house.reply.delivered == {KEY: ["re: slow 0.5"]}


async def test_the_next_message_waits_for_the_repeated_callback(house: "House") -> None:
    """After a crash the order of a conversation holds, if the platform repeats within the grace."""
    await broken_off(house, "first", InboxState.RECEIVED)
    async with house.life() as life:
        second = asyncio.create_task(life.say("second", number="2"))
        await asyncio.sleep(0.05)
        assert await life.say("first") is None
        assert await second == "re: second"
    assert house.reply.delivered == {KEY: ["re: first"]}
    assert [request.message.message_id for request in house.engine.requests] == ["1", "2"]


async def test_a_callback_that_is_never_repeated_blocks_nobody_and_is_not_answered_twice(house: "House") -> None:
    """No repetition means that the platform has the answer: the conversation goes on, the row says unconfirmed."""
    await broken_off(house, "first", InboxState.RECEIVED)
    async with house.life() as life:
        assert await life.say("second", number="2") == "re: second"
        await until_state(life, InboxState.UNCONFIRMED)
        assert await life.turns.retry(KEY)
        await until(lambda: house.reply.delivered)
    assert list(house.reply.delivered.values()) == [["re: first"]]
