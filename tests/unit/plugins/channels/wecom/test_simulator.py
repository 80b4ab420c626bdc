"""The simulated WeCom platform, against wechatpy as an independent peer and apps that misbehave."""

import asyncio
import html.parser
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from wechatpy.enterprise.crypto import WeChatCrypto
from wechatpy.enterprise.exceptions import InvalidCorpIdException
from wechatpy.exceptions import InvalidSignatureException
from xmltodict import parse as parse_xml

from assistant import plugin
from assistant.testing import SimulatedPlatform, served, simulated
from plugins.channels.wecom.simulator import Simulator, xml
from plugins.channels.wecom.simulator.control import PAGE
from plugins.channels.wecom.simulator.envelope import Envelope
from plugins.channels.wecom.simulator.kinds import KINDS

ACCOUNT: dict[str, Any] = {
    "corpid": "ww5550b00ecfaeb41b",
    "secret": "0VkQ2vHqkS0V9e6b1q0Qm3n3c8gYw7ZyJm0P4r5T6u8",
    "token": "hJqcu3uJ9Tn2gXPmxx2w9kkCkaU2EYop",
    "aeskey": "6qkdMrq68nTKduznJYO1A37W2oEgpkMUvkttRToqhUt",
    "agentid": 1000002,
}
MEMBER = "zhangsan"
CHAT = f"/simulator/members/{MEMBER}/messages"
RULES = {"check_limit_s": 5, "retry_pause_s": 0.01}
"""A busy machine must not look like an app that is late."""

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


def peer(account: dict[str, Any] = ACCOUNT) -> WeChatCrypto:
    return WeChatCrypto(account["token"], account["aeskey"], account["corpid"])


def opened(query: str, body: bytes) -> dict[str, Any]:
    """What wechatpy reads in a callback."""
    values = dict(parse_qsl(query))
    plain = peer().decrypt_message(body, values["msg_signature"], values["timestamp"], values["nonce"])
    fields: dict[str, Any] = parse_xml(plain)["xml"]
    return fields


def reply(inner: str, *, to: str = MEMBER, sender: str = ACCOUNT["corpid"], crypto: WeChatCrypto | None = None) -> str:
    """A passive reply that wechatpy seals."""
    common = f"<ToUserName>{to}</ToUserName><FromUserName>{sender}</FromUserName><CreateTime>1</CreateTime>"
    sealed: str = (crypto or peer()).encrypt_message(f"<xml>{common}{inner}</xml>", "nonce", "1790000000")
    return sealed


def text_reply(text: str, **who: Any) -> str:
    return reply(f"<MsgType>text</MsgType><Content><![CDATA[{text}]]></Content>", **who)


