"""Access tokens: fetched once for all who need one, renewed before they end, forgotten when refused."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from prometheus_client import Counter

from assistant import telemetry
from assistant.errors import AssistantError, Internal, PlatformMisconfigured, PlatformTokenRejected
from assistant.plugin import AccessToken
from reply_svc.clock import Clock

T = TypeVar("T")

RENEW_BEFORE_S = 300.0
"""A token is renewed in the background when less than this of its life is left."""
REFUSED_PAUSE_S = 600.0
"""After the platform refused the secret, until it is asked again: many wrong secrets block our address."""
FAILED_PAUSE_S = 1.0
"""After any other failure, until the platform is asked again."""

_fetches = Counter("assistant_token_fetches", "Access tokens asked for.", ("outcome",))


class TokenCache:
    """The access token of one account."""

    def __init__(self, fetch: Callable[[], Awaitable[AccessToken]], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._token = ""
        self._renew_at = 0.0
        self._ends_at = 0.0
        self._flight: asyncio.Task[None] | None = None
        self._failure: AssistantError | None = None
        self._ask_again_at = 0.0

    async def get(self) -> str:
        """A token that should be good.

        Raises what fetching one raised; for a while after a failure the same again, without asking.
        """
        now = self._clock.now()
        flight = self._fetching(now) if now >= self._renew_at else None
        if now < self._ends_at:
            return self._token
        if flight:
            await asyncio.shield(flight)  # whoever stops waiting must not stop it for the others
        if self._failure:
            raise self._failure.with_traceback(None)
        return self._token  # just fetched: good for this once, however short its life

    def drop(self, token: str) -> None:
        """Forget a token that the platform refused, unless it was replaced already."""
        if token == self._token:
            self._ends_at = self._renew_at = 0.0

    async def with_token(self, call: Callable[[str], Awaitable[T]]) -> T:
        """Call the platform with a token; if it is refused, once more with a new one."""
        token = await self.get()
        try:
            return await call(token)
        except PlatformTokenRejected:
            self.drop(token)
        token = await self.get()
        try:
            return await call(token)
        except PlatformTokenRejected:
            self.drop(token)
            raise

    def _fetching(self, now: float) -> "asyncio.Task[None] | None":
        """The fetch under way; None while it is too early to ask again."""
        if self._flight is None and now >= self._ask_again_at:
            self._flight = asyncio.create_task(self._renew())
        return self._flight

    async def _renew(self) -> None:
        try:
            token = await self._fetch()
        except Exception as error:
            self._failed(error)
        else:
            self._take(token)
        finally:
            self._flight = None

    def _take(self, token: AccessToken) -> None:
        now = self._clock.now()
        self._token = token.value
        self._ends_at = now + token.lifetime_s
        self._renew_at = self._ends_at - min(RENEW_BEFORE_S, token.lifetime_s / 2)
        self._failure = None
        self._ask_again_at = 0.0
        _fetches.labels("ok").inc()

    def _failed(self, error: Exception) -> None:
        failure = error if isinstance(error, AssistantError) else Internal("no access token: reply_svc's log says why")
        pause_s = REFUSED_PAUSE_S if isinstance(error, PlatformMisconfigured) else FAILED_PAUSE_S
        self._failure = failure
        self._ask_again_at = self._clock.now() + max(pause_s, failure.retry_after_s or 0.0)
        _fetches.labels(failure.reason).inc()
        telemetry.error("token_fetch_failed", error)
