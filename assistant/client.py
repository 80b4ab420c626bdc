"""A service as its callers see it: deadline, retry, balance, request id.

    crypto = CryptoServiceStub(connect("127.0.0.1:7001"))
    opened = await crypto.OpenCallback(request, timeout=1.0)

Every call needs a `timeout` in seconds; errors are those of assistant.errors. Calls whose proto says that
they may be repeated (`idempotency_level`) are repeated while time is left: they outlive the restart of a server.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterable, AsyncIterator
from time import monotonic
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions

from assistant import tracing, wire
from assistant.backoff import Backoff
from assistant.errors import Cancelled, Overloaded, ServiceUnavailable
from assistant.mux import MAX_IN_FLIGHT
from assistant.replica import Replica
from assistant.tls import Certificates, Identity

__all__ = ["Channel", "connect", "replicas"]

_RESOLVE_EVERY_S = 2.0
_RESOLVE_AT_MOST_EVERY_S = 0.5


def connect(target: str, *, multiplex: bool = True, identity: Identity | None = None, server: str = "") -> "Channel":
    """A channel to a service, for generated stubs. Nothing is opened before the first call.

    `target` is "host:port", several of these with commas between, "dns:///host:port" or "unix:/path". A
    host with several addresses is as many replicas; each call goes to the one with the fewest in flight.
    `multiplex=False` makes every call a plain gRPC call. With an `identity` it speaks mutual TLS, to none but the
    process whose certificate has the name `server`, such as "crypto_svc".
    """
    return Channel(target, multiplex, identity, server)


class Channel(grpc.aio.Channel):
    """Made by `connect`. Belongs to the event loop of its first call."""

    def __init__(self, target: str, multiplex: bool, identity: Identity | None, server: str) -> None:
        self._target = target
        self._multiplex = multiplex
        self._identity = identity
        self._server = server
        self._opened: _Replicas | None = None

    @property
    def _replicas(self) -> "_Replicas":
        if self._opened is None:
            self._opened = _Replicas(self._target, self._multiplex, self._identity, self._server)
        return self._opened

    # --- What stubs ask for -------------------------------------------------------------------------------

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: object
    ) -> Any:
        """A function that makes one call and, awaited, gives the response.

        A request may also be given as bytes: serialised already.
        """
        repeatable = _repeatable(method)

        async def call(request: object, *, timeout: float) -> Any:  # noqa: ASYNC109 - as stubs have it
            serialised = request if isinstance(request, bytes) else request_serializer(request)
            payload = wire.checked(method, "request", serialised)
            replica = self._replicas.best()
            if replica is None:
                return response_deserializer(await persist(payload, _Attempts(repeatable, timeout)))
            began_at = monotonic()
            try:
                return response_deserializer(await _ask(replica, method, payload, timeout))
            except ServiceUnavailable as error:
                attempts = _Attempts(repeatable, timeout + began_at - monotonic())
                await attempts.again(error)
            return response_deserializer(await persist(payload, attempts))

        async def persist(payload: bytes, attempts: _Attempts) -> bytes:
            while True:
                try:
                    replica = await self._replicas.pick(attempts.deadline, patient=repeatable)
                    return await _ask(replica, method, payload, attempts.time_left_s())
                except ServiceUnavailable as error:
                    await attempts.again(error)

        return call if tracing.tracer is None else tracing.tracer.calling(method, call)

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: object
    ) -> Any:
        """A function that makes one call and gives the responses as an async iterator."""
        repeatable = _repeatable(method)

        async def call(request: object, timeout_s: float) -> AsyncIterator[Any]:
            payload = wire.checked(method, "request", request_serializer(request))
            attempts = _Attempts(repeatable, timeout_s)
            while True:
                try:
                    replica = await self._replicas.pick(attempts.deadline, patient=repeatable)
                    async for response in replica.server_streaming(method, payload, attempts.time_left_s()):
                        attempts.repeatable = False  # the caller has seen a part
                        yield response_deserializer(response)
                except ServiceUnavailable as error:
                    await attempts.again(error)
                else:
                    return

        def start(request: object, *, timeout: float) -> Any:
            return call(request, timeout)

        return start

    def stream_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: object
    ) -> Any:
        """A function that makes one call with an async iterator of requests and, awaited, gives the response.

        It is never repeated: the requests are gone.
        """

        async def call(requests: AsyncIterable[object], timeout_s: float) -> Any:
            payloads = (wire.checked(method, "request", request_serializer(request)) async for request in requests)
            attempts = _Attempts(False, timeout_s)
            replica = await self._replicas.pick(attempts.deadline, patient=False)
            return response_deserializer(await replica.client_streaming(method, payloads, attempts.time_left_s()))

        def start(requests: AsyncIterable[object], *, timeout: float) -> Any:
            return call(requests, timeout)

        return start

    def stream_stream(self, method: str, *_: object, **__: object) -> Any:
        """Not offered. Raises NotImplementedError."""
        raise NotImplementedError(f"{method}: no contract of ours streams both ways")

    # --- The rest of a channel ----------------------------------------------------------------------------

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY if any replica can be called; CONNECTING else."""
        if self._opened is None and not try_to_connect:
            return grpc.ChannelConnectivity.IDLE
        return grpc.ChannelConnectivity.READY if self._replicas.best() else grpc.ChannelConnectivity.CONNECTING

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return once the state is another."""
        while self.get_state(try_to_connect=True) is last_observed_state:
            await self._replicas.changed.wait()

    async def channel_ready(self) -> None:
        """Return once a replica can be called."""
        while self._replicas.best() is None:
            await self._replicas.changed.wait()

    async def close(self, grace: float | None = None) -> None:
        """Close all connections. What is in flight fails."""
        if self._opened is not None:
            await self._opened.close()

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _ask(replica: Replica, method: str, payload: bytes, time_left_s: float) -> bytes:
    answer = replica.unary(method, payload, time_left_s)
    try:
        return await answer
    except asyncio.CancelledError:
        replica.abandon(answer)
        raise


class _Attempts:
    """How often one call may be tried."""

    __slots__ = ("_backoff", "deadline", "repeatable")

    def __init__(self, repeatable: bool, timeout_s: float) -> None:
        self.repeatable = repeatable
        self.deadline = monotonic() + timeout_s
        self._backoff: Backoff | None = None

    def time_left_s(self) -> float:
        return self.deadline - monotonic()

    async def again(self, error: ServiceUnavailable) -> None:
        """Return when another attempt may be made; raise the error if none may."""
        self._backoff = self._backoff or Backoff()
        pause_s = self._backoff.next_s()
        if not self.repeatable or self.time_left_s() <= pause_s:
            raise error
        await asyncio.sleep(pause_s)


class _Replicas:
    """The servers that a target stands for."""

    def __init__(self, target: str, multiplex: bool, identity: Identity | None, server: str) -> None:
        self._target = target
        self._multiplex = multiplex
        self._identity = identity
        self._server = server
        self._connected: dict[tuple[str, Certificates | None], Replica] = {}
        self._ready: list[Replica] = []
        self._unresolved = ""
        self._closed = False
        self._waiting = 0
        self.changed = _Changed()
        self._keeper = asyncio.create_task(self._keep_resolved())
        self._retiring: dict[Replica, asyncio.Task[None]] = {}

    def best(self) -> Replica | None:
        """The one to call now; None if none is connected."""
        if len(self._ready) == 1:
            return self._ready[0]
        return min(self._ready, key=_burden, default=None)

    async def pick(self, deadline: float, *, patient: bool) -> Replica:
        """The one to call, once there is one.

        Raises ServiceUnavailable at the deadline or, if not `patient`, as soon as all attempts to connect
        failed; Cancelled once the channel is closed; Overloaded if too many wait already.
        """
        if self._waiting >= MAX_IN_FLIGHT:
            raise Overloaded(f"{MAX_IN_FLIGHT} calls wait for {self._target} already")
        self._waiting += 1
        try:
            return await self._first(deadline, patient)
        finally:
            self._waiting -= 1

    async def _first(self, deadline: float, patient: bool) -> Replica:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline - monotonic()):
                while (replica := self.best()) is None:
                    if self._closed:
                        raise Cancelled(f"the channel to {self._target} was closed")
                    if not patient and (failure := self._failure()):
                        raise ServiceUnavailable(f"{self._target} cannot be reached: {failure}")
                    await self.changed.wait()
                return replica
        raise ServiceUnavailable(f"{self._target} cannot be reached: {self._failure() or 'no answer in time'}")

    def _failure(self) -> str:
        """Why none is connected. Empty while it is still being tried."""
        failures = [replica.failure for replica in self._connected.values()] or [self._unresolved]
        return failures[0] if all(failures) else ""

    async def close(self) -> None:
        self._closed = True
        self._keeper.cancel()
        replicas = [*self._connected.values(), *self._retiring]
        self._connected.clear()
        self._tell()
        await asyncio.gather(self._keeper, *(replica.close() for replica in replicas), return_exceptions=True)
        await asyncio.gather(*self._retiring.values())

    async def _keep_resolved(self) -> None:
        """Follow what the target's host names stand for: every few seconds, and soon after a change of ours."""
        while not self._closed:
            try:
                self._set(await replicas(self._target))
            except OSError as error:
                self._unresolved = error.strerror or type(error).__name__
                self._tell()
            await asyncio.sleep(_RESOLVE_AT_MOST_EVERY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESOLVE_EVERY_S):
                    await self.changed.wait()

    def _set(self, addresses: list[str]) -> None:
        certificates = self._identity.current() if self._identity else None
        for address in addresses:
            if (address, certificates) not in self._connected:
                replica = Replica(address, self._multiplex, self._tell, certificates, self._server)
                self._connected[address, certificates] = replica
        for address, shown in list(self._connected):
            # With new certificates a connection is made beside the old one, which serves until the new one does.
            successor = self._connected.get((address, certificates)) if address in addresses else None
            if successor is None or (shown is not certificates and successor.ready):
                replica = self._connected.pop((address, shown))
                self._retiring[replica] = asyncio.create_task(self._retire(replica))
        self._tell()

    async def _retire(self, replica: Replica) -> None:
        await replica.retire()
        del self._retiring[replica]

    def _tell(self) -> None:
        self._ready = [replica for replica in self._connected.values() if replica.ready]
        self.changed.tell()


def _burden(replica: Replica) -> tuple[bool, int]:
    return (not replica.serving, replica.load)


class _Changed:
    """Wakes everybody who waits for a change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        self._event.set()
        self._event.clear()

    async def wait(self) -> None:
        await self._event.wait()


async def replicas(target: str) -> list[str]:
    """The addresses of all replicas that a target stands for now. Raises OSError."""
    found: list[str] = []
    for part in target.removeprefix("dns:///").split(","):
        found += [part.strip()] if part.startswith("unix:") else await _resolve_host(part.strip())
    return list(dict.fromkeys(found))


async def _resolve_host(address: str) -> list[str]:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.strip("[]"))
        return [address]
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A host with both kinds of address is one server, not two.
    family = min(answer[0] for answer in answers)
    return [f"{answer[4][0]}:{port}" for answer in answers if answer[0] == family]


def _repeatable(path: str) -> bool:
    """Whether the proto says that the method may be called again when the outcome of a call is unknown."""
    try:
        method = descriptor_pool.Default().FindMethodByName(path[1:].replace("/", "."))
    except KeyError:
        return False
    return method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
