"""The policy of an account, as members meet it: who is served, who is refused, and what is known of them."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from assistant.api.storage.v1.storage_pb2 import TurnRecord
from assistant.errors import EngineUnavailable, PlatformRefused, PlatformUnavailable
from assistant.plugin import SELF_TEST_MEMBER
from gateway.directory import FRESH_S, STALE_S
from gateway.inbox import InboxState
from gateway.policy import Gatekeeper

if TYPE_CHECKING:
    from conftest import House, Life

KEY = "plain:default:1"
DENIAL = "抱歉，您暂时没有使用本助手的权限。如需开通，请联系管理员。"
APOLOGY = "抱歉，我现在无法回答这条消息，请稍后再试。"


@dataclass
class Clock:
    """Goes on when told."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


async def row(life: "Life", key: str = KEY) -> Any:
    """The row of a message whose turn is over."""
    async with asyncio.timeout(10):
        while (found := await life.inbox.get(key)) is None or found.state < InboxState.ANSWERED:
            await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("lists", "member", "group", "served"),
    [
        ({"allow_members": "zhang, li"}, "zhang", "", True),
        ({"allow_members": "zhang, li"}, "wang", "", False),
        ({"allow_members": "Zhang"}, "zhanG", "", True),
        ({"deny_members": "ZHANG"}, "zhang", "", False),
        ({"deny_members": "zhang"}, "li", "", True),
        ({"allow_members": "zhang", "deny_members": "zhang"}, "zhang", "", False),
        ({"allow_groups": "room"}, "zhang", "room", True),
        ({"allow_groups": "room"}, "zhang", "", False),
        ({"allow_groups": "zhang"}, "zhang", "", False),
        ({"deny_groups": "room"}, "zhang", "room", False),
        ({"deny_groups": "room"}, "zhang", "", True),
        ({"allow_members": "zhang", "deny_groups": "room"}, "zhang", "room", False),
        ({"allow_departments": "2"}, "zhang", "", True),
        ({"allow_departments": "3"}, "zhang", "", False),
        ({"allow_departments": "3", "allow_members": "zhang"}, "zhang", "", True),
        ({"allow_departments": "2", "deny_members": "zhang"}, "zhang", "", False),
        ({"deny_departments": "2"}, "zhang", "", False),
        ({"deny_departments": "3"}, "zhang", "", True),
        ({"allow_members": "zhang", "deny_departments": "2"}, "zhang", "", False),
        ({"allow_departments": "1", "deny_departments": "2"}, "zhang", "", False),
        ({"allow_departments": "1", "deny_departments": "2"}, "li", "", True),
        ({"allow_groups": "room", "deny_departments": "2"}, "zhang", "room", False),
    ],
)
async def test_the_lists_decide(house: "House", lists: dict[str, str], member: str, group: str, served: bool) -> None:
    """Whoever is denied is not served; with anybody allowed by name, nobody else is."""
    house.reply.departments = {"zhang": ["2", "1"], "li": ["3", "1"]}
    async with house.life(policy=house.policy(**lists)) as life:
        said = await life.say("hello", member=member, group=group)
    assert said == ("re: hello" if served else DENIAL)
    assert bool(house.engine.requests) == served


async def test_a_refused_message_is_recorded_and_answered_once(house: "House") -> None:
    """Its row says why; the repeated callback gets the same words and starts nothing."""
    async with house.life(policy=house.policy(deny_members="zhang")) as life:
        assert await life.say("hello") == DENIAL
        found = await row(life)
        assert (found.state, found.error, found.attempts) == (InboxState.ANSWERED, "MEMBER_NOT_PERMITTED", 1)
        assert await life.say("hello") == DENIAL
        assert (await row(life)).attempts == 1
    assert house.engine.requests == []
    assert house.reply.delivered == {}


async def test_members_are_told_in_their_language(house: "House") -> None:
    """A locale of the platform wins over the gateway's."""
    async with house.life(policy=house.policy(deny_members="zhang")) as life:
        assert "administrator" in (await life.say("hello", locale="en-US") or "")


