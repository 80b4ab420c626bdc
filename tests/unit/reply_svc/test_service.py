"""ReplyService as its callers see it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from assistant import errors
from assistant.api.message.v1.message_pb2 import Account, Card, CardAction, Content, Event, Member, Recipient, Text
from assistant.api.reply.v1.reply_pb2 import (
    DELIVERY_STATE_DEAD,
    DELIVERY_STATE_DELIVERED,
    DELIVERY_STATE_PENDING,
    DELIVERY_STATE_RECALLED,
    DELIVERY_STATE_RECORDED,
    MEDIA_KIND_IMAGE,
    CheckAccountRequest,
    DeliverReplyRequest,
    FetchMediaRequest,
    GetDeliveryRequest,
    GetMemberRequest,
    ListCallbackSourcesRequest,
    ListDeliveriesRequest,
    MediaDescription,
    RecallDeliveryRequest,
    RetryDeliveryRequest,
    UploadMediaHeader,
    UploadMediaRequest,
)
from assistant.plugin import SELF_TEST_MEMBER
from reply_svc.accounts import DEPARTMENTS_LIFETIME_S
from reply_svc.clock import Clock

if TYPE_CHECKING:
    from conftest import FastClock, Platform, Reply, RunReply

WECOM = Account(channel="wecom")
ZHANGSAN = Recipient(member=Member(id="zhangsan"))
HELLO = Content(text=Text(text="hello"))
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 200_000


@contextmanager
def busy(database: Path) -> Iterator[None]:
    """Nobody else can write to it meanwhile."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def test_what_is_accepted_is_delivered_once(reply: "Reply", platform: "Platform") -> None:
    """The member sees it; repeating the request gives the same answer and sends nothing."""
    first = await reply.deliver("r1", "你好")
    delivery = await reply.over("r1")
    assert delivery.state == DELIVERY_STATE_DELIVERED
    assert (await reply.deliver("r1", "something else")).delivery_id == first.delivery_id
    assert await platform.texts() == ["你好"]


async def test_what_was_stored_is_sent_although_the_caller_has_gone(
    reply: "Reply", platform: "Platform", tmp_path: Path
) -> None:
    """It stopped waiting while the database was busy. Nobody repeats the request: it must not wait for a restart."""
    request = DeliverReplyRequest(request_id="r1", account=WECOM, recipient=ZHANGSAN, content=[HELLO])
    with busy(tmp_path / "reply.db"), pytest.raises(errors.DeadlineExceeded):
        await reply.stub.DeliverReply(request, timeout=0.2)
    await platform.sent("hello")


async def test_a_delivery_tells_how_it_stands(reply: "Reply", platform: "Platform") -> None:
    """By either name, with content, times and the platform's own id."""
    accepted = await reply.deliver("r1", "hello")
    delivery = await reply.over("r1")
    by_id = await reply.stub.GetDelivery(GetDeliveryRequest(delivery_id=accepted.delivery_id), timeout=5)
    assert by_id.delivery == delivery
    assert list(delivery.content) == [HELLO]
    assert delivery.recipient == ZHANGSAN
    assert delivery.attempts == 1
    assert delivery.last_error == ""
    assert delivery.platform_message_ids == [(await platform.shown())[0]["message_id"]]
    assert delivery.accepted_at.ToNanoseconds() <= delivery.updated_at.ToNanoseconds()


async def test_an_unknown_delivery_is_named(reply: "Reply") -> None:
    """Asking for, retrying and recalling what is not there says so."""
    for call, request in (
        (reply.stub.GetDelivery, GetDeliveryRequest(request_id="nothing")),
        (reply.stub.RetryDelivery, RetryDeliveryRequest(delivery_id="nothing")),
        (reply.stub.RecallDelivery, RecallDeliveryRequest(delivery_id="nothing")),
    ):
        with pytest.raises(errors.UnknownDelivery):
            await call(request, timeout=5)


async def test_the_self_tests_answers_are_kept_and_not_sent(run_reply: "RunReply", platform: "Platform") -> None:
    """Recorded at once, without asking the platform for anything."""
    async with run_reply(secret="wrong") as reply:
        assert (await reply.deliver("r1", "pong", member=SELF_TEST_MEMBER)).state == DELIVERY_STATE_RECORDED
        delivery = await reply.look("r1")
        assert (delivery.state, delivery.content[0].text.text) == (DELIVERY_STATE_RECORDED, "pong")
    assert (await platform.books())["api_calls"] == 0


