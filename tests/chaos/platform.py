"""The platform of a chaos run: it sends callbacks as strictly as any, and takes what is sent by its API.

It shares the simulator's sealing with the product's tests, nothing else: who was sent what, how often, and what
each member saw is kept in books of its own.
"""

import asyncio
import hashlib
import random
import secrets
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from yarl import URL

from assistant import plugin
from assistant.plugin import Callback
from assistant.testing import served
from tests.chaos.books import Books, Message, Way

REPLY_LIMIT_S = 5.0
TRIES = 3
RETRY_PAUSE_S = 1.0
"""The vendor does not say; the longer, the more forgiving to us."""
SENDS_PER_MINUTE = 30
BURST = 3
BURST_PAUSE_S = 0.15
_SHARE_OF_BURSTS = 0.3
_ANSWER_PATIENCE_S = 90.0
_LONG_WORDS = 600
"""Too long for a passive reply, and for one message by the API."""


class Platform:
    """A company whose members write, and the API by which they are answered."""

    def __init__(
        self, credentials: Mapping[str, Any], callback_url: str, seed: int, trust: ssl.SSLContext | None = None
    ) -> None:
        """`trust`: whom to believe that an HTTPS URL is theirs."""
        self.books = Books()
        self.desk = Desk(self.books)
        self._simulator: plugin.Simulator
        self.seal_with(credentials)
        self._trust = trust
        self._callback_url = callback_url
        self._random = random.Random(seed)
        self._under_way: set[asyncio.Task[None]] = set()
        self._http: aiohttp.ClientSession
        self._writing = True
        self._probes = 0

    def seal_with(self, credentials: Mapping[str, Any]) -> None:
        """Seal callbacks with these keys from now on, as after 保存 in the platform's console."""
        self._simulator = plugin.load("channels", "wecom", "simulator")(credentials)

    @asynccontextmanager
    async def writing(self, members: int, rate: float) -> AsyncIterator[None]:
        """Members write, together about `rate` messages per second."""
        connector = aiohttp.TCPConnector(limit=0, ssl=self._trust or True)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as self._http:
            per_turn = 1 - _SHARE_OF_BURSTS + _SHARE_OF_BURSTS * BURST
            pause_s = members * per_turn / rate
            conversations = [
                asyncio.create_task(self._converse(f"member{number}", pause_s)) for number in range(members)
            ]
            try:
                yield
            finally:
                self._writing = False
                for conversation in conversations:
                    conversation.cancel()
                await asyncio.gather(*conversations, return_exceptions=True)
                for task in self._under_way:
                    task.cancel()
                await asyncio.gather(*self._under_way, return_exceptions=True)

    def stop_writing(self) -> None:
        """No member begins anything new."""
        self._writing = False

    async def acknowledged(self) -> None:
        """Wait until all that was sent before now has its 200, or was given up."""
        await asyncio.gather(*self._under_way)

    async def settled(self, limit_s: float) -> bool:
        """Wait until everything is answered, at most so long. False: something is not."""
        deadline = monotonic() + limit_s
        while self.books.open() or self._under_way:
            if monotonic() > deadline:
                return False
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)  # what came twice would come now
        return True

    async def _converse(self, member: str, pause_s: float) -> None:
        """A member writes, one message after the answer to the other or a few in a row, and so on."""
        await asyncio.sleep(self._random.uniform(0, pause_s))
        while self._writing:
            said = [self.say(member, self._difficulty())]
            if self._random.random() < _SHARE_OF_BURSTS:
                for _ in range(BURST - 1):
                    await asyncio.sleep(BURST_PAUSE_S)
                    said.append(self.say(member, self._difficulty()))
            for message in said:
                try:
                    await asyncio.wait_for(message.answered.wait(), _ANSWER_PATIENCE_S)
                except TimeoutError:
                    break
            await asyncio.sleep(self._random.uniform(0, 2 * pause_s))

    def probe(self, way: Way) -> Message:
        """A member who never wrote before asks for something that takes no thinking."""
        self._probes += 1
        return self.say(f"probe{self._probes}", (0.0, 1 if way == "passive" else _LONG_WORDS))

    def say(self, member: str, difficulty: tuple[float, int]) -> Message:
        """A member writes something: seconds to think about it, and words of the answer."""
        seconds, words = difficulty
        message = self.books.send(member, f"{seconds:.2f} {words}", monotonic())
        simulator = self._simulator
        callback, _ = simulator.callback(f"{message.number} {message.asks}", member)
        task = asyncio.create_task(self._deliver(message, callback, simulator))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return message

    def _difficulty(self) -> tuple[float, int]:
        """Seconds to think, and words of the answer: most are easy, some too slow or too long to be passive."""
        kind = self._random.random()
        if kind < 0.75:
            return 0.0, 1
        if kind < 0.90:
            return self._random.uniform(0.0, 6.0), 1
        return 0.0, _LONG_WORDS

    async def _deliver(self, message: Message, callback: Callback, simulator: plugin.Simulator) -> None:
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(RETRY_PAUSE_S)
            message.tries += 1
            try:
                status, body = await self._request(callback)
            except (TimeoutError, aiohttp.ClientError) as error:
                message.failures.append((monotonic(), type(error).__name__))
                continue
            if status != 200:
                message.refused = status
            else:
                self._read(message, body, simulator)
            return
        message.given_up = True

    async def _request(self, callback: Callback) -> tuple[int, bytes]:
        async with self._http.request(
            callback.method,
            URL(f"{self._callback_url}?{callback.query}", encoded=True),
            headers=callback.headers,
            data=callback.body,
            timeout=aiohttp.ClientTimeout(total=REPLY_LIMIT_S),
        ) as response:
            return response.status, await response.read()

    def _read(self, message: Message, body: bytes, simulator: plugin.Simulator) -> None:
        message.settled_at = monotonic()
        try:
            text = simulator.read_reply(body)
        except ValueError:
            self.books.forged += 1
            return
        if text is not None:
            self.books.show(message.member, text, "passive", monotonic())


