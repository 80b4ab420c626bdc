"""The gateway's HTTP face over real services: what it answers, by Flask and past it."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from assistant import plugin
from assistant.api.crypto.v1 import crypto_pb2
from assistant.plugin import Callback
from assistant.server import Call, Server
from assistant.settings import Address, Settings, Source, fields
from gateway.app import create_app
from gateway.loop import FlaskOnLoop
from gateway.settings import Configuration, GatewaySettings, NlpSettings, SkillsSettings

if TYPE_CHECKING:
    from conftest import House

CHANNEL = "loopback"


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
    """An HTTP client of an ASGI application, without HTTP in between."""

    def __init__(self, app: FlaskOnLoop) -> None:
        self._app = app

    async def send(self, method: str, path: str, callback: Callback) -> tuple[int, Mapping[bytes, bytes], bytes]:
        """Status, headers and body of the answer."""
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": callback.body}

        async def send(event: dict[str, Any]) -> None:
            sent.append(event)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "query_string": callback.query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in callback.headers.items()],
            "server": ("127.0.0.1", 7000),
        }
        await self._app(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.fixture
def credentials() -> dict[str, Any]:
    """Of the only account."""
    credentials: dict[str, Any] = plugin.load("channels", CHANNEL, "simulator").credentials()
    return credentials


@pytest.fixture
async def clients(house: "House", credentials: dict[str, Any]) -> AsyncIterator[dict[bool, Client]]:
    """Two gateways around the same services, by whether callbacks go past Flask."""
    channel = plugin.channels()[CHANNEL]
    crypto = Crypto(plugin.load("channels", CHANNEL, "crypto")(_settings(channel.crypto, credentials)))
    service = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]
    accounts = {(CHANNEL, "default"): _settings(channel.codec, credentials)}
    async with Server({service: crypto}, listen=f"unix:{house.folder}/crypto", drain_s=0.0):
        lives = {past: _Life(_app(house.folder, accounts, past_flask=past)) for past in (True, False)}
        for life in lives.values():
            await life.start()
        yield {past: Client(life.app) for past, life in lives.items()}
        for life in lives.values():
            await life.stop()


def _settings(kind: type[Settings], credentials: Mapping[str, Any]) -> Any:
    source = Source({"account": {name: credentials[name] for name in fields(kind)}}, {}, "credentials")
    return source.read(kind, "account")


def _app(folder: Path, accounts: Mapping[tuple[str, str], Any], *, past_flask: bool) -> FlaskOnLoop:
    settings = GatewaySettings(
        listen=Address("127.0.0.1:7000"),
        database=f"sqlite:///{folder}/gateway-{past_flask}.db",
        crypto_target=f"unix:{folder}/crypto",
        reply_target=f"unix:{folder}/reply",
    )
    nlp = f"unix:{folder}/nlp"
    configuration = Configuration(settings, NlpSettings(target=nlp), SkillsSettings(target=nlp), accounts)
    return create_app(configuration, past_flask=past_flask)


class _Life:
    """An ASGI server's part in the life of an application."""

    def __init__(self, app: FlaskOnLoop) -> None:
        self.app = app
        self._told: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._said: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()

    async def start(self) -> None:
        self._running = asyncio.create_task(self.app({"type": "lifespan"}, self._told.get, self._said.put))
        await self._told.put({"type": "lifespan.startup"})
        assert (await self._said.get())["type"] == "lifespan.startup.complete"

    async def stop(self) -> None:
        await self._told.put({"type": "lifespan.shutdown"})
        await self._running


@pytest.fixture
def member(credentials: dict[str, Any]) -> Any:
    """Plays the platform."""
    return plugin.load("channels", CHANNEL, "simulator")(credentials)


async def test_a_callback_past_flask_is_answered_as_by_flask(clients: dict[bool, Client], member: Any) -> None:
    """A sealed message gets the same status, content type and words, whichever way it went."""
    callback, _ = member.callback("hello", "zhang")
    answers = {past: await client.send("POST", f"/{CHANNEL}", callback) for past, client in clients.items()}
    assert {member.read_reply(body) for _, _, body in answers.values()} == {"re: hello"}
    assert answers[True][0] == answers[False][0] == 200
    assert answers[True][1][b"content-type"] == answers[False][1][b"content-type"]
    assert all(int(headers[b"content-length"]) == len(body) for _, headers, body in answers.values())


@pytest.mark.parametrize(
    ("method", "path", "change", "status"),
    [
        ("POST", f"/{CHANNEL}/default", {"body": b"{}"}, 401),
        ("POST", f"/{CHANNEL}", {"query": "timestamp=1"}, 400),
        ("POST", f"/{CHANNEL}/", {}, 404),
        ("POST", f"/{CHANNEL}/nobody", {}, 404),
        ("POST", "/nowhere", {}, 404),
        ("POST", f"/{CHANNEL}/default/more", {}, 404),
        ("PUT", f"/{CHANNEL}", {}, 405),
        ("GET", f"/{CHANNEL}", {}, 400),
        ("POST", f"/{CHANNEL}", {"body": b"x" * 300_000}, 413),
    ],
)
async def test_a_refusal_past_flask_is_that_of_flask(
    clients: dict[bool, Client], member: Any, method: str, path: str, change: dict[str, Any], status: int
) -> None:
    """What cannot be accepted is refused in the same words, whichever way it went."""
    callback = replace(member.callback("hello", "zhang")[0], **change)
    past, through = [await clients[past].send(method, path, callback) for past in (True, False)]
    assert past == through
    assert past[0] == status