CARD = Card(card_id="c1", title="T", actions=[CardAction(action_id="a", label="A")])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (DeliverReplyRequest(request_id="", recipient=ZHANGSAN, content=[HELLO]), "request_id"),
        (DeliverReplyRequest(request_id="x" * 201, recipient=ZHANGSAN, content=[HELLO]), "request_id"),
        (DeliverReplyRequest(request_id="r", content=[HELLO]), "recipient"),
        (DeliverReplyRequest(request_id="r", recipient=ZHANGSAN), "content"),
        (DeliverReplyRequest(request_id="r", recipient=ZHANGSAN, content=[HELLO, Content()]), r"content\[1\]"),
        (DeliverReplyRequest(request_id="r", recipient=ZHANGSAN, content=[Content(event=Event())]), r"content\[0\]"),
        (
            DeliverReplyRequest(request_id="r", recipient=ZHANGSAN, content=[Content(text=Text(text=" \n"))]),
            r"content\[0\]\.text",
        ),
        (
            DeliverReplyRequest(request_id="r", recipient=ZHANGSAN, content=[Content(text=Text(text="x" * 65537))]),
            "65537 bytes",
        ),
        (
            DeliverReplyRequest(request_id="r", recipient=ZHANGSAN, content=[Content(card=Card(title="T"))]),
            "card_id",
        ),
        (
            DeliverReplyRequest(request_id="r", recipient=ZHANGSAN, content=[Content(card=Card(card_id="c"))]),
            "title",
        ),
        (
            DeliverReplyRequest(
                request_id="r",
                recipient=ZHANGSAN,
                content=[Content(card=Card(card_id="c", title="T", actions=[CardAction(label="A")]))],
            ),
            r"actions\[0\]",
        ),
        (
            DeliverReplyRequest(
                request_id="r",
                recipient=ZHANGSAN,
                content=[Content(card=Card(card_id="c", title="T", actions=[CardAction(action_id="a")]))],
            ),
            "label",
        ),
    ],
)
async def test_a_wrong_field_is_named(reply: "Reply", wrong: DeliverReplyRequest, named: str) -> None:
    """What cannot be delivered is refused before it is accepted."""
    request = DeliverReplyRequest()
    request.CopyFrom(wrong)
    request.account.CopyFrom(WECOM)
    with pytest.raises(errors.InvalidRequest, match=named):
        await reply.stub.DeliverReply(request, timeout=5)


async def test_an_unknown_account_is_named(reply: "Reply") -> None:
    """The error says which accounts there are."""
    request = DeliverReplyRequest(
        request_id="r", account=Account(channel="wecom", name="sales"), recipient=ZHANGSAN, content=[HELLO]
    )
    with pytest.raises(errors.UnknownAccount, match=r"wecom/sales.*wecom/default"):
        await reply.stub.DeliverReply(request, timeout=5)


async def test_too_many_waiting_deliveries_are_refused(run_reply: "RunReply", platform: "Platform") -> None:
    """Memory is bounded: the caller keeps what we cannot, and repeats."""
    async with run_reply() as reply:
        await platform.faults(hang=True)
        await asyncio.gather(*(reply.deliver(f"r{number}", member=f"m{number % 5}") for number in range(1000)))
        with pytest.raises(errors.Overloaded) as caught:
            await reply.deliver("one more")
        assert caught.value.retry_after_s
        await platform.faults()


# --- Lists ------------------------------------------------------------------------------------------------


async def test_lists_are_newest_first_and_in_pages(reply: "Reply") -> None:
    """Page after page shows every delivery once."""
    for number in range(5):
        await reply.deliver(f"r{number}", member=f"m{number}")
    listed, token = [], ""
    while True:
        page = await reply.stub.ListDeliveries(ListDeliveriesRequest(page_size=2, page_token=token), timeout=5)
        listed += [delivery.request_id for delivery in page.deliveries]
        assert not any(delivery.content for delivery in page.deliveries)
        if not (token := page.next_page_token):
            break
    assert listed == ["r4", "r3", "r2", "r1", "r0"]