class Desk:
    """The platform's API, and what can be wrong with it."""

    def __init__(self, books: Books) -> None:
        self.latency_s = 0.0
        self.down = False
        self.status = 200
        self.error_code = 0
        """What sends are answered with while it is not 0."""
        self._books = books
        self._tokens: set[str] = set()
        self._answers: dict[str, bytes] = {}
        self._sends: dict[str, deque[float]] = {}

    def revoke_tokens(self) -> None:
        """All access tokens are void from now on."""
        self._tokens.clear()

    @asynccontextmanager
    async def open(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Serve, by default on a free port of loopback; the URL, without a slash at the end."""
        app = web.Application(middlewares=[self._trouble])
        app.router.add_get("/cgi-bin/gettoken", self._gettoken)
        app.router.add_get("/cgi-bin/getcallbackip", self._addresses)
        app.router.add_post("/cgi-bin/message/send", self._send)
        async with served(app, host, port) as url:
            yield url

    @web.middleware
    async def _trouble(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.down and request.transport is not None:
            request.transport.abort()
            return web.Response()
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        if self.status != 200:
            return web.Response(status=self.status)
        response: web.StreamResponse = await handler(request)
        return response

    async def _gettoken(self, request: web.Request) -> web.Response:
        token = secrets.token_hex(16)
        self._tokens.add(token)
        return _answer(access_token=token, expires_in=7200)

    async def _addresses(self, request: web.Request) -> web.Response:
        return self._refusal(request) or _answer(ip_list=["127.0.0.1"])

    async def _send(self, request: web.Request) -> web.Response:
        body = await request.read()
        if refusal := self._refusal(request):
            return refusal
        if self.error_code:
            return _answer(errcode=self.error_code, errmsg="the platform was told to answer so")
        known = hashlib.sha256(body).hexdigest()
        if known in self._answers:
            self._books.repeated_sends += 1
            return web.Response(body=self._answers[known], content_type="application/json")
        sent = orjson.loads(body)
        self._show(sent["touser"], sent[sent["msgtype"]]["content"])
        response = _answer(msgid=secrets.token_hex(8))
        if sent.get("enable_duplicate_check"):
            self._answers[known] = bytes(response.body)  # type: ignore[arg-type]  # it has bytes
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        if request.query.get("access_token") in self._tokens:
            return None
        return _answer(errcode=40014, errmsg="invalid access_token")

    def _show(self, member: str, text: str) -> None:
        now = monotonic()
        sends = self._sends.setdefault(member, deque(maxlen=SENDS_PER_MINUTE))
        if len(sends) == SENDS_PER_MINUTE and sends[0] > now - 60:
            self._books.over_quota += 1
            return
        sends.append(now)
        self._books.show(member, text, "active", now)


def _answer(**fields: Any) -> web.Response:
    return web.json_response({"errcode": 0, "errmsg": "ok", **fields})
