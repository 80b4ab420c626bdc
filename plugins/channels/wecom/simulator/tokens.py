"""Access tokens of the one app that lives here (91039)."""

import hmac
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from plugins.channels.wecom.simulator.errors import ApiError
from plugins.channels.wecom.simulator.rules import Rules

_REMEMBERED = 16
"""So many tokens of earlier are told apart from wrong ones."""


class Tokens:
    """Gives out one token at a time for the app's secret, and knows which are good."""

    def __init__(self, corpid: str, secret: str, rules: Rules, clock: Callable[[], float] = time.time) -> None:
        self.rules = rules
        self._corpid = corpid
        self._secret = secret
        self._clock = clock
        self._expires_at: OrderedDict[str, float] = OrderedDict()
        self._wrong_secrets: dict[str, deque[float]] = {}

    def issue(self, corpid: str, secret: str, address: str) -> tuple[str, int]:
        """The token and its remaining life in seconds; the same one while it lives. Raises ApiError."""
        now = self._clock()
        wrong = self._wrong_secrets.setdefault(address, deque(maxlen=1_000_000))
        while wrong and wrong[0] <= now - 3600:
            wrong.popleft()
        if len(wrong) >= self.rules.wrong_secrets_per_hour:
            raise ApiError(45009, "api freq out of limit")
        if corpid != self._corpid:
            raise ApiError(40013, "invalid corpid")
        if not hmac.compare_digest(secret.encode(), self._secret.encode()):
            wrong.append(now)
            raise ApiError(40001, "invalid credential")
        token, expires_at = next(reversed(self._expires_at.items()), ("", 0.0))
        if expires_at <= now:
            token, expires_at = secrets.token_urlsafe(160), now + self.rules.token_lifetime_s
            self._expires_at[token] = expires_at
            if len(self._expires_at) > _REMEMBERED:
                self._expires_at.popitem(last=False)
        return token, int(expires_at - now)

    def check(self, token: str) -> None:
        """Raises ApiError unless the token is good now."""
        if not token:
            raise ApiError(41001, "access_token missing")
        if token not in self._expires_at:
            raise ApiError(40014, "invalid access_token")
        if self._expires_at[token] <= self._clock():
            raise ApiError(42001, "access_token expired")

    def withdraw(self) -> None:
        """No token given out so far is good any longer."""
        self._expires_at.clear()