@dataclass
class App:
    """The app behind the callback URL; each test says how it answers."""

    answer: Answer
    received: list[tuple[str, bytes]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.received.append((request.query_string, await request.read()))
        return await self.answer(request)

    def message_ids(self) -> list[str]:
        return [opened(query, body)["MsgId"] for query, body in self.received]


@dataclass
class World:
    platform: SimulatedPlatform
    app: App
    clock: Clock

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        return await self.platform.call(method, path, body)

    async def write(self, text: str = "hello", **fields: Any) -> Any:
        message = {"text": text} if "type" not in fields else {}
        return await self.call("POST", f"{CHAT}?wait=1", {**message, **fields})

    async def rules(self, **rules: Any) -> None:
        await self.call("PUT", "/simulator/rules", {**RULES, **rules})

    async def faults(self, **faults: Any) -> None:
        await self.call("PUT", "/simulator/faults", faults)

    async def books(self) -> Any:
        return await self.call("GET", "/simulator/books")

    async def chat(self, member: str = MEMBER) -> Any:
        return await self.call("GET", f"/simulator/members/{member}/messages")

    async def shown(self, member: str = MEMBER) -> list[str]:
        return [entry["text"] for entry in await self.chat(member) if entry["direction"] == "outbound"]

    async def gettoken(self, secret: str = ACCOUNT["secret"], corpid: str = ACCOUNT["corpid"]) -> Any:
        return await self.call("GET", f"/cgi-bin/gettoken?corpid={corpid}&corpsecret={secret}")

    async def api(self, interface: str, body: Any = None, method: str = "POST", query: str = "") -> Any:
        token = (await self.gettoken())["access_token"]
        return await self.call(method, f"/cgi-bin/{interface}?access_token={token}{query}", body)

    async def send(self, text: str = "hi", **fields: Any) -> Any:
        return await self.api("message/send", {**text_message(text), **fields})


def text_message(text: str) -> dict[str, Any]:
    return {"touser": MEMBER, "msgtype": "text", "agentid": ACCOUNT["agentid"], "text": {"content": text}}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async def acknowledge(_: web.Request) -> web.Response:
        return web.Response()

    app, clock = App(acknowledge), Clock()
    application = web.Application()
    application.router.add_route("*", "/wecom", app.handle)
    async with AsyncExitStack() as stack:
        app_url = await stack.enter_async_context(served(application))
        simulator = Simulator(ACCOUNT, clock)
        url = await stack.enter_async_context(served(simulator.application(f"{app_url}/wecom")))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        world = World(SimulatedPlatform(url, ACCOUNT, simulator, http), app, clock)
        await world.rules()
        yield world


def answering(status: int = 200, body: str = "") -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    return answer


async def never(_: web.Request) -> web.Response:
    await asyncio.sleep(5)
    return web.Response()


async def breaking(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def in_turn(*answers: Answer) -> Answer:
    """Each call is answered by the next one."""
    waiting = iter(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await next(waiting)(request)

    return answer


# --- Envelope ---------------------------------------------------------------------------------------------

OFFICIAL: dict[str, Any] = {
    "token": "QDG6eK",
    "aeskey": "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C",
    "corpid": "wx5823bf96d3bd56c7",
}
ECHO = "P9nAzCzyDtyTWESHep1vC5X9xho/qYX3Zpb4yKa9SKld1DsH3Iyt3tP3zNdtp+4RPcs8TgAE7OaBO+FZXvnaqQ=="


def test_the_official_example_is_read() -> None:
    """The vendor's example of a URL check (90968) has the right signature and decrypts to its echo."""
    envelope = Envelope(**OFFICIAL)
    envelope.verify("5c45ff5e21c57e6ad56bac8758b79b1d9ac89fd3", "1409659589", "263014780", ECHO)
    assert envelope.decrypt(ECHO) == b"1616140317555161061"


def test_the_official_example_is_written() -> None:
    """With the same random bytes the same ciphertext comes out as in the vendor's example."""
    assert Envelope(**OFFICIAL, random=lambda size: b"c41b64491c2468d0"[:size]).encrypt(b"1616140317555161061") == ECHO


@pytest.mark.parametrize("aeskey", ["", "a" * 42, "a" * 44, "a" * 42 + "!", "密" * 43], ids=range(5))
def test_an_aeskey_that_is_none_is_refused(aeskey: str) -> None:
    """A wrong EncodingAESKey is told when the simulator is made, not when the first message fails."""
    with pytest.raises(ValueError, match="aeskey is not 43 characters"):
        Simulator({**ACCOUNT, "aeskey": aeskey})


def test_credentials_are_settings_of_the_channel() -> None:
    """A new account fits all parts of the channel's settings, and no two are the same."""
    manifest = plugin.channels()["wecom"]
    account = Simulator.credentials()
    for part in (manifest.crypto, manifest.codec, manifest.sender):
        names = {field.encode_name for field in msgspec.structs.fields(part)}
        msgspec.convert(
            {name: value for name, value in account.items() if name in names}, part, dec_hook=lambda t, v: t(v)
        )
    assert set(account) <= manifest.settings()
    assert account["secret"] != Simulator.credentials()["secret"]


XML_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=200)


@given(text=XML_TEXT)
@settings(max_examples=100, deadline=None)
def test_wechatpy_opens_our_callbacks(text: str) -> None:
    """Any text arrives at an independent implementation as it was written."""
    callback, message_id = Simulator(ACCOUNT).callback(text, MEMBER)
    fields = opened(callback.query, callback.body)
    assert (fields["Content"] or "").strip() == text.strip()
    assert (fields["MsgId"], fields["FromUserName"]) == (message_id, MEMBER)
    assert (fields["ToUserName"], fields["AgentID"]) == (ACCOUNT["corpid"], str(ACCOUNT["agentid"]))


@given(text=XML_TEXT)
@settings(max_examples=100, deadline=None)
def test_we_open_the_replies_of_wechatpy(text: str) -> None:
    """Any text that an independent implementation seals is read as it was written."""
    assert Simulator(ACCOUNT).read_reply(text_reply(text.replace("]]>", "")).encode()) == text.replace("]]>", "")


@given(
    st.dictionaries(
        st.text("abcXYZ", min_size=1), st.one_of(XML_TEXT, st.lists(XML_TEXT, min_size=2, max_size=3)), min_size=1
    )
)
@settings(max_examples=100, deadline=None)
def test_xml_comes_back_as_it_was_written(fields: dict[str, Any]) -> None:
    """What is written is read again, "]]>" and all."""
    assert xml.read(xml.write(fields).encode()) == fields


def test_characters_that_xml_cannot_hold_are_left_out() -> None:
    """A member's control characters must not make the platform send a broken document."""
    assert xml.read(xml.write({"Content": "a\x00b\x0bc\ud800d"}).encode()) == {"Content": "abcd"}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"plain",
        b"<html><p>hi</p></html>",
        b"<xml>words</xml>",
        b"<xml><a>",
        b"<xml><a>\xff</a></xml>",
        b'<!DOCTYPE xml [<!ENTITY a "b">]><xml><a>&a;</a></xml>',
        b"<xml>" + b"<a>" * 50 + b"</a>" * 50 + b"</xml>",
    ],
)
def test_a_document_that_is_no_reply_is_refused(document: bytes) -> None:
    """Broken, foreign and dangerous documents are one kind of error."""
    with pytest.raises(ValueError, match="XML"):
        xml.read(document)


# --- Replies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"  \n", b"success"])
def test_an_answer_may_say_nothing(body: bytes) -> None:
    """An empty body, and the word that many apps send, only acknowledge."""
    assert Simulator(ACCOUNT).read_reply(body) is None


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("<MsgType>image</MsgType><Image><MediaId>m1</MediaId></Image>", "[image]"),
        ("<MsgType>voice</MsgType><Voice><MediaId>m1</MediaId></Voice>", "[voice]"),
        ("<MsgType>video</MsgType><Video><MediaId>m1</MediaId><Title>t</Title></Video>", "[video]"),
        (
            "<MsgType>news</MsgType><ArticleCount>2</ArticleCount><Articles><item><Title>one</Title><Url>u</Url></item>"
            "<item><Title>two</Title><Url>u</Url></item></Articles>",
            "[news] one; two",
        ),
        ("<MsgType>update_button</MsgType><Button><ReplaceName>done</ReplaceName></Button>", "[update_button] done"),
        (
            "<MsgType>update_template_card</MsgType><TemplateCard><CardType>text_notice</CardType>"
            "<MainTitle><Title>approved</Title></MainTitle></TemplateCard>",
            "[update_template_card] approved",
        ),
    ],
)
def test_replies_of_other_kinds_are_described(inner: str, said: str) -> None:
    """Every kind of passive reply (90241) is read."""
    assert Simulator(ACCOUNT).read_reply(reply(inner).encode()) == said


def test_a_long_reply_is_cut_between_characters() -> None:
    """The platform shows 2048 bytes of a text and no half characters."""
    assert Simulator(ACCOUNT).read_reply(text_reply("好" * 800).encode()) == "好" * 682


