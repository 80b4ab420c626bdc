"""Delivering: order, retries, quotas, and what a crash leaves."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import orjson
import pytest
from aiohttp import web

from assistant.api.message.v1.message_pb2 import Content, Media, Text
from assistant.api.reply.v1.reply_pb2 import (
    DELIVERY_STATE_DEAD,
    DELIVERY_STATE_DELIVERED,
    DELIVERY_STATE_PENDING,
    RecallDeliveryRequest,
    RetryDeliveryRequest,
)
from assistant.errors import NotRecallable
from assistant.testing import served
from reply_svc.clock import Clock

if TYPE_CHECKING:
    from conftest import FastClock, Platform, Reply, RunReply


class TestAtTheClocksPace:
    """Where nothing has to wait for long."""

    async def test_a_lane_keeps_its_order(self, reply: "Reply", platform: "Platform") -> None:
        """One member's answers arrive in the order in which they were accepted."""
        await platform.faults(latency_ms=3)
        for number in range(20):
            await reply.deliver(f"r{number:02}")
        await reply.over("r19")
        assert await platform.texts() == [f"r{number:02}" for number in range(20)]

    async def test_lanes_do_not_wait_for_each_other(self, reply: "Reply", platform: "Platform") -> None:
        """While one member's answer cannot be delivered, another one's is."""
        await platform.faults(error_code=-1, error_calls=2, only="message/send")
        await reply.deliver("stuck", member="lisi")
        await reply.when("stuck", lambda delivery: delivery.attempts == 2)
        await reply.deliver("fine", member="wangwu")
        assert (await reply.over("fine")).state == DELIVERY_STATE_DELIVERED
        assert (await reply.over("stuck")).state == DELIVERY_STATE_DELIVERED

    async def test_long_words_arrive_in_parts(self, reply: "Reply", platform: "Platform") -> None:
        """Nothing of a long answer is lost."""
        words = "".join(f"第{number}句话。" for number in range(400))
        await reply.deliver("r1", words)
        delivery = await reply.over("r1")
        shown = await platform.texts()
        assert "".join(shown) == words
        assert len(delivery.platform_message_ids) == len(shown) > 2

    async def test_a_withdrawn_token_costs_nothing_but_a_new_one(self, reply: "Reply", platform: "Platform") -> None:
        """The platform may withdraw a token at any time."""
        await reply.deliver("before")
        await reply.over("before")
        await platform.call("POST", "actions/withdraw-token")
        await reply.deliver("after")
        delivery = await reply.over("after")
        assert (delivery.state, delivery.attempts) == (DELIVERY_STATE_DELIVERED, 1)

    async def test_a_lost_answer_is_recognised_by_the_platform(self, reply: "Reply", platform: "Platform") -> None:
        """The connection breaks after the platform accepted: repeated, and shown once."""
        await platform.faults(drop_connection="after", only="message/send")
        await reply.deliver("r1")
        await reply.when("r1", lambda delivery: delivery.attempts > 0)
        await platform.faults()
        assert (await reply.over("r1")).state == DELIVERY_STATE_DELIVERED
        assert await platform.texts() == ["r1"]
        assert (await platform.books())["duplicates_suppressed"] > 0

    async def test_equal_answers_are_both_shown(self, reply: "Reply", platform: "Platform") -> None:
        """The duplicate check does not swallow who says the same twice."""
        for number in range(3):
            await reply.deliver(f"r{number}", "好的")
        await reply.over("r2")
        assert await platform.texts() == ["好的"] * 3

    async def test_a_restart_goes_on(self, run_reply: "RunReply", platform: "Platform") -> None:
        """What was accepted while the platform was down is delivered by the next process, in order."""
        async with run_reply() as reply:
            await platform.faults(http_status=503)
            for number in range(5):
                await reply.deliver(f"r{number}")
            await reply.when("r0", lambda delivery: delivery.attempts > 0)
        await platform.faults()
        async with run_reply() as reply:
            await reply.deliver("r5")
            await reply.over("r5")
        assert await platform.texts() == [f"r{number}" for number in range(6)]

    async def test_an_account_that_is_gone_waits_for_its_return(
        self, run_reply: "RunReply", platform: "Platform"
    ) -> None:
        """Deliveries of an account that is not configured stay pending."""
        async with run_reply() as reply:
            await platform.faults(http_status=503)
            await reply.deliver("r1")
        await platform.faults()
        async with run_reply(corpid="ww1", api_base="http://127.0.0.1:1") as reply:
            assert (await reply.look("r1")).state == DELIVERY_STATE_PENDING
        async with run_reply() as reply:
            assert (await reply.over("r1")).state == DELIVERY_STATE_DELIVERED