async def test_an_account_can_be_silent(house: "House") -> None:
    """With `tell_denied` off, who may not use the assistant gets an acknowledgement and no more."""
    async with house.life(policy=house.policy(deny_members="zhang", tell_denied=False)) as life:
        assert await life.say("hello") is None
        assert (await row(life)).error == "MEMBER_NOT_PERMITTED"
    assert (house.engine.requests, house.reply.delivered) == ([], {})


@pytest.mark.parametrize("fresh", [False, True], ids=["remembered", "read again"])
async def test_what_was_refused_never_reaches_the_engine(house: "House", fresh: bool) -> None:
    """Not even as history: in a group, others go on; and the state of the conversation outlives the refusal."""
    rules = house.policy(deny_members="zhang")
    async with house.life(policy=rules) as life:
        assert await life.say("count", number="1", member="li", group="room") == "re: 1"
        assert await life.say("the password is 123", number="2", member="zhang", group="room") == DENIAL
        if not fresh:
            assert await life.say("count", number="3", member="li", group="room") == "re: 2"
    if fresh:
        async with house.life(policy=rules) as life:
            assert await life.say("count", number="3", member="li", group="room") == "re: 2"
    assert "password" not in str(house.engine.requests)
    assert [turn.content[0].text.text for turn in house.engine.requests[-1].history] == ["count", "re: 1"]


async def test_the_self_test_is_served(house: "House") -> None:
    """An operator's `test` works whoever may use the assistant."""
    async with house.life(policy=house.policy(allow_departments="2", messages_per_minute=1)) as life:
        for number in "123":
            assert await life.say("hello", number=number, member=SELF_TEST_MEMBER) == "re: hello"
    assert house.reply.asked == []


async def test_other_accounts_are_not_concerned(house: "House") -> None:
    """A policy is that of one account; one that refuses nobody costs nothing."""
    nobody: Any = None
    assert Gatekeeper.of({("plain", "default"): house.policy()}, nobody, "zh-CN") is None
    assert Gatekeeper.of({("plain", "default"): house.policy(callback_sources="10.0.0.0/8")}, nobody, "zh-CN") is None
    assert Gatekeeper.of({("plain", "default"): house.policy(messages_per_minute=5)}, nobody, "zh-CN") is not None
    async with house.life() as life:
        assert await life.say("hello") == "re: hello"


# --- Departments ------------------------------------------------------------------------------------------


async def test_departments_are_asked_for_only_where_they_decide(house: "House") -> None:
    """Where a list of members or groups says all, the platform is not asked."""
    rules = house.policy(allow_departments="2", allow_members="li", deny_members="wang")
    house.reply.departments = {"zhang": ["2"]}
    async with house.life(policy=rules) as life:
        assert await life.say("hello", number="1", member="li") == "re: hello"
        assert await life.say("hello", number="2", member="wang") == DENIAL
        assert house.reply.asked == []
        assert await life.say("hello", number="3", member="zhang") == "re: hello"
        assert await life.say("hello", number="4", member="zhang") == "re: hello"
    assert house.reply.asked == ["zhang"]


async def test_departments_are_asked_for_again(house: "House") -> None:
    """Who has moved is served, or no longer, once what was known has expired."""
    clock = Clock()
    house.reply.departments = {"zhang": ["2"]}
    async with house.life(policy=house.policy(allow_departments="2"), clock=clock) as life:
        assert await life.say("hello", number="1") == "re: hello"
        house.reply.departments = {"zhang": ["3"]}
        clock.now += FRESH_S - 1
        assert await life.say("hello", number="2") == "re: hello"
        clock.now += 2
        assert await life.say("hello", number="3") == DENIAL


async def test_an_outage_changes_nothing_for_those_who_are_known(house: "House") -> None:
    """Who was served still is, who was not still is not: for a day."""
    clock = Clock()
    house.reply.departments = {"zhang": ["2"], "li": ["3"]}
    async with house.life(policy=house.policy(allow_departments="2"), clock=clock) as life:
        await life.say("hello", number="1")
        await life.say("hello", number="2", member="li")
        house.reply.failing = PlatformUnavailable("away")
        clock.now += STALE_S - 1
        assert await life.say("hello", number="3") == "re: hello"
        assert await life.say("hello", number="4", member="li") == DENIAL
        asked = len(house.reply.asked)
        assert await life.say("hello", number="5") == "re: hello"
        assert len(house.reply.asked) == asked, "it is not asked again at once"
        clock.now += 60
        assert await life.say("hello", number="6") == APOLOGY
        house.reply.failing = None
        assert await life.say("hello", number="7") == "re: hello"


