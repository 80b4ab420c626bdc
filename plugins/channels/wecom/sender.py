"""WeCom's API: access tokens, sending, recalling, files.

Source: WeCom developer documentation, 91039 获取access_token, 90236 发送应用消息, 94867 撤回应用消息,
90253 上传临时素材, 90254 获取临时素材, 92521 获取企业微信服务器的IP段, 90196 读取成员, 95350 获取子部门ID列表.
"""

import ipaddress
import re
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import aiohttp
import orjson

from assistant.api.message.v1.message_pb2 import CONVERSATION_KIND_GROUP, Content, Recipient
from assistant.api.reply.v1.reply_pb2 import (
    MEDIA_KIND_FILE,
    MEDIA_KIND_IMAGE,
    MEDIA_KIND_VIDEO,
    MEDIA_KIND_VOICE,
    MediaDescription,
    MediaKind,
)
from assistant.errors import (
    InvalidMedia,
    NotRecallable,
    PlatformMisconfigured,
    PlatformRefused,
    UnknownMedia,
)
from assistant.plugin import AccessToken, Fetched, Quota, Receipt, Uploaded
from assistant.plugin import Sender as Contract
from plugins.channels.wecom import SenderSettings
from plugins.channels.wecom.api import Api, reading
from plugins.channels.wecom.messages import messages

_MINUTES = 60.0
_CHUNK_BYTES = 64 * 1024

_DUPLICATE_INTERVAL_S = range(3600, 14401)
"""What the platform may be told of how long to recognise a repeated request: at most 4 hours (90236)."""
_BETWEEN_PARTS = 1_000
"""Deliveries: so many must lie between two answers before a part of one can equal the next part of the other."""

_MEDIA_LIFE = timedelta(days=3)
_MEGABYTE = 1 << 20
_MIN_MEDIA_BYTES = 6


class _Limits(NamedTuple):
    """What the platform takes as one kind of file (90253)."""

    name: str
    max_megabytes: int
    form: str
    begins: bytes

    def check(self, data: bytes) -> None:
        """Raises InvalidMedia."""
        if len(data) < _MIN_MEDIA_BYTES:
            raise InvalidMedia(f"the file has {len(data)} bytes, and WeCom takes none below {_MIN_MEDIA_BYTES}")
        if len(data) > self.max_megabytes * _MEGABYTE:
            raise InvalidMedia(
                f"the file has {len(data)} bytes, and WeCom takes at most {self.max_megabytes} MB as {self.name}"
            )
        if not re.match(self.begins, data, re.DOTALL):
            raise InvalidMedia(f"WeCom takes only {self.form} as {self.name}: convert it, or send it as a file")