def forged() -> list[Any]:
    stranger = WeChatCrypto("other", ACCOUNT["aeskey"], ACCOUNT["corpid"])
    other_key = WeChatCrypto(ACCOUNT["token"], "b" * 43, ACCOUNT["corpid"])
    other_company = WeChatCrypto(ACCOUNT["token"], ACCOUNT["aeskey"], "ww0123456789abcdef")
    return [
        pytest.param(text_reply("hi", crypto=stranger), "signature", id="another token"),
        pytest.param(text_reply("hi", crypto=other_key), "does not decrypt|another CorpID|length", id="another key"),
        pytest.param(text_reply("hi", crypto=other_company), "another CorpID", id="another company"),
        pytest.param(text_reply("hi", sender="ww0123456789abcdef"), "FromUserName", id="another sender"),
        pytest.param(
            re.sub("<Encrypt>.*</Encrypt>", "", text_reply("hi"), flags=re.DOTALL), "needs Encrypt", id="bare"
        ),
        pytest.param(reply("<MsgType>markdown</MsgType>"), "'markdown'", id="a kind that cannot be answered with"),
        pytest.param(reply("<MsgType>text</MsgType>"), "lacks 'Content'", id="no content"),
        pytest.param("pong", "not XML", id="plain text"),
        pytest.param('{"text": "pong"}', "not XML", id="JSON"),
    ]


@pytest.mark.parametrize(("body", "problem"), forged())
def test_a_forged_reply_is_refused(body: str, problem: str) -> None:
    """Whatever the app did not seal as it must is an error that says why."""
    with pytest.raises(ValueError, match=problem):
        Simulator(ACCOUNT).read_reply(body.encode())


def test_a_reply_with_any_byte_changed_is_never_read() -> None:
    """No change of a single character of the ciphertext or signature goes unnoticed."""
    sealed = text_reply("transfer 100")
    for name in ("Encrypt", "MsgSignature", "Nonce"):
        found = re.search(rf"<{name}><!\[CDATA\[(.*?)\]\]>", sealed)
        assert found
        for position in range(found.start(1), found.end(1)):
            changed = sealed[:position] + ("A" if sealed[position] != "A" else "B") + sealed[position + 1 :]
            with pytest.raises(ValueError, match=r"signature"):
                Simulator(ACCOUNT).read_reply(changed.encode())


# --- Callbacks --------------------------------------------------------------------------------------------


async def test_a_passive_reply_is_shown(world: World) -> None:
    """What the app seals into its HTTP answer appears in the member's chat, tied to the question."""
    world.app.answer = answering(body=text_reply("pong"))
    outcome = await world.write("ping")
    assert (outcome["state"], outcome["attempts"], outcome["reply"]) == ("answered", 1, "pong")
    question, answer = await world.chat()
    assert (question["text"], question["message_id"]) == ("ping", outcome["message_id"])
    assert (answer["text"], answer["way"], answer["in_reply_to"]) == ("pong", "passive", question["id"])


async def test_an_empty_answer_acknowledges(world: World) -> None:
    """HTTP 200 without a body is all that the platform needs."""
    outcome = await world.write()
    assert (outcome["state"], outcome["reply"], outcome["problem"]) == ("acknowledged", None, "")
    assert await world.shown() == []


async def test_without_waiting_the_id_comes_at_once(world: World) -> None:
    """A member does not wait for the app: the message has an id before it has an answer."""
    world.app.answer = never
    started = await world.call("POST", CHAT, {"text": "hello"})
    assert started["message_id"].isdigit()
    assert (await world.chat())[0]["state"] == "sending"


@pytest.mark.parametrize("status", [201, 302, 400, 404, 500, 503])
async def test_a_failure_status_loses_the_message(world: World, status: int) -> None:
    """By the stricter reading a callback that was answered with another status is not sent again."""
    world.app.answer = answering(status)
    outcome = await world.write()
    assert (outcome["state"], outcome["attempts"]) == ("lost", 1)
    assert outcome["problem"] == f"answered with HTTP {status}"
    assert (await world.books())["lost"] == 1


