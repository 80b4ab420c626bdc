"""The platform's API: `POST /token`, `POST /messages`, `GET /account`."""

from collections.abc import Iterable
from typing import Any

import aiohttp
import msgspec
from google.protobuf.json_format import MessageToDict

from assistant import plugin
from assistant.api.message.v1.message_pb2 import Content, Recipient
from assistant.errors import (
    AssistantError,
    PlatformMisconfigured,
    PlatformOutcomeUnknown,
    PlatformRefused,
    PlatformThrottled,
    PlatformTokenRejected,
    PlatformUnavailable,
)
from assistant.plugin import AccessToken, Receipt
from plugins.channels.loopback import SenderSettings

_TIMEOUT = aiohttp.ClientTimeout(total=5)


class Sender(plugin.Sender):
    """Sends as one account."""

    def __init__(self, settings: SenderSettings, http: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._http = http

    async def fetch_token(self) -> AccessToken:
        """Exchange the secret for a token."""
        answer = await self._call("POST", "/token", {}, msgspec.json.encode({"secret": str(self._settings.secret)}))
        return AccessToken(answer["token"], float(answer["lifetime_s"]))

    def render(self, delivery_id: str, number: int, recipient: Recipient, content: Iterable[Content]) -> list[bytes]:
        """One request for all: the platform takes our content as it is, and `id` once."""
        request = {
            "id": delivery_id,
            "to": _plain(recipient),
            "content": [_plain(piece) for piece in content],
        }
        return [msgspec.json.encode(request, order="deterministic")]

    async def send(self, request: bytes, token: str) -> Receipt:
        """Send. The platform recognises a repeated request by the `id` in it."""
        answer = await self._call("POST", "/messages", _bearer(token), request)
        return Receipt(platform_message_id=str(answer["id"]))

    async def check(self, token: str) -> None:
        """Ask for our own account."""
        await self._call("GET", "/account", _bearer(token))

    async def _call(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> dict[str, Any]:
        url = self._settings.api_base + path
        headers = {"Content-Type": "application/json"} | headers
        try:
            async with self._http.request(method, url, data=body, headers=headers, timeout=_TIMEOUT) as response:
                if response.status != 200:
                    raise _error(response)
                answer: dict[str, Any] = await response.json()
                return answer
        except aiohttp.ClientConnectorError:
            raise PlatformUnavailable(
                f"{self._settings.api_base} cannot be reached: is the platform running?"
            ) from None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise PlatformOutcomeUnknown(f"{self._settings.api_base} gave no answer to {path}") from None


def _plain(message: Content | Recipient) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _error(response: aiohttp.ClientResponse) -> AssistantError:
    """The HTTP status is the platform's error code."""
    code = str(response.status)
    match response.status:
        case 401:
            return PlatformTokenRejected("the platform no longer takes the access token", error_code=code)
        case 403:
            return PlatformMisconfigured("the platform refuses the secret: configure the right one", error_code=code)
        case 429:
            return PlatformThrottled(
                "the platform wants fewer calls", retry_after_s=_retry_after(response), error_code=code
            )
        case status if status >= 500:
            return PlatformUnavailable("the platform failed", error_code=code)
        case _:
            return PlatformRefused("the platform refuses the request", error_code=code)


def _retry_after(response: aiohttp.ClientResponse) -> float:
    given = response.headers.get("Retry-After", "")
    return float(given) if given.isdigit() else 1.0
