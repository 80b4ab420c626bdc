"""The way to the app: seals what members send, delivers it, and reads what comes back (90238, 90930)."""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from assistant.plugin import Callback
from plugins.channels.wecom.simulator import messages, xml
from plugins.channels.wecom.simulator.chats import Chat, Entry
from plugins.channels.wecom.simulator.envelope import Envelope
from plugins.channels.wecom.simulator.kinds import Kind
from plugins.channels.wecom.simulator.messages import Message
from plugins.channels.wecom.simulator.rules import Books, Faults, Rules

_ANSWER_BYTES = 256 * 1024
"""More of an answer is not read."""
_OVERTAKEN_S = 2.0
"""How long a callback waits to be overtaken."""
_HEADERS = {"accept": "*/*", "content-type": "text/xml", "user-agent": "Mozilla/4.0"}


class Sealer:
    """Signs and encrypts for one app, and opens its replies."""

    def __init__(
        self, corpid: str, token: str, aeskey: str, agentid: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.agentid = agentid
        self._corpid = corpid
        self._envelope = Envelope(token, aeskey, corpid)
        self._clock = clock

    def with_key(self, token: str, aeskey: str) -> "Sealer":
        """For the same app with another key. Raises ValueError if the aeskey is none."""
        return Sealer(self._corpid, token, aeskey, self.agentid, self._clock)

    def seal(self, kind: Kind, member: str, message_id: str, fields: Mapping[str, Any], faults: Faults) -> Callback:
        """The callback that brings one message or event."""
        plain: dict[str, Any] = {
            "ToUserName": self._corpid,
            "FromUserName": member,
            "CreateTime": int(self._clock()),
            "MsgType": "event" if kind.event else kind.name,
        }
        if kind.event:
            plain["Event"] = kind.name
        plain |= fields
        if message_id:
            plain["MsgId"] = int(message_id)
        if kind.from_app:
            plain["AgentID"] = int(self.agentid) if self.agentid else ""
        encrypted = self._encrypt(xml.write(plain).encode(), faults)
        body = {
            "ToUserName": self._corpid,
            "Encrypt": encrypted,
            "AgentID": self.agentid if kind.from_app else "",
        }
        return Callback("POST", urlencode(self._signed(encrypted, faults)), _HEADERS, xml.write(body).encode())

    def seal_check(self, echo: str, faults: Faults) -> Callback:
        """The request that checks the address of an app: it must answer with `echo`."""
        encrypted = self._encrypt(echo.encode(), faults)
        while faults.plus_as_space and "+" not in encrypted:
            encrypted = self._encrypt(echo.encode(), faults)
        query = urlencode(self._signed(encrypted, faults))
        echostr = quote(encrypted, safe="+" if faults.plus_as_space else "")
        return Callback("GET", f"{query}&echostr={echostr}", {"accept": "*/*"}, b"")

    def _encrypt(self, message: bytes, faults: Faults) -> str:
        return self._envelope.encrypt(message, "ww0000000000000000" if faults.wrong_receiver else None)

    def _signed(self, encrypted: str, faults: Faults) -> dict[str, str]:
        timestamp, nonce = str(int(self._clock() - faults.age_s)), str(secrets.randbelow(10**10))
        signature = self._envelope.signature(timestamp, nonce, encrypted)
        if faults.wrong_signature:
            signature = secrets.token_hex(20)
        return {"msg_signature": signature, "timestamp": timestamp, "nonce": nonce}

    def open_reply(self, body: bytes) -> Mapping[str, Any] | None:
        """The fields of the reply in the HTTP answer to a callback. None if it only acknowledges.

        Raises ValueError if it is not signed and encrypted by the app.
        """
        if body.strip() in (b"", b"success"):
            return None
        envelope = xml.read(body)
        parts = [envelope.get(name) for name in ("MsgSignature", "TimeStamp", "Nonce", "Encrypt")]
        if not all(isinstance(part, str) and part for part in parts):
            raise ValueError("the answer is no reply: it needs Encrypt, MsgSignature, TimeStamp and Nonce, or no body")
        signature, timestamp, nonce, encrypted = map(str, parts)
        self._envelope.verify(signature, timestamp, nonce, encrypted)
        return xml.read(self._envelope.decrypt(encrypted))

    def read_reply(self, body: bytes, member: str | None = None) -> Message | None:
        """The reply as the member sees it, None if there is none. Raises ValueError if it is forged or meaningless.

        `member` is who it must be addressed to; None if that does not matter.
        """
        reply = self.open_reply(body)
        if reply is None:
            return None
        if member is not None and str(reply.get("ToUserName")).lower() != member.lower():
            raise ValueError("the reply is addressed to somebody else (ToUserName)")
        if reply.get("FromUserName") != self._corpid:
            raise ValueError("the reply does not come from this company (FromUserName)")
        return messages.in_answer(reply)


class Callbacks:
    """Delivers callbacks to one URL. The answer to one is read with the key that it was sealed with."""

    def __init__(self, url: str, sealer: Sealer, rules: Rules, faults: Faults, books: Books) -> None:
        self.url = url
        self.rules = rules
        self.faults = faults
        self.sealer = sealer
        self._books = books
        self._http: aiohttp.ClientSession | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._overtaken: asyncio.Event | None = None

    async def open(self) -> None:
        """Get ready."""
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    def deliver(self, chat: Chat, entry: Entry, kind: Kind) -> "asyncio.Task[None]":
        """Send what the member wrote to the app; the entry tells how far it is."""
        sealer = self.sealer
        callback = sealer.seal(kind, chat.member, entry.message_id, entry.fields, self.faults)
        self._books.sent += 1
        task = asyncio.create_task(self._deliver(chat, entry, kind, callback, sealer))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _deliver(self, chat: Chat, entry: Entry, kind: Kind, callback: Callback, sealer: Sealer) -> None:
        twice = self.faults.twice
        let_pass = await self._wait_to_be_overtaken()
        began = time.perf_counter()
        if twice:
            bodies = await asyncio.gather(self._attempts(chat, entry, callback), self._attempts(chat, entry, callback))
            body = next((body for body in bodies if body), bodies[0])
        else:
            body = await self._attempts(chat, entry, callback)
        let_pass()
        entry.duration_ms = round((time.perf_counter() - began) * 1000, 1)
        if body is None:
            entry.state = "lost"
            self._books.lost += 1
        else:
            self._answered(chat, entry, kind, body, sealer)
        chat.changed(entry)

    async def _wait_to_be_overtaken(self) -> Callable[[], None]:
        """Every other callback waits here; what is returned lets the waiting one go."""
        if self._overtaken is not None:
            return self._overtaken.set
        if self.faults.out_of_order:
            self._overtaken = asyncio.Event()
            try:
                await asyncio.wait_for(self._overtaken.wait(), _OVERTAKEN_S)
            except TimeoutError:
                pass
            finally:
                self._overtaken = None
        return lambda: None

    async def _attempts(self, chat: Chat, entry: Entry, callback: Callback) -> bytes | None:
        """The body of the answer that counts; None if the app never took the callback."""
        for attempt in range(self.rules.attempts):
            if attempt:
                self._books.retried += 1
                await asyncio.sleep(self.rules.retry_pause_s)
            entry.attempts += 1
            try:
                status, body = await self._request(callback, self.rules.reply_limit_s)
            except TimeoutError:
                entry.problem = f"no answer within {self.rules.reply_limit_s:g} s"
            except aiohttp.ClientError as error:
                entry.problem = f"no answer: {_connection_problem(error)}"
            else:
                entry.problem = "" if status == 200 else f"answered with HTTP {status}"
                if status == 200:
                    return body
                if not self.rules.retry_every_failure:
                    return None
            chat.changed(entry)
        return None

    async def _request(self, callback: Callback, limit_s: float) -> tuple[int, bytes]:
        if self._http is None:
            raise RuntimeError("not open")
        async with self._http.request(
            callback.method,
            URL(f"{self.url}?{callback.query}", encoded=True),
            headers=callback.headers,
            data=callback.body or None,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=limit_s),
        ) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > _ANSWER_BYTES:
                    break
            return response.status, bytes(body)

    def _answered(self, chat: Chat, entry: Entry, kind: Kind, body: bytes, sealer: Sealer) -> None:
        try:
            message = sealer.read_reply(body, chat.member)
        except ValueError as error:
            entry.state, entry.problem = "forged", f"nothing is shown: {error}"
            self._books.forged += 1
            return
        entry.state = "acknowledged"
        self._books.acknowledged += 1
        if message is None:
            return
        if not kind.takes_reply:
            entry.problem = f"nothing is shown: the platform takes no reply to {kind.name}"
            return
        entry.state = "answered"
        self._books.answered_passively += 1
        if message.kind in ("update_button", "update_template_card"):
            update_cards(chat, str(entry.fields.get("TaskId", "")), message.fields)
        else:
            chat.show(message, "passive", in_reply_to=entry.id)

    async def save_key(self, token: str, aeskey: str) -> str:
        """Use another key from now on, as an administrator who saves it; what is wrong with the URL then, or nothing.

        The platform checks the URL with the new key at once, and keeps the old one if the answer is wrong (90930).
        Raises ValueError if the aeskey is none.
        """
        sealer = self.sealer.with_key(token, aeskey)
        problem = await self.check_url(sealer)
        if not problem:
            self.sealer = sealer
        return problem

    async def check_url(self, sealer: Sealer | None = None) -> str:
        """What the administrator sees when saving the URL: what is wrong with it, or nothing."""
        echo = str(10**18 + secrets.randbelow(9 * 10**18))
        check = (sealer or self.sealer).seal_check(echo, self.faults)
        try:
            status, body = await self._request(check, self.rules.check_limit_s)
        except TimeoutError:
            return f"the URL did not answer within {self.rules.check_limit_s:g} s"
        except aiohttp.ClientError as error:
            return f"the URL did not answer: {_connection_problem(error)}"
        if status != 200:
            return f"the URL answered with HTTP {status} instead of 200"
        if body == echo.encode():
            return ""
        if echo.encode() in body:
            return "the URL answered with more than the decrypted echostr: no quotes, BOM, line break or JSON around it"
        return "the URL did not answer with the decrypted echostr"


def _connection_problem(error: aiohttp.ClientError) -> str:
    """What went wrong, without the query of the URL."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port} does not take connections"
    return "the connection broke" if isinstance(error, aiohttp.ClientConnectionError) else type(error).__name__


def update_cards(chat: Chat, task_id: str, change: Mapping[str, Any]) -> None:
    """Change the cards of a task: their button's words, or the whole card."""
    for entry in chat.entries:
        card = entry.fields
        if entry.kind == "template_card" and task_id and card.get("task_id") == task_id:
            replaced = change.get("template_card", card)
            entry.fields = {**replaced, "task_id": task_id}
            if "replace_name" in change:
                entry.fields["replace_name"] = change["replace_name"]
            chat.changed(entry)