async def test_redirects_are_not_followed(world: World) -> None:
    """A callback goes to the URL that was saved, and nowhere else."""

    async def elsewhere(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": str(request.url)})

    world.app.answer = in_turn(elsewhere, answering())
    assert (await world.write())["problem"] == "answered with HTTP 307"


async def test_a_failure_status_may_be_retried(world: World) -> None:
    """By the other reading it is sent three times."""
    await world.rules(retry_every_failure=True)
    world.app.answer = answering(500)
    assert (await world.write())["attempts"] == 3
    books = await world.books()
    assert (books["sent"], books["retried"], books["lost"]) == (1, 2, 1)


@pytest.mark.parametrize(
    ("failing", "limit_s", "problem"), [(never, 0.1, "no answer within 0.1 s"), (breaking, 5, "the connection broke")]
)
async def test_no_answer_is_retried_twice(world: World, failing: Answer, limit_s: float, problem: str) -> None:
    """An app that hangs or breaks the connection gets the same request three times, then it is lost."""
    await world.rules(reply_limit_s=limit_s)
    world.app.answer = failing
    outcome = await world.write()
    assert (outcome["state"], outcome["attempts"]) == ("lost", 3)
    assert problem in outcome["problem"]
    assert len(world.app.received) == 3
    assert len(set(world.app.received)) == 1


async def test_a_retry_can_succeed(world: World) -> None:
    """An app that comes back in time loses nothing."""
    world.app.answer = in_turn(breaking, answering(body=text_reply("back")))
    outcome = await world.write()
    assert (outcome["state"], outcome["attempts"], outcome["reply"]) == ("answered", 2, "back")
    assert outcome["problem"] == ""
    books = await world.books()
    assert (books["sent"], books["acknowledged"], books["retried"], books["lost"]) == (1, 1, 1, 0)


async def test_an_app_that_is_not_there_is_named() -> None:
    """The chat tells where nobody takes connections."""
    async with simulated("wecom", "http://127.0.0.1:1/wecom") as platform:
        await platform.call("PUT", "/simulator/rules", RULES)
        outcome = await platform.call("POST", f"{CHAT}?wait=1", {"text": "hello"})
    assert outcome["problem"] == "no answer: 127.0.0.1:1 does not take connections"


async def test_a_forged_reply_is_recorded(world: World) -> None:
    """The member sees nothing of it, the books and the chat tell why."""
    world.app.answer = answering(body="pong")
    outcome = await world.write()
    assert outcome["state"] == "forged"
    assert "not XML" in outcome["problem"]
    assert (await world.books())["forged"] == 1
    assert await world.shown() == []


async def test_a_reply_to_somebody_else_is_not_shown(world: World) -> None:
    """An answer that names another member is no answer to this one."""
    world.app.answer = answering(body=text_reply("secret", to="lisi"))
    assert (await world.write())["state"] == "forged"
    assert await world.shown() == []


async def test_a_reply_to_an_event_that_takes_none_is_not_shown(world: World) -> None:
    """The platform ignores replies to events whose page mentions none."""
    world.app.answer = answering(body=text_reply("bye"))
    outcome = await world.write(type="unsubscribe")
    assert (outcome["state"], outcome["reply"]) == ("acknowledged", None)
    assert "takes no reply to unsubscribe" in outcome["problem"]


@pytest.mark.parametrize("name", list(KINDS))
async def test_every_kind_can_be_sent(world: World, name: str) -> None:
    """Each message and event of the documentation arrives as XML with its fields."""
    kind = KINDS[name]
    await (world.write("hello") if name == "text" else world.write(type=name))
    fields = opened(*world.app.received[0])
    assert fields["MsgType"] == ("event" if kind.event else name)
    assert fields.get("Event") == (name if kind.event else None)
    assert kind.fields.keys() <= fields.keys()
    assert ("MsgId" in fields) == (not kind.event)
    assert ("AgentID" in fields) == kind.from_app


async def test_a_picture_of_a_member_can_be_fetched(world: World) -> None:
    """The MediaId in a callback is one that media/get knows, and PicUrl shows the same bytes."""
    await world.write(type="image")
    fields = opened(*world.app.received[0])
    token = (await world.gettoken())["access_token"]
    media = f"{world.platform.url}/cgi-bin/media/get?access_token={token}&media_id={fields['MediaId']}"
    async with world.platform.http.get(media) as by_id, world.platform.http.get(fields["PicUrl"]) as by_url:
        data = await by_id.read()
        assert by_id.content_type == "image/png"
        assert data.startswith(b"\x89PNG")
        assert data == await by_url.read()


async def test_a_message_can_come_again_later(world: World) -> None:
    """A given MsgId is used, so that a duplicate after success can be played."""
    first = await world.write("hello")
    await world.write("hello", message_id=first["message_id"])
    assert world.app.message_ids() == [first["message_id"]] * 2


async def test_a_message_can_come_twice_at_once(world: World) -> None:
    """Both copies have one MsgId, and the member sees one answer."""
    await world.faults(twice=True)
    world.app.answer = answering(body=text_reply("once"))
    await world.write()
    assert len(world.app.received) == 2
    assert len(set(world.app.message_ids())) == 1
    assert await world.shown() == ["once"]


async def test_messages_can_overtake_each_other(world: World) -> None:
    """Out of order means that the second arrives before the first, and both arrive."""
    await world.faults(out_of_order=True)
    await world.call("POST", CHAT, {"text": "first"})
    await world.write("second")
    async with asyncio.timeout(5):
        while len(world.app.received) < 2:
            await asyncio.sleep(0.01)
    assert [opened(*received)["Content"] for received in world.app.received] == ["second", "first"]


async def test_a_wrong_signature_can_be_sent(world: World) -> None:
    """An independent implementation refuses it as such."""
    await world.faults(wrong_signature=True)
    await world.write()
    with pytest.raises(InvalidSignatureException):
        opened(*world.app.received[0])


async def test_a_wrong_receiver_can_be_sent(world: World) -> None:
    """An independent implementation refuses it as such."""
    await world.faults(wrong_receiver=True)
    await world.write()
    with pytest.raises(InvalidCorpIdException):
        opened(*world.app.received[0])


async def test_an_old_timestamp_can_be_sent(world: World) -> None:
    """A replay is well signed and old."""
    await world.faults(age_s=3600)
    await world.write()
    query, body = world.app.received[0]
    assert int(dict(parse_qsl(query))["timestamp"]) == world.clock.now - 3600
    assert opened(query, body)["Content"] == "hello"


# --- The check of the URL ---------------------------------------------------------------------------------


async def echo(request: web.Request) -> web.Response:
    values = request.query
    text = peer().check_signature(values["msg_signature"], values["timestamp"], values["nonce"], values["echostr"])
    return web.Response(text=text)


async def test_a_url_that_echoes_passes(world: World) -> None:
    """The decrypted echostr and nothing else is what the platform wants when the URL is saved."""
    world.app.answer = echo
    assert await world.call("POST", "/simulator/actions/check-url") == {"passed": True, "problem": ""}


async def quoted(request: web.Request) -> web.Response:
    return web.json_response((await echo(request)).text)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (quoted, "no quotes, BOM, line break or JSON around it"),
        (answering(body="ok"), "did not answer with the decrypted echostr"),
        (answering(500), "HTTP 500 instead of 200"),
        (breaking, "the connection broke"),
    ],
)
async def test_a_url_that_does_not_echo_fails(world: World, answer: Answer, problem: str) -> None:
    """Each mistake that people make with the URL is named."""
    world.app.answer = answer
    result = await world.call("POST", "/simulator/actions/check-url")
    assert not result["passed"]
    assert problem in result["problem"]


async def test_a_url_that_is_late_fails(world: World) -> None:
    """The right answer after the limit is no answer."""
    await world.rules(check_limit_s=0.1)
    world.app.answer = never
    result = await world.call("POST", "/simulator/actions/check-url")
    assert result == {"passed": False, "problem": "the URL did not answer within 0.1 s"}


async def test_another_key_can_be_saved(world: World) -> None:
    """From then on callbacks are sealed with it; an answer is read with the key of its callback."""
    saved = {"token": "another", "aeskey": "A" * 43}
    new, old = peer({**ACCOUNT, **saved}), peer()

    async def echo_new(request: web.Request) -> web.Response:
        values = request.query
        text = new.check_signature(values["msg_signature"], values["timestamp"], values["nonce"], values["echostr"])
        return web.Response(text=text)

    async def slow(_: web.Request) -> web.Response:
        arrived.set()
        await may_answer.wait()
        return web.Response(text=text_reply("in time", crypto=old))

    arrived, may_answer = asyncio.Event(), asyncio.Event()
    world.app.answer = slow
    begun = asyncio.create_task(world.write())
    await arrived.wait()
    world.app.answer = echo_new
    assert await world.call("PUT", "/simulator/key", saved) == {"passed": True, "problem": ""}
    may_answer.set()
    assert (await begun)["reply"] == "in time"
    world.app.answer = answering(body=text_reply("hello", crypto=new))
    assert (await world.write())["reply"] == "hello"


