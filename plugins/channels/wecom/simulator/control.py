"""The simulator's own API and page: play a member, look at the chats, make the platform fail."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from plugins.channels.wecom.simulator.chats import Chat, Entry
from plugins.channels.wecom.simulator.company import Company
from plugins.channels.wecom.simulator.errors import ApiError
from plugins.channels.wecom.simulator.kinds import KINDS, Kind, payload
from plugins.channels.wecom.simulator.media import sample
from plugins.channels.wecom.simulator.rules import Faults, Rules

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")

PAGE = Path(__file__).parent / "page"
_HEARTBEAT_S = 15.0
_KEPT = ("message_id", "type")
_MEDIA_FIELDS = ("MediaId", "ThumbMediaId")


def application(company: Company) -> web.Application:
    """What is served below /simulator."""
    control = _Control(company)
    app = web.Application(middlewares=[_explain])
    app.add_routes(
        [
            web.get("/account", control.account),
            web.get("/kinds", control.kinds),
            web.get("/books", control.books),
            web.get("/rules", control.get_rules),
            web.put("/rules", control.put_rules),
            web.get("/faults", control.get_faults),
            web.put("/faults", control.put_faults),
            web.put("/key", control.save_key),
            web.post("/actions/check-url", control.check_url),
            web.post("/actions/withdraw-token", control.withdraw_token),
            web.post("/media", control.add_media),
            web.get("/media/{media_id}", control.get_media),
            web.get("/members", control.members),
            web.put("/members/{member}", control.employ),
            web.delete("/members/{member}", control.dismiss),
            web.get("/members/{member}/messages", control.messages),
            web.post("/members/{member}/messages", control.write),
            web.get("/members/{member}/changes", control.changes),
        ]
    )
    return app


async def page(_: web.Request) -> web.FileResponse:
    """The page to chat in. It loads nothing from elsewhere."""
    policy = "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'"
    return web.FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": policy})


@web.middleware
async def _explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (ValueError, ApiError) as error:
        return _json({"error": str(error)}, status=400)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def _read(request: web.Request, shape: type[T]) -> T:
    """Raises ValueError, naming what is wrong."""
    body = await request.read()
    try:
        return msgspec.json.decode(body or b"{}", type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the body is not what is expected here: {error}") from None


class _Membership(msgspec.Struct, forbid_unknown_fields=True):
    departments: list[int] | None = None
    """None: as before."""


class _Key(msgspec.Struct):
    """What an administrator puts into the form of the callback."""

    token: str
    aeskey: str


class _Control:
    def __init__(self, company: Company) -> None:
        self._company = company

    # --- The platform -------------------------------------------------------------------------------------

    async def account(self, _: web.Request) -> web.Response:
        company = self._company
        return _json({"corpid": company.corpid, "agentid": company.agentid, "callback_url": company.callbacks.url})

    async def kinds(self, _: web.Request) -> web.Response:
        return _json(list(KINDS.values()))

    async def books(self, _: web.Request) -> web.Response:
        return _json(self._company.books)

    async def get_rules(self, _: web.Request) -> web.Response:
        return _json(self._company.rules)

    async def put_rules(self, request: web.Request) -> web.Response:
        self._company.change_rules(await _read(request, Rules))
        return _json(self._company.rules)

    async def get_faults(self, _: web.Request) -> web.Response:
        return _json(self._company.faults)

    async def put_faults(self, request: web.Request) -> web.Response:
        self._company.change_faults(await _read(request, Faults))
        return _json(self._company.faults)

    async def save_key(self, request: web.Request) -> web.Response:
        given = await _read(request, _Key)
        problem = await self._company.callbacks.save_key(given.token, given.aeskey)
        return _json({"passed": not problem, "problem": problem})

    async def check_url(self, _: web.Request) -> web.Response:
        problem = await self._company.callbacks.check_url()
        return _json({"passed": not problem, "problem": problem})

    async def withdraw_token(self, _: web.Request) -> web.Response:
        self._company.tokens.withdraw()
        return _json({})

    # --- Files --------------------------------------------------------------------------------------------

    async def add_media(self, request: web.Request) -> web.Response:
        kind, name = request.query.get("type", "image"), request.query.get("name", "file")
        media_id, _ = self._company.media.add(kind, name, request.content_type, await request.read())
        return _json({"media_id": media_id, "url": _media_url(request, media_id)})

    async def get_media(self, request: web.Request) -> web.Response:
        try:
            file = self._company.media.get(request.match_info["media_id"])
        except ApiError:
            raise web.HTTPNotFound(text="there is no such file, or no longer") from None
        headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}
        return web.Response(body=file.data, content_type=file.content_type, headers=headers)

    # --- Members ------------------------------------------------------------------------------------------

    def _chat(self, request: web.Request) -> Chat:
        return self._company.chats.of(request.match_info["member"])

    async def members(self, _: web.Request) -> web.Response:
        return _json([chat.member for chat in self._company.chats.all()])

    async def employ(self, request: web.Request) -> web.Response:
        asked = await _read(request, _Membership)
        chat = self._chat(request)
        chat.employed = True
        if asked.departments is not None:
            unknown = set(asked.departments) - self._company.rules.departments.keys()
            if unknown:
                raise ValueError(f"departments {sorted(unknown)} are not in the rules: PUT them there first")
            chat.departments = asked.departments
        return _json({"departments": chat.departments})

    async def dismiss(self, request: web.Request) -> web.Response:
        self._chat(request).employed = False
        return _json({})

    async def messages(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not after.isdigit():
            raise ValueError(f"after={after!r} is not a revision: give the highest `revision` that you have seen")
        return _json(self._chat(request).since(int(after)))

    async def write(self, request: web.Request) -> web.Response:
        chat = self._chat(request)
        if not chat.employed:
            raise ValueError(f"{chat.member!r} has left the company and cannot write: PUT the member first")
        asked = await _read(request, dict[str, Any])
        kind, fields, message_id = _understand(asked)
        self._attach(request, kind, fields)
        entry = self._company.write(chat, kind, fields, message_id)
        delivery = self._company.callbacks.deliver(chat, entry, kind)
        if request.query.get("wait", "0") in ("0", ""):
            return _json({"id": entry.id, "message_id": entry.message_id}, status=202)
        await delivery
        return _json({**msgspec.to_builtins(entry), "reply": _reply_to(chat, entry)})

    def _attach(self, request: web.Request, kind: Kind, fields: dict[str, Any]) -> None:
        """Files that a message names and that were not given are made up."""
        for name in _MEDIA_FIELDS:
            if fields.get(name) == "":
                picture = kind.name if name == "MediaId" else "image"
                fields[name], _ = self._company.media.add(picture, *sample(picture))
        if fields.get("PicUrl") == "" and "MediaId" in fields:
            fields["PicUrl"] = _media_url(request, fields["MediaId"])

    async def changes(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: what is new or different in a chat, and the books."""
        chat = self._chat(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        seen = 0
        while not self._company.closed and request.transport is not None and not request.transport.is_closing():
            entries = chat.since(seen)
            seen = max((entry.revision for entry in entries), default=seen)
            news = {"entries": entries, "books": self._company.books}
            try:
                await response.write(b"data: " + msgspec.json.encode(news) + b"\n\n")
            except ConnectionError:
                break
            await chat.change(_HEARTBEAT_S)
        return response


def _understand(asked: dict[str, Any]) -> tuple[Kind, dict[str, Any], str]:
    """What the member sends: kind, fields, MsgId if given. Raises ValueError."""
    if "text" in asked:
        asked = {"Content": asked.pop("text"), **asked}
    name = asked.get("type", "text")
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"type {name!r} is not known: it is one of {', '.join(KINDS)}")
    kind = KINDS[name]
    message_id = asked.get("message_id", "")
    if message_id and (kind.event or not isinstance(message_id, str) or not message_id.isdigit()):
        raise ValueError("message_id is a string of digits, and only messages have one")
    fields = payload(kind, {key: value for key, value in asked.items() if key not in _KEPT})
    if kind.name == "text" and "Content" not in asked:
        raise ValueError('say what the member writes: {"text": "…"}, or another "type"')
    return kind, fields, message_id


def _reply_to(chat: Chat, entry: Entry) -> str | None:
    return next((other.text for other in chat.entries if other.in_reply_to == entry.id), None)


def _media_url(request: web.Request, media_id: str) -> str:
    return f"{request.url.origin()}/simulator/media/{media_id}"