async def test_lists_can_be_of_one_state(reply: "Reply", platform: "Platform") -> None:
    """Dead letters alone, for instance."""
    await reply.deliver("good")
    await reply.over("good")
    await platform.faults(error_code=45002, error_calls=1, only="message/send")
    await reply.deliver("bad")
    await reply.over("bad")
    page = await reply.stub.ListDeliveries(ListDeliveriesRequest(state=DELIVERY_STATE_DEAD), timeout=5)
    assert [delivery.request_id for delivery in page.deliveries] == ["bad"]


@pytest.mark.parametrize(
    "wrong",
    [
        ListDeliveriesRequest(page_size=1001),
        ListDeliveriesRequest(page_token="x"),
        ListDeliveriesRequest(page_token="9" * 30),
        ListDeliveriesRequest(state=77),
    ],
)
async def test_a_wrong_list_is_refused(reply: "Reply", wrong: ListDeliveriesRequest) -> None:
    """Limits and tokens are checked."""
    with pytest.raises(errors.InvalidRequest):
        await reply.stub.ListDeliveries(wrong, timeout=5)


# --- Dead letters and recall ------------------------------------------------------------------------------


async def test_a_refused_delivery_is_dead_until_it_is_retried(reply: "Reply", platform: "Platform") -> None:
    """The operator sees why, mends it, and retries; retrying a living one changes nothing."""
    await platform.faults(error_code=81013, error_calls=1, only="message/send")
    accepted = await reply.deliver("r1", "hello")
    dead = await reply.over("r1")
    assert dead.state == DELIVERY_STATE_DEAD
    assert "81013" in dead.last_error
    for _ in range(2):
        await reply.stub.RetryDelivery(RetryDeliveryRequest(delivery_id=accepted.delivery_id), timeout=5)
        delivered = await reply.when("r1", lambda delivery: delivery.state == DELIVERY_STATE_DELIVERED)
        assert delivered.last_error == ""
    assert await platform.texts() == ["hello"]


async def test_a_retry_is_carried_out_although_the_operator_has_gone(
    reply: "Reply", platform: "Platform", tmp_path: Path
) -> None:
    """As with a delivery that is accepted."""
    await platform.faults(error_code=81013, error_calls=1, only="message/send")
    accepted = await reply.deliver("r1", "hello")
    assert (await reply.over("r1")).state == DELIVERY_STATE_DEAD
    with busy(tmp_path / "reply.db"), pytest.raises(errors.DeadlineExceeded):
        await reply.stub.RetryDelivery(RetryDeliveryRequest(delivery_id=accepted.delivery_id), timeout=0.2)
    await platform.sent("hello")


async def test_a_delivery_can_be_taken_back(reply: "Reply", platform: "Platform") -> None:
    """All its messages vanish; taking it back again is no error."""
    accepted = await reply.deliver("r1", "你" * 1500)
    await reply.over("r1")
    for _ in range(2):
        response = await reply.stub.RecallDelivery(RecallDeliveryRequest(delivery_id=accepted.delivery_id), timeout=5)
        assert response.state == DELIVERY_STATE_RECALLED
    assert [message["state"] for message in await platform.shown()] == ["recalled"] * 3


async def test_what_was_not_delivered_cannot_be_taken_back(reply: "Reply", platform: "Platform") -> None:
    """The error says how it stands."""
    await platform.faults(error_code=81013, error_calls=1, only="message/send")
    accepted = await reply.deliver("r1")
    await reply.over("r1")
    with pytest.raises(errors.NotRecallable, match="dead"):
        await reply.stub.RecallDelivery(RecallDeliveryRequest(delivery_id=accepted.delivery_id), timeout=5)


# --- Files ------------------------------------------------------------------------------------------------


async def uploading(
    data: bytes, name: str = "图.png", media_type: str = "image/png", kind: int = MEDIA_KIND_IMAGE
) -> AsyncIterator[UploadMediaRequest]:
    description = MediaDescription(name=name, media_type=media_type)
    yield UploadMediaRequest(header=UploadMediaHeader(account=WECOM, description=description, kind=kind))
    for start in range(0, len(data), 65536):
        yield UploadMediaRequest(chunk=data[start : start + 65536])


async def fetch(reply: "Reply", media_id: str) -> tuple[MediaDescription, list[bytes]]:
    responses = [
        response
        async for response in reply.stub.FetchMedia(FetchMediaRequest(account=WECOM, media_id=media_id), timeout=10)
    ]
    return responses[0].description, [response.chunk for response in responses[1:]]