async def test_a_key_that_the_app_does_not_know_is_not_saved(world: World) -> None:
    """The old one stays in use when the check of the URL fails, or the key is none."""
    world.app.answer = answering(401)
    result = await world.call("PUT", "/simulator/key", {"token": "another", "aeskey": "A" * 43})
    assert (result["passed"], result["problem"]) == (False, "the URL answered with HTTP 401 instead of 200")
    with pytest.raises(AssertionError, match="aeskey"):
        await world.call("PUT", "/simulator/key", {"token": "another", "aeskey": "short"})
    world.app.answer = answering(body=text_reply("hello"))
    assert (await world.write())["reply"] == "hello"


async def test_a_plus_can_turn_into_a_space(world: World) -> None:
    """The classic mistake of a proxy in front: the echostr no longer fits its signature."""
    await world.faults(plus_as_space=True)
    await world.call("POST", "/simulator/actions/check-url")
    values = dict(parse_qsl(world.app.received[0][0]))
    assert " " in values["echostr"]
    with pytest.raises(InvalidSignatureException):
        peer().check_signature(values["msg_signature"], values["timestamp"], values["nonce"], values["echostr"])


# --- Tokens -----------------------------------------------------------------------------------------------


async def test_a_token_lives_two_hours(world: World) -> None:
    """The same token is given while it lives; afterwards it is expired and another one is given."""
    first = await world.gettoken()
    assert (first["errcode"], first["expires_in"]) == (0, 7200)
    world.clock.now += 7199
    again = await world.gettoken()
    assert (again["access_token"], again["expires_in"]) == (first["access_token"], 1)
    world.clock.now += 1
    answer = await world.call("GET", f"/cgi-bin/getcallbackip?access_token={first['access_token']}")
    assert answer["errcode"] == 42001
    assert (await world.gettoken())["access_token"] != first["access_token"]


async def test_a_token_can_be_withdrawn(world: World) -> None:
    """A withdrawn token is invalid at once, and the next one is another."""
    token = (await world.gettoken())["access_token"]
    await world.call("POST", "/simulator/actions/withdraw-token")
    answer = await world.call("GET", f"/cgi-bin/getcallbackip?access_token={token}")
    assert answer["errcode"] == 40014
    assert (await world.gettoken())["access_token"] != token


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("corpsecret=x", 41002),
        (f"corpid={ACCOUNT['corpid']}", 41004),
        ("corpid=ww0&corpsecret=x", 40013),
        (f"corpid={ACCOUNT['corpid']}&corpsecret=x", 40001),
    ],
)
async def test_wrong_credentials_have_their_codes(world: World, query: str, code: int) -> None:
    """Each mistake has the vendor's errcode, and errmsg names the caller's address and where to read more."""
    answer = await world.call("GET", f"/cgi-bin/gettoken?{query}")
    assert answer["errcode"] == code
    form = rf".+, hint: \[\d+\], from ip: 127\.0\.0\.1, more info at https://\S+\?e={code}"
    assert re.fullmatch(form, answer["errmsg"])


async def test_wrong_secrets_block_the_address(world: World) -> None:
    """After too many of them even the right secret gets 45009, until an hour is over."""
    await world.rules(wrong_secrets_per_hour=3)
    assert [(await world.gettoken("wrong"))["errcode"] for _ in range(4)] == [40001, 40001, 40001, 45009]
    assert (await world.gettoken())["errcode"] == 45009
    world.clock.now += 3600
    assert (await world.gettoken())["errcode"] == 0


async def test_a_call_without_a_token_is_refused(world: World) -> None:
    """A missing token is told apart from a wrong one."""
    assert (await world.call("POST", "/cgi-bin/message/send", {}))["errcode"] == 41001
    assert (await world.call("POST", "/cgi-bin/message/send?access_token=x", {}))["errcode"] == 40014


# --- Messages ---------------------------------------------------------------------------------------------


async def test_an_active_message_is_shown(world: World) -> None:
    """What the app sends by the API appears in the member's chat under the msgid that the app was told."""
    answer = await world.send("你好")
    (entry,) = await world.chat()
    assert (entry["text"], entry["way"], entry["message_id"]) == ("你好", "active", answer["msgid"])
    assert (await world.books())["answered_actively"] == 1


CARD = {"card_type": "button_interaction", "task_id": "t1", "main_title": {"title": "leave"}}


@pytest.mark.parametrize(
    ("kind", "content", "shown"),
    [
        ("markdown", {"content": "**hi**"}, "**hi**"),
        ("textcard", {"title": "t", "description": "d", "url": "https://example.com"}, "[textcard] t"),
        ("news", {"articles": [{"title": "one"}, {"title": "two"}]}, "[news] one; two"),
        ("mpnews", {"articles": [{"title": "one"}]}, "[mpnews] one"),
        ("template_card", CARD, "[template_card] leave"),
    ],
)
async def test_messages_of_other_kinds_are_shown(world: World, kind: str, content: Any, shown: str) -> None:
    """Every kind that an app may send is taken."""
    answer = await world.send(msgtype=kind, **{kind: content})
    assert answer["errcode"] == 0
    assert ("response_code" in answer) == (kind == "template_card")
    assert await world.shown() == [shown]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"agentid": None}, 40056),
        ({"agentid": str(ACCOUNT["agentid"])}, 40056),
        ({"agentid": 1}, 301002),
        ({"msgtype": "poem"}, 40008),
        ({"msgtype": "markdown"}, 40058),
        ({"text": {"content": ""}}, 44004),
        ({"msgtype": "markdown", "markdown": {"content": "x" * 2049}}, 45002),
        ({"msgtype": "image", "image": {"media_id": "nothing"}}, 40007),
        ({"msgtype": "textcard", "textcard": {"title": "t", "description": "d", "url": "example.com"}}, 40058),
        ({"msgtype": "textcard", "textcard": {"title": "t" * 129, "description": "d", "url": "http://x"}}, 45001),
        ({"msgtype": "news", "news": {"articles": []}}, 40058),
        ({"msgtype": "news", "news": {"articles": [{"title": "x"}] * 9}}, 45008),
        ({"msgtype": "template_card", "template_card": {"card_type": "poem"}}, 40058),
        ({"msgtype": "template_card", "template_card": {**CARD, "task_id": "a b"}}, 40058),
        ({"touser": ""}, 82001),
        ({"touser": ["zhangsan"]}, 40058),
        ({"touser": "|".join(f"m{number}" for number in range(1001))}, 40031),
        ({"touser": "not a member"}, 81013),
        ({"touser": "", "toparty": "7"}, 81013),
    ],
)
async def test_a_wrong_message_has_its_code(world: World, change: dict[str, Any], code: int) -> None:
    """Each mistake in a message has the vendor's errcode and shows nothing."""
    assert (await world.send(**change))["errcode"] == code
    assert await world.shown() == []


