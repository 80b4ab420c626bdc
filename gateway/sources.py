"""From where an account may be called back: its own list, and the one that its platform publishes.

The published list is fetched in the background and kept in memory. While none was fetched since the start,
callbacks are accepted from everywhere, counted and logged: their signature is still checked, and refusing them
would lose messages because the platform's API is away.
"""

import asyncio
import functools
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from assistant import telemetry
from assistant.api.message.v1.message_pb2 import Account
from assistant.api.reply.v1.reply_pb2 import ListCallbackSourcesRequest
from assistant.errors import AssistantError, SourceNotPermitted
from assistant.policy import Network, Policy
from assistant.settings import DEFAULT_ACCOUNT

if TYPE_CHECKING:
    from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceAsyncStub

REFRESH_S = 6 * 3600.0
"""How often the platforms are asked. Lists change seldom, and for a while old and new addresses both call."""
_RETRY_S = 5.0
_MAX_RETRY_S = 600.0
_TIMEOUT_S = 10.0
_REMEMBERED = 4_096

_RANGES = Gauge(
    "assistant_callback_source_ranges",
    "Address ranges that the platform published for its callbacks. 0: none is known, all are accepted.",
    ["channel", "account"],
)
_UNCHECKED = Counter(
    "assistant_unchecked_callbacks", "Callbacks accepted from anywhere, as no published list is known.", ["channel"]
)
_count_unchecked = functools.cache(_UNCHECKED.labels)


class Sources:
    """The addresses of all accounts that have a list."""

    def __init__(
        self,
        policies: Mapping[tuple[str, str], Policy],
        reply: "ReplyServiceAsyncStub",
        *,
        refresh_s: float = REFRESH_S,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._reply = reply
        self._refresh_s = refresh_s
        self._retry_s = retry_s
        self._lists = {names: _List(*names, policy) for names, policy in policies.items()}

    @classmethod
    def of(cls, policies: Mapping[tuple[str, str], Policy], reply: "ReplyServiceAsyncStub") -> "Sources | None":
        """None if no account has a list: then there is nothing to check."""
        listed = {names: policy for names, policy in policies.items() if policy.callback_sources}
        return cls(listed, reply) if listed else None

    def check(self, account: Account, address: str) -> None:
        """Whether the account may be called back from this address. Raises SourceNotPermitted."""
        listed = self._lists.get((account.channel, account.name))
        if listed is not None:
            listed.check(address)

    async def keep_fresh(self) -> None:
        """Ask the platforms for what they publish, now and again, until cancelled."""
        asked = [listed for listed in self._lists.values() if listed.asks_platform]
        await asyncio.gather(*(self._keep_fresh(listed) for listed in asked))

    async def _keep_fresh(self, listed: "_List") -> None:
        pause_s = self._retry_s
        while True:
            request = ListCallbackSourcesRequest(account=listed.account)
            try:
                published = await self._reply.ListCallbackSources(request, timeout=_TIMEOUT_S)
                listed.publish([ipaddress.ip_network(network) for network in published.networks])
            except (AssistantError, ValueError) as error:
                listed.report(error)
                await asyncio.sleep(pause_s)
                pause_s = min(_MAX_RETRY_S, pause_s * 2)
            else:
                pause_s = self._retry_s
                await asyncio.sleep(self._refresh_s)


class _List:
    """The addresses of one account."""

    def __init__(self, channel: str, name: str, policy: Policy) -> None:
        self.account = Account(channel=channel, name=name)
        self.asks_platform = policy.asks_platform_for_sources
        self._setting = f"channels.{channel}{'' if name == DEFAULT_ACCOUNT else f'.accounts.{name}'}.callback_sources"
        self._named = policy.named_sources()
        self._published: list[Network] = []
        self._ranges = _RANGES.labels(channel, name) if self.asks_platform else None
        self._holds = _holder(self._named)

    def check(self, address: str) -> None:
        """Raises SourceNotPermitted."""
        if self._holds(address):
            return
        if self.asks_platform and not self._published:
            _count_unchecked(self.account.channel).inc()
            return
        among = f", nor in the {len(self._published)} that the platform publishes" if self._published else ""
        raise SourceNotPermitted(
            f"callbacks are not accepted from {address or 'an unknown address'}: "
            f"it is in no range of {self._setting}{among}. If it is a proxy in front of Envoy, set edge.trusted_hops"
        )

    def publish(self, networks: list[Network]) -> None:
        """The platform told its addresses. An empty list is none. Raises ValueError."""
        if not networks:
            raise ValueError("the platform published no address at all")
        changed = set(networks) != set(self._published)
        self._published = networks
        if self._ranges is not None:
            self._ranges.set(len(networks))
        if changed:
            self._holds = _holder([*self._named, *networks])
            telemetry.info("callback_sources_changed", **self._names(), ranges=len(networks))

    def report(self, error: AssistantError | ValueError) -> None:
        """It could not be asked, or told nothing that makes sense: what it told last goes on to count."""
        telemetry.warning(
            "callback_sources_unknown" if not self._published else "callback_sources_not_refreshed",
            **self._names(),
            reason=error.reason if isinstance(error, AssistantError) else "INVALID_ANSWER",
            detail=str(error),
            ranges=len(self._published),
        )

    def _names(self) -> dict[str, str]:
        return {"channel": self.account.channel, "account": self.account.name}


def _holder(networks: Iterable[Network]) -> Callable[[str], bool]:
    """Says whether an address lies in one of the networks; remembers the answers, as platforms call from a few."""
    networks = tuple(networks)

    @functools.lru_cache(_REMEMBERED)
    def holds(text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in networks)

    return holds
