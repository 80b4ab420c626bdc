"""The platform's API, as far as an app needs it (WeCom developer documentation, chapter 服务端API)."""

import hashlib
import json
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from aiohttp import web

from plugins.channels.wecom.simulator import messages
from plugins.channels.wecom.simulator.callbacks import update_cards
from plugins.channels.wecom.simulator.chats import Chat
from plugins.channels.wecom.simulator.company import Company
from plugins.channels.wecom.simulator.errors import ApiError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_RECIPIENTS = {"touser": 1000, "toparty": 100, "totag": 100}
_DUPLICATE_CHECK_S = 1800


def application(company: Company, clock: Callable[[], float] = time.time) -> web.Application:
    """What is served below /cgi-bin."""
    api, desk = _Api(company), _Desk(company, clock)

    @web.middleware
    async def through_desk(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await desk.answer(request, handler)

    app = web.Application(middlewares=[through_desk])
    app.add_routes(
        [
            web.get("/gettoken", api.gettoken),
            web.get("/getcallbackip", api.callback_addresses),
            web.get("/get_api_domain_ip", api.addresses),
            web.get("/user/get", api.user),
            web.get("/department/simplelist", api.departments),
            web.post("/message/send", api.send),
            web.post("/message/recall", api.recall),
            web.post("/message/update_template_card", api.update_template_card),
            web.post("/media/upload", api.upload),
            web.get("/media/get", api.download),
        ]
    )
    return app


class _Desk:
    """Counts calls, lets go wrong what is to go wrong, and words errors as the platform does."""

    def __init__(self, company: Company, clock: Callable[[], float]) -> None:
        self._company = company
        self._clock = clock
        self._calls: dict[str, deque[float]] = {}

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._company.books.api_calls += 1
        interface = request.path.removeprefix("/cgi-bin/")
        try:
            response = await self._with_faults(interface, request, handler)
        except ApiError as error:
            self._company.books.api_errors += 1
            response = web.json_response(_failure(error, request.remote or ""))
        if late_s := self._company.faults.date_late_s:
            response.headers["Date"] = formatdate(self._clock() - late_s, usegmt=True)
        return response

    async def _with_faults(self, interface: str, request: web.Request, handler: Handler) -> web.StreamResponse:
        faults = self._company.faults
        if faults.only not in ("", interface):
            return await handler(request)
        if faults.drop_connection == "before":
            return _drop(request)
        await self._company.keep_waiting()
        if request.transport is None or request.transport.is_closing():
            return _drop(request)
        if faults.http_status:
            return web.Response(status=faults.http_status, text="the simulator was told to fail")
        if faults.error_calls and faults.error_code:
            faults.error_calls -= 1
            raise ApiError(faults.error_code, "the simulator was told to answer so")
        if faults.calls_per_minute:
            self._limit(interface, faults.calls_per_minute)
        response = await handler(request)
        return _drop(request) if faults.drop_connection == "after" else response

    def _limit(self, interface: str, calls_per_minute: int) -> None:
        now = self._clock()
        calls = self._calls.setdefault(interface, deque(maxlen=1_000_000))
        while calls and calls[0] <= now - 60:
            calls.popleft()
        if len(calls) >= calls_per_minute:
            raise ApiError(45009, "api freq out of limit")
        calls.append(now)


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # there is nobody left to read it


def _failure(error: ApiError, address: str) -> dict[str, Any]:
    hint = f"{time.time_ns()}{secrets.randbelow(10**6):06}"
    more = f"https://open.work.weixin.qq.com/devtool/query?e={error.code}"
    return {
        "errcode": error.code,
        "errmsg": f"{error.text}, hint: [{hint}], from ip: {address}, more info at {more}",
    }


def _success(**fields: Any) -> web.Response:
    return web.json_response(_told(**fields))


def _told(**fields: Any) -> dict[str, Any]:
    return {"errcode": 0, "errmsg": "ok", **fields}


class _Api:
    def __init__(self, company: Company) -> None:
        self._company = company

    # --- Who calls ----------------------------------------------------------------------------------------

    async def gettoken(self, request: web.Request) -> web.Response:
        corpid, secret = request.query.get("corpid", ""), request.query.get("corpsecret", "")
        if not corpid:
            raise ApiError(41002, "corpid missing")
        if not secret:
            raise ApiError(41004, "corpsecret missing")
        token, life_s = self._company.tokens.issue(corpid, secret, request.remote or "")
        return _success(access_token=token, expires_in=life_s)

    def _authorise(self, request: web.Request) -> None:
        self._company.tokens.check(request.query.get("access_token", ""))

    async def _body(self, request: web.Request) -> Mapping[str, Any]:
        """The JSON of an authorised call."""
        self._authorise(request)
        try:
            body = json.loads(await request.read())
        except ValueError:
            raise ApiError(40035, "invalid Request Parameter: the body is not JSON") from None
        if not isinstance(body, Mapping):
            raise ApiError(40035, "invalid Request Parameter: the body is no JSON object")
        return body

    def _check_agent(self, body: Mapping[str, Any]) -> None:
        agentid = body.get("agentid")
        if not isinstance(agentid, int):
            raise ApiError(40056, "invalid agentid")
        if str(agentid) != self._company.agentid:
            raise ApiError(301002, "not allow operate another agent with this accesstoken")

    # --- Small questions ----------------------------------------------------------------------------------

    async def callback_addresses(self, request: web.Request) -> web.Response:
        self._authorise(request)
        return _success(ip_list=self._company.rules.callback_addresses)

    async def addresses(self, request: web.Request) -> web.Response:
        self._authorise(request)
        return _success(ip_list=["127.0.0.1"])

    async def user(self, request: web.Request) -> web.Response:
        self._authorise(request)
        chat = self._employee(request.query.get("userid", ""))
        if chat is None:
            raise ApiError(60111, "userid not found")
        return _success(userid=chat.member, name=chat.member, department=chat.departments, status=1)

    async def departments(self, request: web.Request) -> web.Response:
        """What lies below one department, itself included; without `id` all."""
        self._authorise(request)
        above = self._company.rules.departments
        asked = request.query.get("id", "")
        if asked and (not asked.isdigit() or int(asked) not in above):
            raise ApiError(60003, "department not found")
        listed = [one for one in above if not asked or int(asked) in _upwards(one, above)]
        return _success(department_id=[{"id": one, "parentid": above[one], "order": one} for one in listed])

    def _employee(self, member: str) -> Chat | None:
        try:
            chat = self._company.chats.of(member)
        except ValueError:
            return None
        return chat if chat.employed else None

    # --- Messages -----------------------------------------------------------------------------------------

    async def send(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        self._check_agent(body)
        message = messages.by_api(body, self._company.media.has)
        fingerprint = hashlib.sha256(await request.read()).hexdigest()
        checks = body.get("enable_duplicate_check") == 1
        if checks:
            interval_s = body.get("duplicate_check_interval", _DUPLICATE_CHECK_S)
            if not isinstance(interval_s, int):
                raise ApiError(40058, "invalid Request Parameter: duplicate_check_interval")
            answered = self._company.recognise(fingerprint, interval_s)
            if answered is not None:
                return web.json_response(answered)
        chats, refused = self._recipients(body)
        answer = _told(**refused, **self._company.send(chats, message))
        if checks:
            self._company.remember(fingerprint, answer)
        return web.json_response(answer)

    def _recipients(self, body: Mapping[str, Any]) -> tuple[list[Chat], dict[str, str]]:
        """The chats of those who exist, and who is refused, in the words of the answer."""
        named = {field: _ids(body, field, most) for field, most in _RECIPIENTS.items()}
        if named["touser"] == ["@all"]:
            return self._company.chats.all(), {"invaliduser": "", "invalidparty": "", "invalidtag": ""}
        if not any(named.values()):
            raise ApiError(82001, "touser, toparty and totag are all empty")
        members = {member.lower(): self._employee(member) for member in named["touser"]}
        chats = [chat for chat in members.values() if chat is not None]
        refused = {
            "invaliduser": "|".join(member for member, chat in members.items() if chat is None),
            "invalidparty": "|".join(named["toparty"]),
            "invalidtag": "|".join(named["totag"]),
        }
        if not chats:
            raise ApiError(81013, "user & party & tag all invalid")
        return chats, refused

    async def recall(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        self._company.recall(str(body.get("msgid", "")))
        return _success()

    async def update_template_card(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        self._check_agent(body)
        members = body.get("userids", [])
        if not isinstance(members, list) or not (members or body.get("atall") == 1):
            raise ApiError(40058, "invalid Request Parameter: userids")
        change = _card_change(body)
        task_id = self._company.use_card_update(str(body.get("response_code", "")))
        found = {str(member): self._employee(str(member)) for member in members}
        chats = self._company.chats.all() if body.get("atall") == 1 else [chat for chat in found.values() if chat]
        for chat in chats:
            update_cards(chat, task_id, change)
        return _success(invaliduser=[member for member, chat in found.items() if chat is None])

    # --- Files --------------------------------------------------------------------------------------------

    async def upload(self, request: web.Request) -> web.Response:
        self._authorise(request)
        if not request.content_type.startswith("multipart/"):
            raise ApiError(44001, "empty media data")
        part = (await request.post()).get("media")
        if not isinstance(part, web.FileField):
            raise ApiError(44001, "empty media data")
        kind = request.query.get("type", "")
        media_id, file = self._company.media.add(kind, part.filename, part.content_type, part.file.read())
        return _success(type=kind, media_id=media_id, created_at=str(int(file.created_at)))

    async def download(self, request: web.Request) -> web.Response:
        self._authorise(request)
        file = self._company.media.get(request.query.get("media_id", ""))
        disposition = f"attachment; filename*=utf-8''{quote(file.name)}"
        return web.Response(
            body=file.data, content_type=file.content_type, headers={"Content-Disposition": disposition}
        )


def _upwards(department: int, above: Mapping[int, int]) -> list[int]:
    """A department and those above it."""
    found: list[int] = []
    while department in above and department not in found:
        found.append(department)
        department = above[department]
    return found


def _ids(body: Mapping[str, Any], field: str, most: int) -> list[str]:
    value = body.get(field, "")
    if not isinstance(value, str):
        raise ApiError(40058, f"invalid Request Parameter: {field} is not a string")
    ids = [one for one in value.split("|") if one]
    if len(ids) > most:
        raise ApiError(40031, f"invalid userid list: {field} names more than {most}")
    return ids


def _card_change(body: Mapping[str, Any]) -> dict[str, Any]:
    button, card = body.get("button"), body.get("template_card")
    if isinstance(button, Mapping) and isinstance(button.get("replace_name"), str):
        return {"replace_name": button["replace_name"]}
    if isinstance(card, Mapping):
        return {"template_card": card}
    raise ApiError(40058, "invalid Request Parameter: button or template_card missing")
