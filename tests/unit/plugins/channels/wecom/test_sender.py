"""The sender against a platform: the simulator, or one that answers as it is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from assistant import errors
from assistant.api.message.v1.message_pb2 import (
    CONVERSATION_KIND_DIRECT,
    CONVERSATION_KIND_GROUP,
    Content,
    Conversation,
    Member,
    Recipient,
    Text,
)
from assistant.api.reply.v1.reply_pb2 import (
    MEDIA_KIND_FILE,
    MEDIA_KIND_IMAGE,
    MEDIA_KIND_VIDEO,
    MEDIA_KIND_VOICE,
    MediaDescription,
    MediaKind,
)
from assistant.settings import Secret
from assistant.testing import SimulatedPlatform, served, simulated
from plugins.channels.wecom import SenderSettings
from plugins.channels.wecom.sender import Sender

SECRET = "s3cret-s3cret-s3cret"
TOKEN = "t0ken-t0ken-t0ken"
ZHANGSAN = Recipient(member=Member(id="zhangsan"))
HELLO = Content(text=Text(text="你好"))
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 100

TEMPORARY = [-1, 6000]
REJECTED_TOKEN = [40014, 42001, 40001]
THROTTLED = [45009, 45033]
CONFIGURATION = [40013, 40091, 41001, 41011, 40056, 301002, 48002, 50002, 50003, 60020, 43012, 2000002]
RECIPIENT = [40003, 40031, 60011, 60111, 81013, 82001, 46004]
CONTENT = [40004, 40006, 40007, 40008, 40033, 40035, 40058, 40063, 44001, 44004]
CONTENT += [45001, 45002, 45007, 45008, 45032, 45034]
CARD = [42014, 42016, 60140]
GROUP = [86001, 86003, 86215, 86216, 86217]
CLASSES = (
    dict.fromkeys(TEMPORARY, errors.PlatformUnavailable)
    | dict.fromkeys(REJECTED_TOKEN, errors.PlatformTokenRejected)
    | dict.fromkeys(THROTTLED, errors.PlatformThrottled)
    | dict.fromkeys(CONFIGURATION, errors.PlatformMisconfigured)
    | dict.fromkeys(RECIPIENT + CONTENT + CARD + GROUP, errors.PlatformRefused)
)


def settings(api_base: str, **changed: Any) -> SenderSettings:
    return SenderSettings(
        **{"corpid": "ww0", "secret": Secret(SECRET), "agentid": 1000002, "api_base": api_base, **changed}
    )


@asynccontextmanager
async def answering(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[Sender]:
    """A sender whose platform answers every call so."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    async with served(application) as url, aiohttp.ClientSession() as http:
        yield Sender(settings(url), http)


def saying(answer: dict[str, Any], status: int = 200) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.json_response(answer, status=status)

    return handler


@asynccontextmanager
async def on_simulator() -> AsyncIterator[tuple[Sender, SimulatedPlatform]]:
    async with simulated("wecom", "http://127.0.0.1:1/") as platform, aiohttp.ClientSession() as http:
        given = platform.settings
        changed = {"corpid": given["corpid"], "secret": Secret(given["secret"]), "agentid": given["agentid"]}
        yield Sender(settings(platform.url, **changed), http), platform


def request(sender: Sender) -> bytes:
    return sender.render("d1", 1, ZHANGSAN, [HELLO])[0]


# --- Rendering --------------------------------------------------------------------------------------------


async def rendered(content: list[Content], number: int = 1, recipient: Recipient = ZHANGSAN) -> list[bytes]:
    async with aiohttp.ClientSession() as http:
        return Sender(settings("http://127.0.0.1:1"), http).render(f"d{number}", number, recipient, content)


async def test_a_request_is_what_the_documentation_says() -> None:
    """One member, a whole number as agentid, real UTF-8, duplicates checked."""
    (body,) = await rendered([HELLO])
    assert "你好".encode() in body
    sent = orjson.loads(body)
    interval = sent.pop("duplicate_check_interval")
    assert 600 <= interval <= 14400
    assert sent == {
        "touser": "zhangsan",
        "agentid": 1000002,
        "msgtype": "text",
        "text": {"content": "你好"},
        "enable_duplicate_check": 1,
    }


async def test_a_repeated_delivery_is_the_same_bytes() -> None:
    """What is sent again after a crash can be recognised by the platform."""
    assert await rendered([HELLO]) == await rendered([HELLO])


async def test_another_delivery_of_equal_words_differs() -> None:
    """Two answers that say the same are both shown, and so are two equal parts of one answer."""
    async with aiohttp.ClientSession() as http:
        sender = Sender(settings("http://127.0.0.1:1"), http)
        bodies = {sender.render(f"d{number}", number, ZHANGSAN, [HELLO])[0] for number in range(7_777, 17_777)}
    assert len(bodies) == 10_000
    parts = await rendered([Content(text=Text(text="你" * 682 + "\n" + "你" * 682))])
    assert len(set(parts)) == len(parts)


