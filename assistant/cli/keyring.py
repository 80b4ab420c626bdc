"""The callback keys of one account, on all replicas of crypto_svc."""

import asyncio
import contextvars
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from assistant.api.crypto.v1 import crypto_pb2
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.api.message.v1.message_pb2 import Account
from assistant.client import connect, replicas
from assistant.errors import DeadlineExceeded, KeyExists, ServiceUnavailable
from assistant.tls import Identity

if TYPE_CHECKING:
    from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceAsyncStub

_TIMEOUT_S = 5.0
_EVERYWHERE_WITHIN_S = 30.0
_AGAIN_S = 0.1

T = TypeVar("T")
Listed = Mapping[str, crypto_pb2.Key]


@dataclass(frozen=True)
class Key:
    """One key as all replicas together know it."""

    key_id: str
    added_at: datetime | None
    last_used_at: datetime | None
    retired_at: datetime | None
    """Set once no replica takes it any longer."""
    configured: bool
    """Whether it is in the configuration that crypto_svc was started with."""
    live_on: int
    """How many replicas take it."""
    replicas: int
    """How many there are."""

    @property
    def live_everywhere(self) -> bool:
        """Whether every replica takes it."""
        return self.live_on == self.replicas

    @property
    def live(self) -> bool:
        """Whether any replica takes it."""
        return self.live_on > 0

    @property
    def age_days(self) -> int | None:
        """Full days since it was added. None: nobody knows."""
        return None if self.added_at is None else (datetime.now(UTC) - self.added_at).days

    @property
    def state(self) -> str:
        """For people: live, retired, or where it is live."""
        if self.live and not self.live_everywhere:
            return f"live on {self.live_on} of {self.replicas}"
        return "live" if self.live else "retired"


class Keyring:
    """Asks every server that `target` stands for: a name may stand for several."""

    def __init__(self, target: str, identity: Identity | None, channel: str, account: str) -> None:
        self.target = target
        """Where crypto_svc is: what `assistant.client.connect` takes."""
        self._identity = identity
        self._account = Account(channel=channel, name=account)

    def known(self) -> list[Key]:
        """All keys, newest first. Raises ServiceUnavailable and what crypto_svc answers."""
        return _run(self._known())

    def add(self, key_id: str, material: Mapping[str, str]) -> int:
        """Add a key. Returns when every replica takes it: how many they are.

        Raises ServiceUnavailable, DeadlineExceeded and what crypto_svc answers. Whatever was done may be repeated.
        """
        request = crypto_pb2.AddKeyRequest(account=self._account, key_id=key_id, material=material)

        async def add(stub: "CryptoServiceAsyncStub") -> None:
            answer = await stub.AddKey(request, timeout=_TIMEOUT_S)
            if answer.key.HasField("retired_at"):
                raise KeyExists(f"the key {key_id} was retired, and does not come back: choose another key and name")

        return _run(self._everywhere(lambda keys: key_id in keys, add))

    def retire(self, key_id: str) -> int:
        """Retire a key. Returns when no replica takes it any longer: how many they are.

        Raises ServiceUnavailable, DeadlineExceeded and what crypto_svc answers. Whatever was done may be repeated.
        """
        request = crypto_pb2.RetireKeyRequest(account=self._account, key_id=key_id)
        return _run(
            self._everywhere(
                lambda keys: key_id in keys and keys[key_id].HasField("retired_at"),
                lambda stub: stub.RetireKey(request, timeout=_TIMEOUT_S),
            )
        )

    async def _known(self) -> list[Key]:
        listed = list((await self._listed()).values())
        names = dict.fromkeys(key_id for keys in listed for key_id in keys)
        return [_merged([keys[key_id] for keys in listed if key_id in keys], len(listed)) for key_id in names]

    async def _everywhere(
        self, done: Callable[[Listed], bool], change: "Callable[[CryptoServiceAsyncStub], Awaitable[Any]]"
    ) -> int:
        """Ask each replica to change, also those that come meanwhile, until it is done on all that are there."""
        deadline, asked = time.monotonic() + _EVERYWHERE_WITHIN_S, set[str]()
        while True:
            listed = await self._listed()
            lacking = [address for address, keys in listed.items() if address not in asked or not done(keys)]
            if not lacking:
                return len(listed)
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"not every replica of crypto_svc did it: {', '.join(lacking)} did not. Try again"
                )
            for address in lacking:
                await self._ask(address, change)
                asked.add(address)
            await asyncio.sleep(_AGAIN_S)

    async def _listed(self) -> dict[str, Listed]:
        """What each replica lists, by its address."""
        request = crypto_pb2.ListKeysRequest(account=self._account)
        try:
            addresses = await replicas(self.target)
        except OSError as error:
            raise ServiceUnavailable(f"crypto_svc is not found at {self.target}: {error.strerror}") from None
        answers = await asyncio.gather(
            *(self._ask(address, lambda stub: stub.ListKeys(request, timeout=_TIMEOUT_S)) for address in addresses)
        )
        return {
            address: {key.key_id: key for key in answer.keys}
            for address, answer in zip(addresses, answers, strict=True)
        }

    async def _ask(self, address: str, ask: "Callable[[CryptoServiceAsyncStub], Awaitable[T]]") -> T:
        async with connect(address, multiplex=False, identity=self._identity, server="crypto_svc") as channel:
            try:
                return await ask(CryptoServiceStub(channel))
            except ServiceUnavailable as error:
                raise ServiceUnavailable(f"crypto_svc does not answer: {error.message}. Is it up?") from None


@functools.cache
def _runner() -> asyncio.Runner:
    """One event loop for all calls: gRPC complains of its own when it finds another one."""
    return asyncio.Runner()


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    return _runner().run(coroutine, context=contextvars.copy_context())  # with the request id of now


def _merged(known: Sequence[crypto_pb2.Key], all_replicas: int) -> Key:
    added = [_time(key.added_at) for key in known if key.HasField("added_at")]
    used = [_time(key.last_used_at) for key in known if key.HasField("last_used_at")]
    retired = [_time(key.retired_at) for key in known if key.HasField("retired_at")]
    return Key(
        key_id=known[0].key_id,
        added_at=min(added, default=None),
        last_used_at=max(used, default=None),
        retired_at=max(retired) if len(retired) == len(known) else None,
        configured=any(key.configured for key in known),
        live_on=len(known) - len(retired),
        replicas=all_replicas,
    )


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)