@pytest.mark.parametrize("lists", [{"allow_departments": "2"}, {"deny_departments": "3"}])
@pytest.mark.parametrize("failure", [PlatformUnavailable("away"), PlatformRefused("60111")])
async def test_who_cannot_be_looked_up_is_not_let_in(house: "House", lists: Any, failure: Any) -> None:
    """They get an apology, not the engine and not a refusal; an operator's retry answers once it is known."""
    house.reply.departments = {"zhang": ["2"]}
    house.reply.failing = failure
    async with house.life(policy=house.policy(**lists)) as life:
        assert await life.say("hello") == APOLOGY
        found = await row(life)
        assert (found.state, found.error) == (InboxState.DEAD, failure.reason)
        assert TurnRecord.FromString(found.result).refusal == "MEMBER_UNKNOWN"
        assert house.engine.requests == []
        house.reply.failing = None
        assert await life.turns.retry(KEY)
        assert (await row(life)).state == InboxState.ANSWERED
    assert len(house.engine.requests) == 1
    assert house.reply.delivered == {KEY: ["re: hello"]}


async def test_a_short_outage_is_waited_out(house: "House") -> None:
    """While reply_svc restarts nobody is turned away."""
    house.reply.departments = {"zhang": ["2"]}
    house.reply.failing = PlatformUnavailable("away")
    async with house.life(policy=house.policy(allow_departments="2")) as life:
        said = asyncio.create_task(life.say("hello"))
        async with asyncio.timeout(10):
            while not house.reply.asked:
                await asyncio.sleep(0.01)
        house.reply.failing = None
        assert await said == "re: hello"


# --- How often --------------------------------------------------------------------------------------------


async def test_too_many_messages_are_answered_with_one_request_for_patience(house: "House") -> None:
    """Past the limit one sentence in a minute, then silence; each message is an answered turn all the same."""
    clock = Clock()
    async with house.life(policy=house.policy(messages_per_minute=2), clock=clock) as life:
        said = [await life.say("hello", number=str(number)) for number in range(5)]
        assert said[:2] == ["re: hello"] * 2
        assert "过一分钟再发" in (said[2] or "")
        assert said[3:] == [None, None]
        assert [(await row(life, f"plain:default:{number}")).error for number in range(2, 5)] == [
            "TOO_MANY_MESSAGES"
        ] * 3
        assert await life.say("hello", number="5", member="li") == "re: hello"
        clock.now += 30.0
        assert await life.say("hello", number="6", member="ZHANG") == "re: hello", "half of the burst is back"
        assert await life.say("hello", number="7") is None, "told within the minute already"
        clock.now += 60.0
        assert [await life.say("hello", number=str(number)) for number in (8, 9)] == ["re: hello"] * 2
        assert "过一分钟再发" in (await life.say("hello", number="10") or "")
    assert len(house.engine.requests) == 6
    assert house.reply.delivered == {}


async def test_an_operators_retry_is_not_limited(house: "House") -> None:
    """Whoever has sent too much since is answered all the same, and may still not do what they may not."""
    house.engine.failing = EngineUnavailable("down")
    async with house.life(policy=house.policy(messages_per_minute=1), clock=Clock()) as life:
        await life.say("fail 1", budget_s=8.0)
        assert (await row(life)).state == InboxState.DEAD
        house.engine.failing = None
        assert await life.turns.retry(KEY)
        assert (await row(life)).state == InboxState.ANSWERED
    assert house.reply.delivered == {KEY: ["re: fail 1"]}


async def test_who_is_denied_is_limited_as_well(house: "House") -> None:
    """A flood of messages from somebody who may not is not a flood of answers."""
    async with house.life(policy=house.policy(messages_per_minute=1, deny_members="zhang"), clock=Clock()) as life:
        said = [await life.say("hello", number=str(number)) for number in range(3)]
    assert said[0] == DENIAL
    assert "过一分钟再发" in (said[1] or "")
    assert said[2] is None
