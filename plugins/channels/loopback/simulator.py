"""The platform from outside: for tests, and to try the assistant without any. Shares no code with the facets.

`application` plays one company with one account: its API, `POST /say` to write as a member, and a page at `/`.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
from aiohttp import web
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from assistant import plugin
from assistant.plugin import Callback

_TOKEN_LIFETIME_S = 3600

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Loopback</title>
<style>body{font:16px sans-serif;max-width:40em;margin:2em auto;padding:0 1em}li{white-space:pre-wrap}</style>
<h1>Loopback</h1><ol id="said" aria-live="polite"></ol>
<form id="form"><label>Say <input id="text" autofocus required></label> <button>Send</button></form>
<script>
const show = (who, text) => {
  const line = document.createElement("li"); line.textContent = who + ": " + text; said.append(line);
};
let seen = 0;
form.onsubmit = async event => {
  event.preventDefault();
  const words = text.value; text.value = ""; show("you", words);
  const response = await fetch("/say", {method: "POST", body: JSON.stringify({member: "you", text: words})});
  const answer = await response.json();
  if (answer.reply) show("assistant", answer.reply);
};
setInterval(async () => {
  const messages = await (await fetch("/messages")).json();
  for (; seen < messages.length; seen++) {
    for (const piece of messages[seen].content) show("assistant", piece.text ? piece.text.text : JSON.stringify(piece));
  }
}, 1000);
</script></html>
"""


class Simulator(plugin.Simulator):
    """One account of one company."""

    @classmethod
    def credentials(cls) -> dict[str, Any]:
        """Settings of a new account, random."""
        return {
            "company": f"company-{secrets.token_hex(4)}",
            "token": secrets.token_hex(16),
            "aeskey": base64.b64encode(secrets.token_bytes(32)).decode(),
            "secret": secrets.token_hex(16),
        }

    def __init__(self, settings: Mapping[str, Any], clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix time in seconds."""
        self._company = str(settings["company"])
        self._token = str(settings["token"]).encode()
        self._aes = AESGCM(base64.b64decode(str(settings["aeskey"])))
        self._secret = str(settings.get("secret", ""))
        self._clock = clock

    def callback(self, text: str, member: str) -> tuple[Callback, str]:
        """A callback that brings a text, and the message's id."""
        message_id = secrets.token_hex(8)
        message = {
            "id": message_id,
            "company": self._company,
            "member": member,
            "kind": "text",
            "sent_at": int(self._clock()),
            "text": text,
        }
        nonce = secrets.token_bytes(12)
        sealed = nonce + self._aes.encrypt(nonce, json.dumps(message).encode(), self._company.encode())
        body = json.dumps({"company": self._company, "sealed": base64.b64encode(sealed).decode()}).encode()
        timestamp, stamp_nonce = str(int(self._clock())), secrets.token_hex(8)
        query = f"timestamp={timestamp}&nonce={stamp_nonce}&signature={self._sign(timestamp, stamp_nonce, body)}"
        return Callback("POST", query, {"content-type": "application/json"}, body), message_id

    def read_reply(self, body: bytes) -> str | None:
        """The text of an answer."""
        if not body:
            return None
        envelope = json.loads(body)
        sealed = base64.b64decode(envelope["sealed"])
        if not hmac.compare_digest(self._sign(envelope["timestamp"], envelope["nonce"], sealed), envelope["signature"]):
            raise ValueError("the answer is not signed with the account's token")
        try:
            answer = self._aes.decrypt(sealed[:12], sealed[12:], self._company.encode())
        except InvalidTag:
            raise ValueError("the answer is not sealed with the account's aeskey") from None
        return str(json.loads(answer)["text"])

    def application(self, callback_url: str) -> web.Application:
        """The platform's API and a page to chat in."""
        platform = _Platform(self, self._secret, callback_url)
        app = web.Application()
        app.cleanup_ctx.append(platform.calling)
        app.add_routes(
            [
                web.get("/", platform.page),
                web.post("/say", platform.say),
                web.get("/messages", platform.list_messages),
                web.post("/token", platform.give_token),
                web.get("/account", platform.tell_account),
                web.post("/messages", platform.take_message),
            ]
        )
        return app

    def _sign(self, timestamp: str, nonce: str, signed: bytes) -> str:
        return hmac.new(self._token, f"{timestamp}\n{nonce}\n".encode() + signed, hashlib.sha256).hexdigest()


class _Platform:
    """What the platform remembers while it runs."""

    def __init__(self, simulator: Simulator, secret: str, callback_url: str) -> None:
        self._simulator = simulator
        self._secret = secret
        self._callback_url = callback_url
        self._tokens: set[str] = set()
        self._messages: dict[str, dict[str, Any]] = {}
        self._http: aiohttp.ClientSession

    async def calling(self, _: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as self._http:
            yield

    async def page(self, _: web.Request) -> web.Response:
        return web.Response(text=_PAGE, content_type="text/html")

    async def say(self, request: web.Request) -> web.Response:
        """A member writes: `{"member", "text"}` -> `{"message_id", "status", "reply"}`."""
        said = await request.json()
        callback, message_id = self._simulator.callback(said["text"], said["member"])
        url = f"{self._callback_url}?{callback.query}"
        async with self._http.post(url, data=callback.body, headers=dict(callback.headers)) as response:
            body = await response.read()
            reply = self._simulator.read_reply(body) if response.status == 200 else None
            return web.json_response({"message_id": message_id, "status": response.status, "reply": reply})

    async def list_messages(self, _: web.Request) -> web.Response:
        return web.json_response(list(self._messages.values()))

    async def give_token(self, request: web.Request) -> web.Response:
        if (await request.json()).get("secret") != self._secret:
            raise web.HTTPForbidden
        token = secrets.token_hex(16)
        self._tokens.add(token)
        return web.json_response({"token": token, "lifetime_s": _TOKEN_LIFETIME_S})

    async def tell_account(self, request: web.Request) -> web.Response:
        self._check_token(request)
        return web.json_response({})

    async def take_message(self, request: web.Request) -> web.Response:
        """Take a message once: a repeated `id` changes nothing."""
        self._check_token(request)
        message = await request.json()
        self._messages.setdefault(message["id"], message)
        return web.json_response({"id": message["id"]})

    def _check_token(self, request: web.Request) -> None:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self._tokens:
            raise web.HTTPUnauthorized
