"""The accounts that this process delivers for, each with its way to the platform."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import aiohttp
from prometheus_client import Gauge

from assistant import plugin
from assistant.api.message.v1.message_pb2 import Account
from assistant.errors import (
    AssistantError,
    PlatformMisconfigured,
    PlatformThrottled,
    PlatformUnavailable,
    UnknownAccount,
)
from assistant.plugin import Sender
from assistant.settings import DEFAULT_ACCOUNT, Source
from reply_svc.clock import Clock
from reply_svc.pacing import Pacer
from reply_svc.tokens import TokenCache

T = TypeVar("T")

CHECK_AGAIN_S = 10.0
"""Whoever asks how an account stands gets an answer that is at most this old."""
PROBE_EVERY_S = 30.0
"""How often an account that the platform refuses is looked at again."""
DEPARTMENTS_LIFETIME_S = 600.0
"""How long it counts which department lies within which."""
_CHECK_TIMEOUT_S = 4.0
_DEFAULT_PAUSE_S = 60.0
_MAX_PARALLEL_CALLS = 64

_connected = Gauge(
    "assistant_platform_connected", "Whether the platform accepts us: 1, else 0.", ("channel", "account")
)


@dataclass(frozen=True)
class Checked:
    """What the platform said of an account, and when (seconds since 1970). No error: it accepts us."""

    at: float
    error: AssistantError | None


class Connection:
    """One account's way to its platform: token, quotas, and a gate that is closed while calling is useless."""

    def __init__(self, name: str, sender: Sender, clock: Clock) -> None:
        self.name = name
        self.sender = sender
        self.pacer = Pacer(sender.quotas, clock)
        self._tokens = TokenCache(sender.fetch_token, clock)
        self._clock = clock
        self._parallel = asyncio.Semaphore(_MAX_PARALLEL_CALLS)
        self._open = asyncio.Event()
        self._open.set()
        self._opening: asyncio.Task[None] | None = None
        self._checking = asyncio.Lock()
        self._checked = Checked(float("-inf"), None)
        self._listing = asyncio.Lock()
        self._departments: Mapping[str, str] = {}
        self._departments_until = float("-inf")

    async def call(self, call: Callable[[str], Awaitable[T]]) -> T:
        """Call the platform with a token, when few enough calls are under way. Raises what the call raises."""
        async with self._parallel:
            return await self._tokens.with_token(call)

    async def check(self, max_age_s: float = CHECK_AGAIN_S) -> Checked:
        """Whether the platform accepts us, asked at most `max_age_s` ago."""
        async with self._checking:
            if self._clock.now() >= self._checked.at + max_age_s:
                self._checked = Checked(self._clock.now(), await self._ask())
        return self._checked

    async def departments_of(self, member_id: str) -> set[str]:
        """Ids of the departments that a member is in, and of those above them. Raises what asking fails with."""
        own = await self.call(partial(self.sender.departments_of, member_id))
        async with self._listing:
            if self._clock.now() >= self._departments_until:
                self._departments = await self.call(self.sender.departments)
                self._departments_until = self._clock.now() + DEPARTMENTS_LIFETIME_S
        return _with_those_above(own, self._departments)

    async def ready(self) -> None:
        """Return when the gate is open."""
        await self._open.wait()

    def trouble(self, error: AssistantError) -> None:
        """Close the gate after an error that may concern every call of the account.

        It opens after the time that the platform asks for; if an operator must act, when a check says that one
        has, or that only some calls are refused.
        """
        if not self._open.is_set():
            return
        if isinstance(error, PlatformThrottled):
            opening = self._clock.sleep(error.retry_after_s or _DEFAULT_PAUSE_S)
        elif isinstance(error, PlatformMisconfigured):
            opening = self._accepted()
        else:
            return
        self._open.clear()
        self._opening = asyncio.create_task(self._open_after(opening))

    def close(self) -> None:
        """Stop what runs in the background."""
        if self._opening:
            self._opening.cancel()

    async def _open_after(self, opening: Awaitable[None]) -> None:
        try:
            await opening
        finally:
            self._open.set()

    async def _accepted(self) -> None:
        while isinstance((await self.check(max_age_s=0)).error, PlatformMisconfigured):
            await self._clock.sleep(PROBE_EVERY_S)

    async def _ask(self) -> AssistantError | None:
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                await self._tokens.with_token(self.sender.check)
        except AssistantError as error:
            return error
        except TimeoutError:
            return PlatformUnavailable(
                f"the platform did not answer within {_CHECK_TIMEOUT_S:.0f} s: check the network and the proxy"
            )
        return None


def _with_those_above(departments: Iterable[str], above: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    for department in departments:
        while department and department not in found:
            found.add(department)
            department = above.get(department, "")
    return found


class Connections:
    """All of them, by account."""

    def __init__(self, by_account: dict[tuple[str, str], Connection]) -> None:
        self._by_account = by_account

    @classmethod
    def configured(cls, source: Source, http: aiohttp.ClientSession, clock: Clock) -> "Connections":
        """One for each configured account. A channel without accounts is not even imported. Raises InvalidSetting."""
        return cls(
            {
                (name, account): Connection(name, plugin.load("channels", name, "sender")(settings, http), clock)
                for name, channel in plugin.channels().items()
                for account, settings in source.accounts(channel.sender, name, channel.settings()).items()
            }
        )

    def of(self, account: Account) -> Connection:
        """Raises UnknownAccount."""
        key = (account.channel, account.name or DEFAULT_ACCOUNT)
        if key not in self._by_account:
            known = ", ".join("/".join(names) for names in self._by_account) or "none"
            raise UnknownAccount(f"reply_svc has no account {'/'.join(key)}: configured are {known}")
        return self._by_account[key]

    async def check(self) -> None:
        """Ask every platform whether it accepts us, for the metrics."""
        await asyncio.gather(*(self._check(*names) for names in self._by_account))

    async def _check(self, channel: str, account: str) -> None:
        checked = await self._by_account[channel, account].check()
        _connected.labels(channel, account).set(checked.error is None)

    def forget_idle(self) -> None:
        """Let go of what is remembered of recipients and no longer needed."""
        for connection in self._by_account.values():
            connection.pacer.forget_idle()

    def close(self) -> None:
        """Stop what runs in the background."""
        for connection in self._by_account.values():
            connection.close()