async def test_a_file_comes_back_as_it_went(reply: "Reply") -> None:
    """In chunks that every caller can take, described first."""
    uploaded = await reply.stub.UploadMedia(uploading(PNG), timeout=10)
    assert uploaded.HasField("expires_at")
    description, chunks = await fetch(reply, uploaded.media_id)
    assert description.media_type == "image/png"
    assert b"".join(chunks) == PNG
    assert all(len(chunk) <= 65536 for chunk in chunks)


async def test_an_unknown_file_is_named_so(reply: "Reply") -> None:
    """What the platform does not have, or no longer."""
    with pytest.raises(errors.UnknownMedia):
        await fetch(reply, "nothing")


@pytest.mark.parametrize(
    ("requests", "error", "named"),
    [
        (uploading(PNG, name=""), errors.InvalidRequest, "name"),
        (uploading(PNG, media_type=""), errors.InvalidRequest, "media_type"),
        (uploading(PNG, kind=0), errors.InvalidRequest, "kind"),
        (uploading(b"GIF89a" + bytes(100)), errors.InvalidMedia, "JPG and PNG"),
        (uploading(bytes((20 << 20) + 1)), errors.InvalidMedia, "20 MB"),
    ],
    ids=["name", "media_type", "kind", "form", "size"],
)
async def test_a_wrong_file_is_refused(
    reply: "Reply", requests: AsyncIterator[UploadMediaRequest], error: type[Exception], named: str
) -> None:
    """The error says what would be taken."""
    with pytest.raises(error, match=named):
        await reply.stub.UploadMedia(requests, timeout=10)


async def test_an_upload_begins_with_its_header(reply: "Reply") -> None:
    """Bytes of nothing are refused."""

    async def headless() -> AsyncIterator[UploadMediaRequest]:
        yield UploadMediaRequest(chunk=b"x")

    with pytest.raises(errors.InvalidRequest, match="header"):
        await reply.stub.UploadMedia(headless(), timeout=10)


# --- Accounts ---------------------------------------------------------------------------------------------


async def test_a_good_account_is_connected_and_asked_about_rarely(reply: "Reply", platform: "Platform") -> None:
    """Asking us often asks the platform once."""
    for _ in range(5):
        response = await reply.stub.CheckAccount(CheckAccountRequest(account=WECOM), timeout=5)
        assert (response.connected, response.error_code, response.advice) == (True, "", "")
    assert (await platform.books())["api_calls"] == 2  # gettoken, getcallbackip


async def test_a_wrong_secret_is_told_with_advice(run_reply: "RunReply") -> None:
    """The operator reads the code and what to do, in both languages."""
    async with run_reply(secret="wrong") as reply:
        response = await reply.stub.CheckAccount(CheckAccountRequest(account=WECOM), timeout=5)
    assert (response.connected, response.error_code) == (False, "40001")
    assert "copy the Secret" in response.advice
    assert "重新复制" in response.advice


async def test_a_wrong_secret_is_used_once(run_reply: "RunReply", platform: "Platform") -> None:
    """However many deliveries and checks there are: the platform blocks addresses that go on."""
    async with run_reply(secret="wrong") as reply:
        names = [f"r{number}" for number in range(20)]
        await asyncio.gather(*(reply.deliver(name, member=f"m{name}") for name in names))
        await reply.stub.CheckAccount(CheckAccountRequest(account=WECOM), timeout=5)
        async with asyncio.timeout(20):  # the first to fail says why; the others wait with it
            while not any(["40001" in (await reply.look(name)).last_error for name in names]):
                await asyncio.sleep(0.01)
        assert {(await reply.look(name)).state for name in names} == {DELIVERY_STATE_PENDING}
    assert (await platform.books())["api_calls"] == 1


async def test_an_unreachable_platform_is_told(run_reply: "RunReply") -> None:
    """No error code: the platform said nothing."""
    async with run_reply(api_base="http://127.0.0.1:1") as reply:
        response = await reply.stub.CheckAccount(CheckAccountRequest(account=WECOM), timeout=5)
    assert (response.connected, response.error_code) == (False, "")
    assert "not reached" in response.advice


# --- Members and addresses --------------------------------------------------------------------------------