@given(st.text(min_size=1, max_size=3000).filter(str.strip))
async def test_long_words_are_cut_and_whole(text: str) -> None:
    """The parts of a text together are the text, and each fits; parts of blanks alone may be left out."""
    parts = [orjson.loads(body)["text"]["content"] for body in await rendered([Content(text=Text(text=text))])]
    assert all(len(part.encode()) <= 2048 for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


async def test_a_conversation_with_one_member_is_answered_there() -> None:
    """Without a member the conversation's id is the member's."""
    recipient = Recipient(conversation=Conversation(id="lisi", kind=CONVERSATION_KIND_DIRECT))
    assert orjson.loads((await rendered([HELLO], recipient=recipient))[0])["touser"] == "lisi"


@pytest.mark.parametrize(
    "recipient",
    [
        Recipient(member=Member(id="@all")),
        Recipient(member=Member(id="a|b")),
        Recipient(conversation=Conversation(id="g1", kind=CONVERSATION_KIND_GROUP)),
    ],
)
async def test_nobody_else_is_written_to(recipient: Recipient) -> None:
    """A name that stands for several members, or for all, is refused."""
    with pytest.raises(errors.PlatformRefused):
        await rendered([HELLO], recipient=recipient)


async def test_without_agentid_an_operator_is_told() -> None:
    """Sending needs the agentid, and the error says how to set it."""
    async with aiohttp.ClientSession() as http:
        sender = Sender(settings("http://127.0.0.1:1", agentid=None), http)
        with pytest.raises(errors.PlatformMisconfigured, match="--agentid"):
            sender.render("d1", 1, ZHANGSAN, [HELLO])


async def test_blanks_alone_are_refused() -> None:
    """WeCom takes no empty message."""
    with pytest.raises(errors.PlatformRefused):
        await rendered([Content(text=Text(text=" \n "))])


# --- Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("errcode", "error"), CLASSES.items())
async def test_every_error_code_has_its_class_and_advice(errcode: int, error: type[errors.AssistantError]) -> None:
    """The code decides what happens, and is told with advice in both languages."""
    async with answering(saying({"errcode": errcode, "errmsg": "x, from ip: 203.0.113.9, more"})) as sender:
        with pytest.raises(error) as caught:
            await sender.send(request(sender), TOKEN)
    assert type(caught.value) is error
    assert caught.value.metadata["error_code"] == str(errcode)
    assert str(errcode) in str(caught.value)
    assert " / " in str(caught.value)


async def test_an_untrusted_address_is_named() -> None:
    """60020 tells the operator which address to add."""
    async with answering(saying({"errcode": 60020, "errmsg": "not allow, from ip: 203.0.113.9, more"})) as sender:
        with pytest.raises(errors.PlatformMisconfigured, match=r"203\.0\.113\.9"):
            await sender.check(TOKEN)


@pytest.mark.parametrize("errcode", [40001, 40013, 40091, 40014, 81013, 999999])
async def test_wrong_credentials_are_an_operators_business(errcode: int) -> None:
    """gettoken's answer to a wrong secret means: do not ask again."""
    async with answering(saying({"errcode": errcode, "errmsg": "x"})) as sender:
        with pytest.raises(errors.PlatformMisconfigured):
            await sender.fetch_token()


async def test_a_block_says_when_to_come_back() -> None:
    """45009 lasts a minute at least."""
    async with answering(saying({"errcode": 45009, "errmsg": "x"})) as sender:
        with pytest.raises(errors.PlatformThrottled) as caught:
            await sender.send(request(sender), TOKEN)
    assert caught.value.retry_after_s == 60


async def test_an_unknown_code_is_refused() -> None:
    """A code that nobody knows stops the delivery, and is told."""
    async with answering(saying({"errcode": 999999, "errmsg": "x"})) as sender:
        with pytest.raises(errors.PlatformRefused, match="999999"):
            await sender.send(request(sender), TOKEN)


async def test_no_errcode_is_success() -> None:
    """An answer without errcode is one with 0."""
    async with answering(saying({"msgid": "m1"})) as sender:
        assert (await sender.send(request(sender), TOKEN)).platform_message_id == "m1"


@pytest.mark.parametrize("field", ["invaliduser", "unlicenseduser"])
async def test_a_member_left_out_is_not_served(field: str) -> None:
    """With one recipient, a recipient left out is a refusal, whatever the errcode."""
    async with answering(saying({"errcode": 0, "msgid": "m1", field: "zhangsan"})) as sender:
        with pytest.raises(errors.PlatformRefused, match="zhangsan"):
            await sender.send(request(sender), TOKEN)


@pytest.mark.parametrize(("status", "error"), [(500, errors.PlatformUnavailable), (503, errors.PlatformUnavailable)])
async def test_a_failing_platform_is_unavailable(status: int, error: type[errors.AssistantError]) -> None:
    """HTTP 5xx means later."""
    async with answering(saying({}, status)) as sender:
        with pytest.raises(error, match=str(status)):
            await sender.send(request(sender), TOKEN)


async def test_an_answer_that_is_not_wecoms_is_an_operators_business() -> None:
    """A page of a proxy in between is named as that."""

    async def page(_: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>log in</html>", content_type="text/html")

    async with answering(page) as sender:
        with pytest.raises(errors.PlatformMisconfigured, match="api_base"):
            await sender.check(TOKEN)


async def test_a_redirect_is_not_followed() -> None:
    """The token goes nowhere but to the platform."""
    asked = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        raise web.HTTPFound("/elsewhere")

    async with answering(elsewhere) as sender:
        with pytest.raises(errors.PlatformMisconfigured):
            await sender.check(TOKEN)
    assert asked == ["/cgi-bin/getcallbackip"]


async def _unreachable(sender: Sender) -> errors.AssistantError:
    with pytest.raises(errors.AssistantError) as caught:
        await sender.send(request(sender), TOKEN)
    return caught.value


async def test_a_refused_connection_did_nothing() -> None:
    """Before anything was sent, nothing was done."""
    async with aiohttp.ClientSession() as http:
        error = await _unreachable(Sender(settings("http://127.0.0.1:1"), http))
    assert isinstance(error, errors.PlatformUnavailable)


async def test_a_broken_connection_leaves_the_outcome_unknown() -> None:
    """After sending, the platform may have done it."""

    async def breaking(request: web.Request) -> web.StreamResponse:
        await request.read()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with answering(breaking) as sender:
        assert isinstance(await _unreachable(sender), errors.PlatformOutcomeUnknown)
        with pytest.raises(errors.PlatformUnavailable):
            await sender.check(TOKEN)


async def test_errors_tell_no_secret() -> None:
    """Secrets and tokens stand in addresses, and aiohttp quotes these: none of it gets into an error."""
    async with aiohttp.ClientSession() as http:
        sender = Sender(settings("http://127.0.0.1:1"), http)
        for call in (sender.fetch_token(), sender.check(TOKEN), sender.fetch_media("m", TOKEN)):
            with pytest.raises(errors.PlatformUnavailable) as caught:
                await call
            told = f"{caught.value!r} {caught.value.metadata} {caught.value.__cause__!r}"
            assert SECRET not in told
            assert TOKEN not in told
    assert SECRET not in repr(settings("http://127.0.0.1:1"))


# --- Everything else, on the simulator --------------------------------------------------------------------


async def test_a_message_is_sent_shown_and_taken_back() -> None:
    """Token, message, recall: the member sees it, and no longer."""
    async with on_simulator() as (sender, platform):
        token = await sender.fetch_token()
        assert token.lifetime_s > 7000
        await sender.check(token.value)
        receipt = await sender.send(request(sender), token.value)
        (shown,) = await platform.call("GET", "/simulator/members/zhangsan/messages")
        assert (shown["text"], shown["state"]) == ("你好", "shown")
        await sender.recall(receipt.platform_message_id, token.value)
        (shown,) = await platform.call("GET", "/simulator/members/zhangsan/messages")
        assert shown["state"] == "recalled"


async def test_what_cannot_be_taken_back_is_told() -> None:
    """A message that the platform does not know cannot be recalled."""
    async with on_simulator() as (sender, _):
        token = await sender.fetch_token()
        with pytest.raises(errors.NotRecallable):
            await sender.recall("nothing", token.value)


async def test_a_file_comes_back_as_it_went() -> None:
    """Upload and fetch keep bytes, type and a Chinese name."""
    async with on_simulator() as (sender, _):
        token = (await sender.fetch_token()).value
        description = MediaDescription(name='图 "1".png', media_type="image/png")
        uploaded = await sender.upload_media(MEDIA_KIND_IMAGE, description, PNG, token)
        assert uploaded.expires_at is not None
        fetched = await sender.fetch_media(uploaded.media_id, token)
        assert b"".join([chunk async for chunk in fetched.chunks]) == PNG
        assert fetched.description == MediaDescription(name="图 _1_.png", media_type="image/png", size_bytes=len(PNG))


async def test_an_unknown_file_is_named_so() -> None:
    """media/get's JSON error is no file."""
    async with on_simulator() as (sender, _):
        token = (await sender.fetch_token()).value
        with pytest.raises(errors.UnknownMedia):
            await sender.fetch_media("nothing", token)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (MEDIA_KIND_FILE, b"12345", "5 bytes"),
        (MEDIA_KIND_IMAGE, b"GIF89a" + b"0" * 100, "JPG and PNG"),
        (MEDIA_KIND_IMAGE, PNG + bytes(10 << 20), "10 MB"),
        (MEDIA_KIND_VOICE, b"RIFF" + b"0" * 100, "AMR"),
        (MEDIA_KIND_VOICE, b"#!AMR" + bytes(2 << 20), "2 MB"),
        (MEDIA_KIND_VIDEO, b"\x1aE\xdf\xa3" + b"0" * 100, "MP4"),
    ],
)
async def test_files_are_looked_at_before_they_are_sent(kind: MediaKind, data: bytes, message: str) -> None:
    """What the platform would refuse is refused here, with what it takes."""
    async with aiohttp.ClientSession() as http:
        sender = Sender(settings("http://127.0.0.1:1"), http)
        with pytest.raises(errors.InvalidMedia, match=message):
            await sender.upload_media(kind, MediaDescription(name="a.bin", media_type="x/y"), data, TOKEN)