async def test_a_body_that_is_no_json_is_refused(world: World) -> None:
    """Anything but a JSON object is a wrong parameter."""
    token = (await world.gettoken())["access_token"]
    for body in (b"{", b"[1]", b"\xff"):
        async with world.platform.http.post(
            f"{world.platform.url}/cgi-bin/message/send?access_token={token}", data=body
        ) as response:
            assert (await response.json())["errcode"] == 40035


async def test_a_long_text_is_cut_without_a_word(world: World) -> None:
    """The platform takes a long text, shows 2048 bytes of it and reports success."""
    assert (await world.send("好" * 800))["errcode"] == 0
    assert await world.shown() == ["好" * 682]


async def test_members_who_do_not_exist_are_listed(world: World) -> None:
    """Those who exist are served, whatever the case of their ids; the others come back in lower case."""
    await world.call("DELETE", "/simulator/members/Lisi")
    answer = await world.send(touser="ZhangSan|LISI|no body")
    assert (answer["errcode"], answer["invaliduser"]) == (0, "lisi|no body")
    assert await world.shown() == ["hi"]


async def test_everyone_is_everyone_known(world: World) -> None:
    """@all reaches those who were heard of and are still here."""
    for member in ("a1", "a2", "gone"):
        await world.call("PUT", f"/simulator/members/{member}")
    await world.call("DELETE", "/simulator/members/gone")
    await world.send(touser="@all")
    assert [await world.shown(member) for member in ("a1", "a2", "gone")] == [["hi"], ["hi"], []]


async def test_the_31st_message_of_a_minute_is_dropped(world: World) -> None:
    """It is accepted like the others and never shown; other members and later minutes are not concerned."""
    answers = [await world.send(str(number)) for number in range(31)]
    assert {answer["errcode"] for answer in answers} == {0}
    assert await world.shown() == [str(number) for number in range(30)]
    assert (await world.books())["dropped_by_quota"] == 1
    await world.send("other", touser="lisi")
    assert await world.shown("lisi") == ["other"]
    world.clock.now += 61
    await world.send("later")
    assert (await world.shown())[-1] == "later"


async def test_the_hour_has_a_quota_too(world: World) -> None:
    """A member is not sent more than the hour's quota even when each minute's is kept."""
    await world.rules(sends_per_hour=40)
    for number in range(41):
        world.clock.now += 10
        await world.send(str(number))
    assert len(await world.shown()) == 40


async def test_the_same_request_is_shown_once(world: World) -> None:
    """With the duplicate check the repetition gets the first answer; after the interval it is shown again."""
    check: dict[str, Any] = {"enable_duplicate_check": 1, "duplicate_check_interval": 60}
    first, second = await world.send(**check), await world.send(**check)
    assert second == first
    assert await world.shown() == ["hi"]
    assert (await world.books())["duplicates_suppressed"] == 1
    world.clock.now += 61
    await world.send(**check)
    assert await world.shown() == ["hi", "hi"]


async def test_without_the_check_duplicates_are_shown(world: World) -> None:
    """Nobody else notices a repetition."""
    await world.send()
    await world.send()
    assert await world.shown() == ["hi", "hi"]


async def test_a_message_can_be_recalled_for_a_day(world: World) -> None:
    """The chat forgets it; after 24 hours, or without the right msgid, it stays."""
    early, late = await world.send("early"), await world.send("late")
    assert (await world.api("message/recall", {"msgid": early["msgid"]}))["errcode"] == 0
    assert [entry["state"] for entry in await world.chat()] == ["recalled", "shown"]
    world.clock.now += 24 * 3600
    assert (await world.api("message/recall", {"msgid": late["msgid"]}))["errcode"] == 40058
    assert (await world.api("message/recall", {"msgid": "x"}))["errcode"] == 40058
    assert await world.shown() == ["", "late"]


async def test_a_card_is_updated_once(world: World) -> None:
    """A response_code changes the card, and then it is used up."""
    code = (await world.send(msgtype="template_card", template_card=CARD))["response_code"]
    update = {"userids": [MEMBER, "no body"], "agentid": ACCOUNT["agentid"], "response_code": code}
    answer = await world.api("message/update_template_card", {**update, "button": {"replace_name": "done"}})
    assert (answer["errcode"], answer["invaliduser"]) == (0, ["no body"])
    assert (await world.chat())[0]["fields"]["replace_name"] == "done"
    answer = await world.api("message/update_template_card", {**update, "button": {"replace_name": "again"}})
    assert answer["errcode"] == 42014


async def test_a_click_on_a_card_can_be_answered_with_an_update(world: World) -> None:
    """The passive update changes the card of the task, and the click brings a response_code of its own."""
    await world.send(msgtype="template_card", template_card=CARD)
    world.app.answer = answering(
        body=reply(
            "<MsgType>update_template_card</MsgType><TemplateCard><CardType>text_notice</CardType>"
            "<MainTitle><Title>approved</Title></MainTitle></TemplateCard>"
        )
    )
    assert (await world.write(type="template_card_event", TaskId="t1", EventKey="ok"))["state"] == "answered"
    assert (await world.chat())[0]["fields"]["main_title"] == {"title": "approved"}
    code = opened(*world.app.received[0])["ResponseCode"]
    update = {"atall": 1, "agentid": ACCOUNT["agentid"], "response_code": code, "template_card": CARD}
    assert (await world.api("message/update_template_card", update))["errcode"] == 0
    assert (await world.chat())[0]["fields"]["main_title"] == {"title": "leave"}