_LIMITS: dict["MediaKind.ValueType", _Limits] = {
    MEDIA_KIND_IMAGE: _Limits("image", 10, "JPG and PNG", rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n"),
    MEDIA_KIND_VOICE: _Limits("voice", 2, "AMR", rb"#!AMR"),
    MEDIA_KIND_VIDEO: _Limits("video", 10, "MP4", rb"....ftyp"),
    MEDIA_KIND_FILE: _Limits("file", 20, "anything", rb""),
}


class Sender(Contract):
    """One self-built application."""

    quotas = (Quota(30, 1 * _MINUTES), Quota(1000, 60 * _MINUTES))
    """What one member may be sent by one application; the excess is dropped silently (90312 访问频率限制)."""

    def __init__(self, settings: SenderSettings, http: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._api = Api(http, settings.api_base, settings.proxy)

    async def fetch_token(self) -> AccessToken:
        """One gettoken. A wrong secret asked for often blocks our address for an hour: 45009 in 90313."""
        credentials = {"corpid": self._settings.corpid, "corpsecret": str(self._settings.secret)}
        answer = await self._api.get("gettoken", credentials, token_requested=True)
        return AccessToken(str(answer["access_token"]), float(answer["expires_in"]))

    # --- Messages -----------------------------------------------------------------------------------------

    def render(self, delivery_id: str, number: int, recipient: Recipient, content: Iterable[Content]) -> list[bytes]:
        """Requests of message/send."""
        common = {"touser": _member(recipient), "agentid": self._agentid(), "enable_duplicate_check": 1}
        requests = [
            orjson.dumps({**common, **message, "duplicate_check_interval": _duplicate_interval(number, part)})
            for part, message in enumerate(messages(content))
        ]
        if not requests:
            raise PlatformRefused("the answer has no words: WeCom takes no empty message")
        return requests

    async def send(self, request: bytes, token: str) -> Receipt:
        """Send to one member."""
        answer = await self._api.post("message/send", {"access_token": token}, request)
        if left_out := answer.get("invaliduser") or answer.get("unlicenseduser"):
            raise PlatformRefused(
                f"WeCom left out {left_out}: check that the member is in the app's visible range and has a licence / "
                f"企业微信未向 {left_out} 发送：请检查应用可见范围与成员的接口许可"
            )
        return Receipt(str(answer.get("msgid", "")))

    async def recall(self, platform_message_id: str, token: str) -> None:
        """Only the WeCom client forgets the message, and only within 24 hours."""
        body = orjson.dumps({"msgid": platform_message_id})
        try:
            await self._api.post("message/recall", {"access_token": token}, body)
        except PlatformRefused as refused:
            raise NotRecallable(str(refused), error_code=refused.metadata["error_code"]) from None

    async def check(self, token: str) -> None:
        """Ask for the addresses that callbacks come from: needs a token and a trusted address, and no permission."""
        await self._api.get("getcallbackip", {"access_token": token})

    # --- The company --------------------------------------------------------------------------------------

    async def callback_sources(self, token: str) -> list[str]:
        """Needs a token and a trusted address, and no permission. The platform advises to ask once a day (92521)."""
        answer = await self._api.get("getcallbackip", {"access_token": token})
        sources = answer.get("ip_list")
        if not isinstance(sources, list) or not sources:
            raise PlatformMisconfigured(
                "WeCom named no address that callbacks come from: check api_base and the proxy in between / "
                "企业微信未返回回调 IP：请检查 api_base 与中间的代理"
            )
        return [_network(str(source)) for source in sources]

    async def departments_of(self, member_id: str, token: str) -> list[str]:
        """Those that the application sees (90196). Every member is in one, so with none we must not guess."""
        answer = await self._api.get("user/get", {"access_token": token, "userid": member_id})
        departments = answer.get("department")
        if not isinstance(departments, list) or not departments:
            raise PlatformMisconfigured(
                f"WeCom does not tell in which department {member_id!r} is: add whole departments to the app's visible "
                f"range, not only members / 企业微信未返回成员 {member_id!r} 的部门：请在应用可见范围中添加部门"
            )
        return [str(department) for department in departments]

    async def departments(self, token: str) -> dict[str, str]:
        """Those within the application's visible range, and what lies below them (95350). 0 is above the root."""
        answer = await self._api.get("department/simplelist", {"access_token": token})
        listed = answer.get("department_id", ())
        return {str(one["id"]): str(one["parentid"]) if one.get("parentid") else "" for one in listed}

    def _agentid(self) -> int:
        if self._settings.agentid is None:
            raise PlatformMisconfigured(
                "agentid is not set, and WeCom needs it to send messages: "
                "ai-assistant-cli config set channels.wecom --agentid … / 未设置 agentid，无法主动发送消息"
            )
        return self._settings.agentid

    # --- Files --------------------------------------------------------------------------------------------

    async def upload_media(
        self, kind: "MediaKind.ValueType", description: MediaDescription, data: bytes, token: str
    ) -> Uploaded:
        """The handle is good for every application of the company."""
        limits = _LIMITS[kind]
        limits.check(data)
        form = aiohttp.FormData(quote_fields=False)  # names are read as they stand, in UTF-8
        form.add_field("media", data, filename=_file_name(description.name), content_type=description.media_type)
        answer = await self._api.upload("media/upload", {"access_token": token, "type": limits.name}, form)
        created = datetime.fromtimestamp(int(answer["created_at"]), UTC)
        return Uploaded(str(answer["media_id"]), created + _MEDIA_LIFE)

    async def fetch_media(self, media_id: str, token: str) -> Fetched:
        """Every application of the company can fetch it, for three days."""
        try:
            response = await self._api.open("media/get", {"access_token": token, "media_id": media_id})
        except PlatformRefused as refused:
            raise UnknownMedia(str(refused), error_code=refused.metadata["error_code"]) from None
        disposition = response.content_disposition
        description = MediaDescription(
            name=(disposition.filename if disposition else None) or "",
            media_type=response.content_type,
            size_bytes=response.content_length or 0,
        )
        return Fetched(description, _chunks(response))


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    with reading():
        async with response:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk


def _network(source: str) -> str:
    """An address, a range, or an address that ends with ".*", as a range."""
    given = source.strip()
    wildcards = given.split(".").count("*")
    if wildcards:
        given = f"{given.replace('*', '0')}/{32 - 8 * wildcards}"
    try:
        return str(ipaddress.ip_network(given))
    except ValueError:
        raise PlatformMisconfigured(
            f"WeCom named {source!r} among the addresses that callbacks come from, which is none: please report this / "
            f"企业微信返回的回调 IP {source!r} 无法识别：请反馈"
        ) from None


def _file_name(name: str) -> str:
    """Without what would end the header that it stands in."""
    return re.sub(r'[\x00-\x1f"\\/]', "_", name)


def _member(recipient: Recipient) -> str:
    """Whom to send to. A name that would reach others than one member is refused."""
    member = recipient.member.id
    if not member and recipient.conversation.kind != CONVERSATION_KIND_GROUP:
        member = recipient.conversation.id
    if not member:
        raise PlatformRefused("a WeCom application answers members only, and this recipient names none")
    if "|" in member or member.startswith("@"):
        raise PlatformRefused(f"{member!r} is not the userid of one member")
    return member


def _duplicate_interval(number: int, part: int) -> int:
    """Seconds within which the platform shows an equal request once: another for each part of each delivery.

    The platform compares whole requests (90236). Repeating a delivery repeats its interval, hence its request,
    and is recognised; another delivery that happens to say the same has another interval, hence another request,
    and is shown. An hour at least, as repeating goes on that long.

    10,801 deliveries in a row have intervals of their own; parts of one are far from each other, so that they do not
    meet those of the next. Two equal answers to one member, within the interval, whose numbers differ by just a
    multiple of that, would be shown as one.
    """
    return _DUPLICATE_INTERVAL_S[(number + part * _BETWEEN_PARTS) % len(_DUPLICATE_INTERVAL_S)]