async def test_calls_of_one_sender_run_beside_each_other() -> None:
    """A slow call holds up no other one."""
    async with on_simulator() as (sender, platform):
        token = (await sender.fetch_token()).value
        await platform.call("PUT", "/simulator/faults", {"latency_ms": 100})
        async with asyncio.timeout(5):
            await asyncio.gather(*(sender.check(token) for _ in range(60)))


# --- The company ------------------------------------------------------------------------------------------


async def test_callback_sources_are_ranges() -> None:
    """Whichever way the platform writes an address or a range, of both families."""
    async with on_simulator() as (sender, platform):
        token = (await sender.fetch_token()).value
        assert await sender.callback_sources(token) == ["127.0.0.1/32"]
        given = ["101.226.103.*", "101.227.*.*", "182.254.11.176", "101.226.62.0/26", " 2001:db8::1", "2001:db8:1::/48"]
        await platform.call("PUT", "/simulator/rules", {"callback_addresses": given})
        assert await sender.callback_sources(token) == [
            "101.226.103.0/24",
            "101.227.0.0/16",
            "182.254.11.176/32",
            "101.226.62.0/26",
            "2001:db8::1/128",
            "2001:db8:1::/48",
        ]


@pytest.mark.parametrize(
    "answer", [{}, {"ip_list": []}, {"ip_list": "1.2.3.4"}, {"ip_list": ["1.2.*.4"]}, {"ip_list": ["?"]}]
)
async def test_callback_sources_that_make_no_sense_are_refused(answer: dict[str, Any]) -> None:
    """A list of which a part cannot be read is none: callers keep the one before."""
    async with answering(saying({"errcode": 0, **answer})) as sender:
        with pytest.raises(errors.PlatformMisconfigured, match="callbacks come from"):
            await sender.callback_sources(TOKEN)