async def sources(reply: "Reply", account: Account = WECOM) -> list[str]:
    response = await reply.stub.ListCallbackSources(ListCallbackSourcesRequest(account=account), timeout=5)
    return list(response.networks)


async def departments(reply: "Reply", member: str, account: Account = WECOM) -> set[str]:
    response = await reply.stub.GetMember(GetMemberRequest(account=account, member_id=member), timeout=5)
    return set(response.department_ids)


async def test_callback_sources_are_those_that_the_platform_publishes(reply: "Reply", platform: "Platform") -> None:
    """As ranges, asked for each time."""
    await platform.call("PUT", "rules", {"callback_addresses": ["203.0.113.*", "2001:db8::1"]})
    assert await sources(reply) == ["203.0.113.0/24", "2001:db8::1/128"]
    await platform.call("PUT", "rules", {"callback_addresses": ["198.51.100.7"]})
    assert await sources(reply) == ["198.51.100.7/32"]


async def test_a_member_is_in_all_departments_above_their_own(reply: "Reply", platform: "Platform") -> None:
    """Up to the company itself; which lies within which is asked for once in a while."""
    await platform.call("PUT", "rules", {"departments": {"1": 0, "2": 1, "3": 1, "4": 2, "5": 4}})
    await platform.call("PUT", "members/zhangsan", {"departments": [5, 3]})
    before = (await platform.books())["api_calls"]
    for member, told in (("zhangsan", {"5", "4", "2", "1", "3"}), ("lisi", {"1"})):
        assert await departments(reply, member) == told
    assert (await platform.books())["api_calls"] == before + 4  # gettoken, user/get twice, department/simplelist once


async def test_departments_that_lie_within_each_other_end(reply: "Reply", platform: "Platform") -> None:
    """A list that makes no sense is not followed for ever; a department that is not in it counts by itself."""
    await platform.call("PUT", "rules", {"departments": {"1": 2, "2": 1, "3": 9}})
    await platform.call("PUT", "members/zhangsan", {"departments": [1, 3]})
    assert await departments(reply, "zhangsan") == {"1", "2", "3", "9"}


class TestOnAFastClock:
    """Minutes pass when told."""

    @pytest.fixture
    def clock(self, fast_clock: "type[FastClock]") -> Clock:
        return fast_clock(2_000)

    async def test_departments_are_asked_for_again(
        self, run_reply: "RunReply", platform: "Platform", clock: "FastClock"
    ) -> None:
        """A department that was moved counts where it is now, once ten minutes are over."""
        clock.stand_still()
        async with run_reply() as reply:
            await platform.call("PUT", "members/zhangsan", {"departments": [4]})
            assert await departments(reply, "zhangsan") == {"4", "2", "1"}
            await platform.call("PUT", "rules", {"departments": {"1": 0, "3": 1, "4": 3}})
            assert await departments(reply, "zhangsan") == {"4", "2", "1"}
            clock.go_on()
            await clock.sleep(DEPARTMENTS_LIFETIME_S)
            assert await departments(reply, "zhangsan") == {"4", "3", "1"}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (-1, errors.PlatformUnavailable),
        (45009, errors.PlatformThrottled),
        (48002, errors.PlatformMisconfigured),
        (60011, errors.PlatformRefused),
    ],
)
@pytest.mark.parametrize("interface", ["user/get", "department/simplelist", "getcallbackip"])
async def test_what_the_platform_refuses_is_told(
    reply: "Reply", platform: "Platform", interface: str, code: int, error: type[errors.AssistantError]
) -> None:
    """As the error that says what to do, with the platform's code."""
    await platform.faults(only=interface, error_code=code, error_calls=10)
    with pytest.raises(error) as refused:
        await (sources(reply) if interface == "getcallbackip" else departments(reply, "zhangsan"))
    assert refused.value.metadata["error_code"] == str(code)


async def test_nobody_is_no_member(reply: "Reply") -> None:
    """A request that names nobody, or no account of ours, is wrong."""
    with pytest.raises(errors.InvalidRequest, match="member_id"):
        await departments(reply, "")
    with pytest.raises(errors.UnknownAccount):
        await departments(reply, "zhangsan", Account(channel="other"))
    with pytest.raises(errors.UnknownAccount):
        await sources(reply, Account(channel="other"))