# --- Files and small questions ----------------------------------------------------------------------------


async def upload(world: World, kind: str, data: bytes) -> Any:
    token = (await world.gettoken())["access_token"]
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("media", data, filename="报表.pdf", content_type="application/pdf")
    url = f"{world.platform.url}/cgi-bin/media/upload?access_token={token}&type={kind}"
    async with world.platform.http.post(url, data=form) as response:
        return await response.json()


async def test_a_file_is_kept_for_three_days(world: World) -> None:
    """An uploaded file can be sent and fetched with its name and type, and then it is gone."""
    uploaded = await upload(world, "file", b"content")
    assert (uploaded["errcode"], uploaded["type"]) == (0, "file")
    assert (await world.send(msgtype="file", file={"media_id": uploaded["media_id"]}))["errcode"] == 0
    query = f"&media_id={uploaded['media_id']}"
    token = (await world.gettoken())["access_token"]
    url = f"{world.platform.url}/cgi-bin/media/get?access_token={token}{query}"
    async with world.platform.http.get(url) as response:
        assert (await response.read(), response.content_type) == (b"content", "application/pdf")
        assert response.content_disposition is not None
        assert response.content_disposition.filename == "报表.pdf"
    world.clock.now += 3 * 24 * 3600
    assert (await world.api("media/get", method="GET", query=query))["errcode"] == 40007


@pytest.mark.parametrize(
    ("kind", "size", "code"),
    [("file", 5, 40006), ("file", 6, 0), ("voice", 2 * 2**20 + 1, 45001), ("poem", 100, 40005)],
)
async def test_files_have_limits(world: World, kind: str, size: int, code: int) -> None:
    """Too small, too large and unknown have the vendor's codes."""
    assert (await upload(world, kind, bytes(size)))["errcode"] == code


async def test_an_upload_without_a_file_is_refused(world: World) -> None:
    """A call without the multipart field is answered, not failed."""
    assert (await world.api("media/upload", {}))["errcode"] == 44001


async def test_small_questions_are_answered(world: World) -> None:
    """The address lists and a member's entry, with the code of a member who is not there."""
    assert (await world.api("getcallbackip", method="GET"))["ip_list"] == ["127.0.0.1"]
    assert (await world.api("get_api_domain_ip", method="GET"))["ip_list"] == ["127.0.0.1"]
    assert (await world.api("user/get", method="GET", query="&userid=ZhangSan"))["userid"] == "ZhangSan"
    assert (await world.api("user/get", method="GET", query="&userid=no%20body"))["errcode"] == 60111


async def test_the_company_has_departments(world: World) -> None:
    """Members move between them; the list can be asked for from one downwards."""

    async def listed(query: str = "") -> list[int]:
        answer = await world.api("department/simplelist", method="GET", query=query)
        return [one["id"] for one in answer["department_id"]]

    assert await listed() == [1, 2, 3, 4]
    assert await listed("&id=2") == [2, 4]
    assert (await world.api("department/simplelist", method="GET", query="&id=9"))["errcode"] == 60003
    assert await world.call("PUT", "/simulator/members/lisi", {"departments": [2, 3]}) == {"departments": [2, 3]}
    assert await world.call("PUT", "/simulator/members/lisi") == {"departments": [2, 3]}
    assert (await world.api("user/get", method="GET", query="&userid=lisi"))["department"] == [2, 3]
    with pytest.raises(AssertionError, match="departments \\[9\\] are not in the rules"):
        await world.call("PUT", "/simulator/members/lisi", {"departments": [9]})


# --- Faults of the API ------------------------------------------------------------------------------------


async def test_an_errcode_can_be_given_to_the_next_calls(world: World) -> None:
    """So many calls of one interface get it, and then all is well."""
    await world.faults(only="message/send", error_code=-1, error_calls=2)
    assert [(await world.send())["errcode"] for _ in range(3)] == [-1, -1, 0]
    assert (await world.call("GET", "/simulator/faults"))["error_calls"] == 0


async def test_calls_can_fail_with_a_status(world: World) -> None:
    """Like a proxy in front of a platform that is down."""
    await world.faults(http_status=502)
    async with world.platform.http.get(f"{world.platform.url}/cgi-bin/gettoken") as response:
        assert response.status == 502


async def test_calls_can_be_limited(world: World) -> None:
    """More calls of one interface than allowed get 45009 for the rest of the minute."""
    await world.gettoken()
    await world.faults(only="message/send", calls_per_minute=2)
    assert [(await world.send())["errcode"] for _ in range(3)] == [0, 0, 45009]
    world.clock.now += 60
    assert (await world.send())["errcode"] == 0


async def test_calls_hang_until_the_fault_ends(world: World) -> None:
    """A hanging call gets its answer when the platform comes back."""
    await world.faults(hang=True)
    call = asyncio.create_task(world.gettoken())
    done, _ = await asyncio.wait([call], timeout=0.1)
    assert not done
    await world.faults()
    assert (await call)["errcode"] == 0