class Recorder:
    """A platform that keeps what it was sent, answers only when told to, and may forbid words."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[bytes] = []
        self.answers = False
        self.forbidden = b"\0"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/gettoken"):
            return web.json_response({"errcode": 0, "access_token": "t", "expires_in": 7200})
        self.bodies.append(await request.read())
        while not self.answers:
            await asyncio.sleep(0.01)
        forbidden = self.forbidden in self.bodies[-1]
        return web.json_response({"errcode": 40033} if forbidden else {"errcode": 0, "msgid": "m1"})

    def texts(self) -> list[str]:
        return [orjson.loads(body)["text"]["content"] for body in self.bodies]


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    recorder = Recorder()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", recorder.handle)
    async with served(application) as recorder.url:
        yield recorder


async def test_a_restart_sends_only_what_remains(run_reply: "RunReply", recorder: Recorder) -> None:
    """Parts that the platform accepted are not sent again, neither by the next process nor by a retry."""
    recorder.answers, recorder.forbidden = True, b'"image"'
    content = [Content(text=Text(text="first")), Content(image=Media(media_id="m")), Content(text=Text(text="third"))]
    async with run_reply(api_base=recorder.url) as reply:
        accepted = await reply.deliver("r1", content=content)
        assert (await reply.over("r1")).state == DELIVERY_STATE_DEAD
    recorder.forbidden = b"\0"
    async with run_reply(api_base=recorder.url) as reply:
        await reply.stub.RetryDelivery(RetryDeliveryRequest(delivery_id=accepted.delivery_id), timeout=5)
        assert (await reply.over("r1")).state == DELIVERY_STATE_DELIVERED
    assert [orjson.loads(body)["msgtype"] for body in recorder.bodies] == ["text", "image", "image", "text"]


class TestOnAFastClock:
    """Where minutes pass."""

    @pytest.fixture
    def clock(self, fast_clock: "type[FastClock]") -> Clock:
        return fast_clock(60)

    async def test_a_member_is_sent_no_more_than_the_quota(
        self, reply: "Reply", platform: "Platform", clock: "FastClock"
    ) -> None:
        """Forty answers in a minute: thirty go at once, the others wait, share one message, and none is dropped."""
        clock.stand_still()
        for number in range(40):
            await reply.deliver(f"r{number:02}")
        await reply.over("r29")
        clock.go_on()
        for number in range(40):
            assert (await reply.over(f"r{number:02}")).state == DELIVERY_STATE_DELIVERED
        shown = await platform.texts()
        assert shown[:30] == [f"r{number:02}" for number in range(30)]
        assert "\n".join(shown[30:]) == "\n".join(f"r{number:02}" for number in range(30, 40))
        assert len(shown) < 40
        assert (await platform.books())["dropped_by_quota"] == 0

    async def test_the_quota_outlives_a_restart(self, run_reply: "RunReply", platform: "Platform") -> None:
        """A new process knows what the last one sent."""
        async with run_reply() as reply:
            for number in range(30):
                await reply.deliver(f"r{number}")
            await reply.over("r29")
        async with run_reply() as reply:
            await reply.deliver("r30")
            await reply.over("r30")
        assert (await platform.books())["dropped_by_quota"] == 0
        times = [message["time"] for message in await platform.shown()]
        assert times[30] - times[0] >= 59

    async def test_one_refused_text_takes_no_other_along(
        self, run_reply: "RunReply", recorder: Recorder, clock: "FastClock"
    ) -> None:
        """A request of several deliveries that is refused is sent again one by one."""
        clock.stand_still()
        recorder.answers, recorder.forbidden = True, b"evil"
        async with run_reply(api_base=recorder.url) as reply:
            names = [f"r{number}" for number in range(30)] + ["good", "evil", "fine"]
            for name in names:
                await reply.deliver(name)
            await reply.over("r29")
            clock.go_on()
            states = [(await reply.over(name)).state for name in names]
        assert states == [DELIVERY_STATE_DEAD if name == "evil" else DELIVERY_STATE_DELIVERED for name in names]
        assert "good\nevil\nfine" in recorder.texts()
        assert recorder.texts()[-3:] == ["good", "evil", "fine"]

    async def test_what_shares_a_message_cannot_be_taken_back_alone(self, reply: "Reply", clock: "FastClock") -> None:
        """Recalling one of several would take back the others."""
        clock.stand_still()
        for number in range(33):
            await reply.deliver(f"r{number}")
        await reply.over("r29")
        clock.go_on()
        last = await reply.over("r32")
        with pytest.raises(NotRecallable, match="others"):
            await reply.stub.RecallDelivery(RecallDeliveryRequest(delivery_id=last.delivery_id), timeout=5)

    async def test_a_block_is_waited_out(self, reply: "Reply", platform: "Platform") -> None:
        """After 45009 nothing is sent for a minute, then everything."""
        await platform.faults(error_code=45009, error_calls=1, only="message/send")
        await reply.deliver("r1", member="lisi")
        blocked = await reply.when("r1", lambda delivery: delivery.attempts > 0)
        assert "45009" in blocked.last_error
        await reply.deliver("r2", member="wangwu")
        assert (await reply.over("r2")).state == DELIVERY_STATE_DELIVERED
        assert (await reply.over("r1")).state == DELIVERY_STATE_DELIVERED

    async def test_what_an_operator_must_mend_waits_for_it(self, reply: "Reply", platform: "Platform") -> None:
        """Untrusted address: pending, with advice; mended, all goes out."""
        await reply.deliver("before")
        await reply.over("before")
        await platform.faults(error_code=60020, error_calls=1_000_000)
        for member in ("lisi", "wangwu"):
            await reply.deliver(member, member=member)
        waiting = await reply.when("lisi", lambda delivery: delivery.attempts > 0)
        assert waiting.state == DELIVERY_STATE_PENDING
        assert "企业可信IP" in waiting.last_error
        await platform.faults()
        for member in ("lisi", "wangwu"):
            assert (await reply.over(member)).state == DELIVERY_STATE_DELIVERED

    async def test_one_members_configuration_trouble_is_nobody_elses(
        self, reply: "Reply", platform: "Platform"
    ) -> None:
        """A refusal that concerns one call does not stop the account."""
        await platform.faults(error_code=43012, error_calls=1, only="message/send")
        await reply.deliver("card", member="lisi")
        await reply.when("card", lambda delivery: delivery.attempts > 0)
        await reply.deliver("words", member="wangwu")
        assert (await reply.over("words")).state == DELIVERY_STATE_DELIVERED
        assert (await reply.look("card")).state in (DELIVERY_STATE_PENDING, DELIVERY_STATE_DELIVERED)


class TestOnAVeryFastClock:
    """Where hours pass."""

    @pytest.fixture
    def clock(self, fast_clock: "type[FastClock]") -> Clock:
        return fast_clock(20_000)

    @pytest.mark.parametrize("errcode", [-1, 60020, 45009])
    async def test_what_fails_for_too_long_is_dead(self, reply: "Reply", platform: "Platform", errcode: int) -> None:
        """An hour of a platform that is down, a day of a configuration that nobody mends: then it is a dead letter."""
        await platform.faults(error_code=errcode, error_calls=1_000_000, only="message/send")
        await reply.deliver("r1")
        dead = await reply.over("r1")
        assert dead.state == DELIVERY_STATE_DEAD
        assert str(errcode) in dead.last_error
        assert dead.attempts > 3
