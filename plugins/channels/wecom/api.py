"""Calling WeCom's API over HTTP, and reading how it answers.

Secrets and access tokens travel in the query, and aiohttp's errors quote it: so none of them leaves this module.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
import orjson

from assistant.errors import PlatformMisconfigured, PlatformOutcomeUnknown, PlatformUnavailable
from plugins.channels.wecom.advice import failure

_TIMEOUT = aiohttp.ClientTimeout(total=15, connect=5)
_TRANSFER_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=5, sock_read=15)
_MAX_ANSWER_BYTES = 8 << 20
_JSON = {"Content-Type": "application/json; charset=utf-8"}


class Api:
    """The way to the platform.

    Each call raises what `failure` makes of the platform's error codes; PlatformUnavailable if nothing was done;
    PlatformOutcomeUnknown if something was sent and no answer came; PlatformMisconfigured for an answer that is
    not WeCom's.
    """

    def __init__(self, http: aiohttp.ClientSession, base: str, proxy: str | None) -> None:
        self._http = http
        self._base = f"{base}/cgi-bin/"
        self._proxy = proxy

    async def get(self, path: str, query: Mapping[str, str], *, token_requested: bool = False) -> dict[str, Any]:
        """Read something. When no answer comes, nothing was done."""
        with _trouble(PlatformUnavailable):
            async with self._request("GET", path, query) as response:
                return await _answer(response, token_requested=token_requested)

    async def post(self, path: str, query: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """Do something. `body` is JSON."""
        with _trouble(PlatformOutcomeUnknown):
            async with self._request("POST", path, query, data=body, headers=_JSON) as response:
                return await _answer(response)

    async def upload(self, path: str, query: Mapping[str, str], form: aiohttp.FormData) -> dict[str, Any]:
        """Give a file."""
        with _trouble(PlatformOutcomeUnknown):
            async with self._request("POST", path, query, data=form, timeout=_TRANSFER_TIMEOUT) as response:
                return await _answer(response)

    async def open(self, path: str, query: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Begin to read a file. The caller closes it, and reads it within `reading`."""
        with reading():
            response = await self._request("GET", path, query, timeout=_TRANSFER_TIMEOUT)
            if response.status == 200 and "Content-Disposition" in response.headers:
                return response
            async with response:
                await _answer(response)
        raise PlatformUnavailable("WeCom answered with neither a file nor an error: this is repeated by itself")

    def _request(
        self, method: str, path: str, query: Mapping[str, str], **options: Any
    ) -> "aiohttp.client._RequestContextManager":
        options.setdefault("timeout", _TIMEOUT)
        return self._http.request(
            method, self._base + path, params=query, proxy=self._proxy, allow_redirects=False, **options
        )


@contextmanager
def reading() -> Iterator[None]:
    """Around reading what `Api.open` opened. Raises PlatformUnavailable."""
    with _trouble(PlatformUnavailable):
        yield


@contextmanager
def _trouble(after_sending: type[PlatformUnavailable | PlatformOutcomeUnknown]) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
        raise PlatformUnavailable(
            f"WeCom was not reached ({type(error).__name__}): check the network, the proxy and api_base / "
            "无法连接企业微信：请检查网络、代理与 api_base"
        ) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise after_sending(
            f"WeCom did not answer ({type(error).__name__}): this is repeated by itself / 企业微信未响应，会自动重试"
        ) from None


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Until its end, or until it is longer than any answer: what is left out makes it no JSON."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            break
    return bytes(body)


async def _answer(response: aiohttp.ClientResponse, *, token_requested: bool = False) -> dict[str, Any]:
    if response.status >= 500:
        raise PlatformUnavailable(
            f"WeCom answered HTTP {response.status}: this is repeated by itself / 企业微信服务异常，会自动重试"
        )
    try:
        answer = orjson.loads(await _body(response))
        errcode = int(answer.get("errcode", 0))
    except (ValueError, TypeError, AttributeError):
        raise PlatformMisconfigured(
            f"HTTP {response.status} without WeCom's JSON: check api_base and the proxy in between / "
            "响应不是企业微信的 JSON：请检查 api_base 与中间的代理"
        ) from None
    if errcode:
        raise failure(errcode, str(answer.get("errmsg", "")), token_requested=token_requested)
    return dict(answer)