async def test_a_call_that_was_given_up_is_not_carried_out(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """When the platform comes back, nobody's message of earlier appears, and that is no error."""
    token = (await world.gettoken())["access_token"]
    await world.faults(hang=True)
    with pytest.raises(TimeoutError):
        await world.platform.http.post(
            f"{world.platform.url}/cgi-bin/message/send?access_token={token}",
            json=text_message("too late"),
            timeout=aiohttp.ClientTimeout(total=0.1),
        )
    await world.books()  # the platform has seen by now that the caller is gone
    await world.faults()
    await world.send("in time")
    assert await world.shown() == ["in time"]
    assert caplog.records == []


@pytest.mark.parametrize(("when", "shown"), [("before", []), ("after", ["hi"])])
async def test_the_connection_can_break(world: World, when: str, shown: list[str]) -> None:
    """The caller cannot tell whether the message was sent; the member's chat can."""
    token = (await world.gettoken())["access_token"]
    await world.faults(drop_connection=when)
    with pytest.raises(aiohttp.ClientConnectionError):
        await world.call("POST", f"/cgi-bin/message/send?access_token={token}", text_message("hi"))
    assert await world.shown() == shown


async def test_the_books_add_up(world: World) -> None:
    """Every callback that was sent is acknowledged, lost or forged."""
    world.app.answer = in_turn(
        answering(), answering(body=text_reply("hi")), answering(500), answering(body="hi"), breaking, answering()
    )
    for _ in range(5):
        await world.write()
    books = await world.books()
    assert books["sent"] == 5
    assert (books["acknowledged"], books["lost"], books["forged"]) == (3, 1, 1)
    assert (books["answered_passively"], books["retried"]) == (1, 1)


# --- The control API --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "problem"),
    [
        ("POST", CHAT, "{", "not what is expected"),
        ("POST", CHAT, "[]", "Expected `object`"),
        ("POST", CHAT, "{}", 'say what the member writes: {"text": "…"}'),
        ("POST", CHAT, '{"type": "poem"}', "type 'poem' is not known: it is one of text, image"),
        ("POST", CHAT, '{"type": 1}', "type 1 is not known"),
        ("POST", CHAT, '{"text": 1}', "'Content' has the wrong form"),
        ("POST", CHAT, '{"type": "location", "Place": "x"}', "'Place' is not a field of 'location'"),
        ("POST", CHAT, '{"type": "scancode_push", "ScanCodeInfo": "x"}', "'ScanCodeInfo' has the wrong form"),
        ("POST", CHAT, '{"text": "hi", "message_id": "abc"}', "message_id is a string of digits"),
        ("POST", CHAT, '{"type": "subscribe", "message_id": "1"}', "only messages have one"),
        ("POST", "/simulator/members/no%20body/messages", '{"text": "hi"}', "cannot be a member's id"),
        ("GET", f"{CHAT}?after=x", "", "is not a revision"),
        ("PUT", "/simulator/faults", '{"slow": true}', "unknown field `slow`"),
        ("PUT", "/simulator/faults", '{"latency_ms": -1}', "latency_ms"),
        ("PUT", "/simulator/faults", '{"http_status": 200}', "http_status is a failure"),
        ("PUT", "/simulator/faults", '{"drop_connection": "maybe"}', "drop_connection"),
        ("PUT", "/simulator/rules", '{"attempts": 0}', "attempts"),
        ("POST", "/simulator/media?type=poem", "123456", "invalid type"),
    ],
)
async def test_a_wrong_request_is_explained(world: World, method: str, path: str, body: str, problem: str) -> None:
    """The answer is 400 and says what is wrong."""
    async with world.platform.http.request(method, world.platform.url + path, data=body) as response:
        assert response.status == 400
        assert problem in (await response.json())["error"]
    assert world.app.received == []


async def test_who_left_cannot_write(world: World) -> None:
    """A member who left the company is told so, and can come back."""
    await world.call("DELETE", f"/simulator/members/{MEMBER}")
    async with world.platform.http.post(world.platform.url + CHAT, json={"text": "hi"}) as response:
        assert "has left the company" in (await response.json())["error"]
    await world.call("PUT", f"/simulator/members/{MEMBER}")
    assert (await world.write())["state"] == "acknowledged"
    assert await world.call("GET", "/simulator/members") == [MEMBER]


async def test_the_account_shows_no_secret(world: World) -> None:
    """What an administrator sees does not let anyone play the platform."""
    account = await world.call("GET", "/simulator/account")
    assert set(account) == {"corpid", "agentid", "callback_url"}
    assert not {ACCOUNT["secret"], ACCOUNT["token"], ACCOUNT["aeskey"]} & {str(value) for value in account.values()}


async def test_only_what_is_new_is_told(world: World) -> None:
    """A reader who names the revision that it has seen gets the entries that changed since."""
    await world.write("first")
    seen = max(entry["revision"] for entry in await world.chat())
    await world.write("second")
    changed = await world.call("GET", f"{CHAT}?after={seen}")
    assert [entry["text"] for entry in changed] == ["second"]


async def test_changes_come_by_themselves(world: World) -> None:
    """A page that watches a chat is told what happens there, and the books."""
    async with world.platform.http.get(f"{world.platform.url}/simulator/members/{MEMBER}/changes") as response:
        assert response.content_type == "text/event-stream"
        assert (await event(response))["entries"] == []
        await world.send("news")
        news = await event(response)
    assert [entry["text"] for entry in news["entries"]] == ["news"]
    assert news["books"]["answered_actively"] == 1


async def event(response: aiohttp.ClientResponse) -> Any:
    line = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5)
    return json.loads(line.removeprefix(b"data: "))


# --- The page ---------------------------------------------------------------------------------------------


class References(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.unlabelled: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "action") and value]


async def test_the_page_loads_nothing_from_elsewhere(world: World) -> None:
    """Everything it needs comes from the simulator, and the browser is told to accept nothing else."""
    async with world.platform.http.get(world.platform.url + "/") as response:
        page = References()
        page.feed(await response.text())
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    imports = [
        path
        for script in PAGE.glob("*.js")
        for path in re.findall(r'^import .* from "([^"]+)";$', script.read_text("utf-8"), re.MULTILINE)
    ]
    assert page.found
    assert imports
    for path in {*page.found, *imports}:
        assert path.startswith("/page/")
        async with world.platform.http.get(world.platform.url + path) as response:
            assert response.status == 200, path
    styles = "".join(path.read_text("utf-8") for path in PAGE.glob("*.css"))
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_page_speaks_both_languages() -> None:
    """Each word of the page exists in English and Chinese, and each word that it asks for exists."""
    english, chinese = (PAGE / "texts.js").read_text("utf-8").split('"zh-CN": {')
    names = [set(re.findall(r"^    (\w+):", part, re.MULTILINE)) for part in (english, chinese)]
    assert names[0] == names[1]
    sources = [path.read_text("utf-8") for path in PAGE.iterdir() if path.suffix in (".html", ".js")]
    wanted = {
        name
        for source in sources
        for pair in re.findall(r'data-(?:text|label|placeholder)="(\w+)"|[^/]texts\.(\w+)', source)
        for name in pair
        if name
    }
    assert wanted <= names[0]