async def test_departments_are_told() -> None:
    """Those that a member is in, and which lies within which."""
    async with on_simulator() as (sender, platform):
        token = (await sender.fetch_token()).value
        assert await sender.departments_of("zhangsan", token) == ["1"]
        await platform.call("PUT", "/simulator/members/zhangsan", {"departments": [3, 4]})
        assert await sender.departments_of("ZhangSan", token) == ["3", "4"]
        assert await sender.departments(token) == {"1": "", "2": "1", "3": "1", "4": "2"}


async def test_a_company_may_have_as_many_departments_as_the_platform_allows() -> None:
    """An answer of a megabyte and more arrives in pieces, and is read to its end."""
    async with on_simulator() as (sender, platform):
        token = (await sender.fetch_token()).value
        above = {str(number): number // 2 for number in range(1, 30_001)}
        await platform.call("PUT", "/simulator/rules", {"departments": above})
        told = await sender.departments(token)
        assert told == {number: str(department) if department else "" for number, department in above.items()}


async def test_a_member_who_is_not_there_is_refused() -> None:
    """With the platform's code and advice."""
    async with on_simulator() as (sender, platform):
        token = (await sender.fetch_token()).value
        await platform.call("DELETE", "/simulator/members/zhangsan")
        with pytest.raises(errors.PlatformRefused, match="60111"):
            await sender.departments_of("zhangsan", token)


@pytest.mark.parametrize("answer", [{}, {"department": []}, {"department": None}])
async def test_a_member_without_departments_is_not_guessed_about(answer: dict[str, Any]) -> None:
    """The platform tells only departments that the application may see; every member is in one."""
    async with answering(saying({"errcode": 0, "userid": "zhangsan", **answer})) as sender:
        with pytest.raises(errors.PlatformMisconfigured, match="visible range"):
            await sender.departments_of("zhangsan", TOKEN)
