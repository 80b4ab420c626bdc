"""The gateway's HTTP face over real services: what it answers, by Flask and past it."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from assistant import plugin
from assistant.api.crypto.v1 import crypto_pb2
from assistant.plugin import Callback
from assistant.policy import Policy
from assistant.server import Call, Server
from assistant.settings import Address, Names, Settings, Source, fields
from gateway.__main__ import Worker
from gateway.app import create_app
from gateway.connection import Connection
from gateway.loop import FlaskOnLoop
from gateway.settings import Configuration, GatewaySettings, NlpSettings, SkillsSettings

if TYPE_CHECKING:
    from conftest import House

CHANNEL = "loopback"
IDLE_S = 1
"""How long a connection may be idle here."""


class Crypto:
    """Opens and seals for the account."""

    def __init__(self, facet: plugin.Crypto) -> None:
        self._facet = facet
        self._key = facet.key(facet.configured_material())

    def OpenCallback(self, request: crypto_pb2.OpenCallbackRequest, call: Call) -> crypto_pb2.OpenCallbackResponse:
        callback = Callback(request.method, request.query, request.headers, request.body)
        opened = self._facet.open(callback, {"configured": self._key}, time.time(), 300.0)
        return crypto_pb2.OpenCallbackResponse(payload=opened.payload, key_id=opened.key_id)

    def SealReply(self, request: crypto_pb2.SealReplyRequest, call: Call) -> crypto_pb2.SealReplyResponse:
        sealed = self._facet.seal(request.payload, request.query, self._key, time.time())
        return crypto_pb2.SealReplyResponse(body=sealed.body, content_type=sealed.content_type)


class Client:
    """Speaks HTTP/1.1 to a gateway's worker, over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, method: str, path: str, callback: Callback) -> tuple[int, Mapping[bytes, bytes], bytes]:
        """Status, headers and body of the answer."""
        self.writer.write(request(method, path, callback))
        return await self.receive()

    async def receive(self) -> tuple[int, Mapping[bytes, bytes], bytes]:
        """The next answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        return int(first.split()[1]), headers, await self.reader.readexactly(int(headers[b"content-length"]))


def request(method: str, path: str, callback: Callback) -> bytes:
    """As it goes over the wire."""
    headers = {"host": "test", **callback.headers, "content-length": str(len(callback.body))}
    lines = [f"{method} {path}?{callback.query} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + callback.body


@pytest.fixture
def credentials() -> dict[str, Any]:
    """Of the only account."""
    credentials: dict[str, Any] = plugin.load("channels", CHANNEL, "simulator").credentials()
    return credentials


@dataclass
class Gateways:
    """Two gateways around the same services: callbacks go past ASGI and Flask in the one, through them in the other."""

    folder: Path

    @asynccontextmanager
    async def client(self, *, past: bool = True) -> AsyncIterator[Client]:
        """A new connection to one of them."""
        reader, writer = await asyncio.open_unix_connection(self.folder / f"http-{past}", limit=1 << 20)
        yield Client(reader, writer)
        writer.close()

    async def send(
        self, method: str, path: str, callback: Callback, *, past: bool = True
    ) -> tuple[int, Mapping[bytes, bytes], bytes]:
        """The answer to one request over a connection of its own."""
        async with self.client(past=past) as client:
            return await client.send(method, path, callback)


@pytest.fixture
def policy() -> Policy:
    """Of the only account: as it is by default."""
    return Policy()


@pytest.fixture
async def gateways(house: "House", credentials: dict[str, Any], policy: Policy) -> AsyncIterator[Gateways]:
    """Both gateways, serving."""
    channel = plugin.channels()[CHANNEL]
    crypto = Crypto(plugin.load("channels", CHANNEL, "crypto")(_settings(channel.crypto, credentials)))
    service = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]
    accounts = {(CHANNEL, "default"): _settings(channel.codec, credentials)}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Server({service: crypto}, listen=f"unix:{house.folder}/crypto", drain_s=0.0))
        for past in (True, False):
            app = _app(house.folder, accounts, policy, past=past)
            await stack.enter_async_context(_serving(app, f"{house.folder}/http-{past}", past=past))
        yield Gateways(house.folder)


@asynccontextmanager
async def _serving(app: FlaskOnLoop, socket: str, *, past: bool) -> AsyncIterator[None]:
    """What gunicorn's worker does, with its own kind of connection or with uvicorn's."""
    options = {
        **Worker.CONFIG_KWARGS,
        "http": Connection if past else HttpToolsProtocol,
        "loop": "none",
        "timeout_keep_alive": IDLE_S,
    }
    server = uvicorn.Server(uvicorn.Config(app, uds=socket, log_config=None, **options))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    yield
    server.should_exit = True
    await serving


def _settings(kind: type[Settings], credentials: Mapping[str, Any]) -> Any:
    source = Source({"account": {name: credentials[name] for name in fields(kind)}}, {}, "credentials")
    return source.read(kind, "account")


def _app(folder: Path, accounts: Mapping[tuple[str, str], Any], policy: Policy, *, past: bool) -> FlaskOnLoop:
    settings = GatewaySettings(
        listen=Address("127.0.0.1:7000"),
        grpc=cast("Address", f"unix:{folder}/grpc-{past}"),
        database=f"sqlite:///{folder}/gateway-{past}.db",
        crypto_target=f"unix:{folder}/crypto",
        reply_target=f"unix:{folder}/reply",
    )
    nlp = f"unix:{folder}/nlp"
    policies = dict.fromkeys(accounts, policy)
    return create_app(
        Configuration(settings, NlpSettings(target=nlp), SkillsSettings(target=nlp), accounts, policies=policies)
    )


@pytest.fixture
def member(credentials: dict[str, Any]) -> Any:
    """Plays the platform."""
    return plugin.load("channels", CHANNEL, "simulator")(credentials)


async def test_a_callback_past_flask_is_answered_as_by_flask(gateways: Gateways, member: Any) -> None:
    """A sealed message gets the same status, content type and words, whichever way it went."""
    callback, _ = member.callback("hello", "zhang")
    answers = {past: await gateways.send("POST", f"/{CHANNEL}", callback, past=past) for past in (True, False)}
    assert {member.read_reply(body) for _, _, body in answers.values()} == {"re: hello"}
    assert answers[True][0] == answers[False][0] == 200
    assert answers[True][1].keys() == answers[False][1].keys()
    assert answers[True][1][b"content-type"] == answers[False][1][b"content-type"]


@pytest.mark.parametrize(
    ("method", "path", "change", "status"),
    [
        ("POST", f"/{CHANNEL}/default", {"body": b"{}"}, 401),
        ("POST", f"/{CHANNEL}", {"query": "timestamp=1"}, 400),
        ("POST", f"/{CHANNEL}/", {}, 404),
        ("POST", f"/{CHANNEL}/nobody", {}, 404),
        ("POST", "/nowhere", {}, 404),
        ("POST", f"/{CHANNEL}/default/more", {}, 404),
        ("POST", f"/{CHANNEL[:-1]}%{ord(CHANNEL[-1]):x}", {"body": b"{}"}, 401),
        ("PUT", f"/{CHANNEL}", {}, 405),
        ("GET", f"/{CHANNEL}", {}, 400),
        ("POST", f"/{CHANNEL}", {"body": b"x" * 300_000}, 413),
    ],
)
async def test_a_refusal_past_flask_is_that_of_flask(
    gateways: Gateways, member: Any, method: str, path: str, change: dict[str, Any], status: int
) -> None:
    """What cannot be accepted is refused in the same words, whichever way it went."""
    callback = member.callback("hello", "zhang")[0]._replace(**change)
    past, through = [await gateways.send(method, path, callback, past=past) for past in (True, False)]
    assert (past[0], past[2]) == (through[0], through[2])
    assert past[1][b"content-type"] == through[1][b"content-type"]
    assert past[0] == status


# --- Connections ------------------------------------------------------------------------------------------


async def test_a_connection_serves_one_request_after_another(gateways: Gateways, member: Any) -> None:
    """Callbacks and what Flask serves take turns on one connection."""
    async with gateways.client() as client:
        for number in range(3):
            callback, _ = member.callback(f"hello {number}", "zhang")
            status, _, body = await client.send("POST", f"/{CHANNEL}", callback)
            assert (status, member.read_reply(body)) == (200, f"re: hello {number}")
            assert (await client.send("GET", "/healthz", Callback("GET", "", {}, b"")))[2] == b"ok"


async def test_requests_that_do_not_wait_for_answers_are_answered_in_order(gateways: Gateways, member: Any) -> None:
    """HTTP pipelining, with a slow one first."""
    texts = ["slow 0.2", "quick", "quick too"]
    callbacks = [member.callback(text, f"member {text}")[0] for text in texts]
    async with gateways.client() as client:
        client.writer.write(b"".join(request("POST", f"/{CHANNEL}", callback) for callback in callbacks))
        answers = [await client.receive() for _ in callbacks]
    assert [member.read_reply(body) for _, _, body in answers] == [f"re: {text}" for text in texts]


@pytest.mark.parametrize("size_bytes", [1, 7, 200])
async def test_a_request_may_come_in_pieces(gateways: Gateways, member: Any, size_bytes: int) -> None:
    """However the network cuts it."""
    whole = request("POST", f"/{CHANNEL}", member.callback("hello", "zhang")[0])
    async with gateways.client() as client:
        for start in range(0, len(whole), size_bytes):
            client.writer.write(whole[start : start + size_bytes])
            await client.writer.drain()
            await asyncio.sleep(0)
        status, _, body = await client.receive()
    assert (status, member.read_reply(body)) == (200, "re: hello")


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(gateways: Gateways, member: Any) -> None:
    """`Expect: 100-continue`, as curl has it for long bodies."""
    callback, _ = member.callback("hello", "zhang")
    head, body = request("POST", f"/{CHANNEL}", callback).split(b"\r\n\r\n", 1)
    async with gateways.client() as client:
        client.writer.write(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        client.writer.write(body)
        assert member.read_reply((await client.receive())[2]) == "re: hello"


@pytest.mark.parametrize("header", ["connection: close", ""])
async def test_a_connection_is_closed_where_the_client_wants_it(gateways: Gateways, member: Any, header: str) -> None:
    """By its header, or by its version of HTTP."""
    whole = request("POST", f"/{CHANNEL}", member.callback("hello", "zhang")[0])
    whole = whole.replace(b"host:", f"{header}\r\nhost:".encode(), 1) if header else whole.replace(b"1.1", b"1.0", 1)
    async with gateways.client() as client:
        client.writer.write(whole)
        _, headers, body = await client.receive()
        assert headers[b"connection"] == b"close"
        assert member.read_reply(body) == "re: hello"
        assert await client.reader.read() == b""


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(gateways: Gateways, member: Any) -> None:
    """A callback is held for longer than a connection may be idle; after its answer the connection ends by itself."""
    async with gateways.client() as client:
        for text in ("quick", f"slow {IDLE_S / 2}", f"slow {IDLE_S * 1.5}"):
            callback = member.callback(text, "zhang")[0]
            assert member.read_reply((await client.send("POST", f"/{CHANNEL}", callback))[2]) == f"re: {text}"
        async with asyncio.timeout(30):
            assert await client.reader.read() == b""


async def test_a_body_that_is_too_large_is_not_read_to_its_end(gateways: Gateways) -> None:
    """The refusal comes while the client still sends, and ends the connection."""
    async with gateways.client() as client:
        client.writer.write(f"POST /{CHANNEL} HTTP/1.1\r\nhost: test\r\ncontent-length: 90000000\r\n\r\n".encode())
        client.writer.write(b"x" * 300_000)
        assert (await client.receive())[0] == 413
        assert await client.reader.read() == b""


async def test_a_message_whose_client_has_gone_is_answered_by_the_api(
    gateways: Gateways, house: "House", member: Any
) -> None:
    """The connection breaks while the engine thinks."""
    async with gateways.client() as client:
        client.writer.write(request("POST", f"/{CHANNEL}", member.callback("slow 0.3", "zhang")[0]))
        async with asyncio.timeout(10):
            while not house.engine.requests:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        while not house.reply.delivered:
            await asyncio.sleep(0.01)
    assert list(house.reply.delivered.values()) == [["re: slow 0.3"]]


class TestWithListedSources:
    """An account that is called back from some addresses only."""

    @pytest.fixture
    def policy(self) -> Policy:
        return Policy(callback_sources=Names("203.0.113.0/24, 2001:db8::/32"))

    @pytest.mark.parametrize("past", [True, False], ids=["past Flask", "by Flask"])
    @pytest.mark.parametrize(
        ("address", "status"),
        [
            ("203.0.113.9", 200),
            ("203.0.114.9", 403),
            ("2001:db8::7", 200),
            ("203.0.113.9, 203.0.114.9", 403),
            ("nonsense", 403),
            ("", 403),
        ],
    )
    async def test_where_the_edge_says_that_a_callback_came_from_counts(
        self, gateways: Gateways, house: "House", member: Any, past: bool, address: str, status: int
    ) -> None:
        """Any other is refused before anything of it is opened, and told which address was seen."""
        callback, _ = member.callback("hello", "zhang")
        if address:
            callback = callback._replace(headers={**callback.headers, "x-client-address": address})
        answer = await gateways.send("POST", f"/{CHANNEL}", callback, past=past)
        assert answer[0] == status
        if status == 403:
            assert b"SOURCE_NOT_PERMITTED" in answer[2]
            assert (address or "an unknown address").encode() in answer[2]
            assert house.engine.requests == []
