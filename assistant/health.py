"""grpc.health.v1: who may be asked."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from assistant.dispatch import Call
from assistant.errors import UnknownService

OVERALL = ""
LIVENESS = "liveness"
"""Serving as long as the process answers, whatever it depends on."""


class Health:
    """Whether each service of a server is serving, and the server as a whole. Serves grpc.health.v1.Health.

    The server as a whole serves if all its services do and `set("", False)` was not called.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._states = dict.fromkeys((*services, OVERALL), True)
        self._draining = False
        self._closed = False
        self._listeners: set[Callable[[], None]] = set()

    def set(self, service: str, serving: bool) -> None:
        """Say whether a service (full name; "" the server as a whole) can be asked. On the loop only."""
        if service not in self._states:
            raise ValueError(f"{service!r} is not served here: known are {sorted(self._states)}")
        self._states[service] = serving
        self._notify()

    def serving(self, service: str) -> bool:
        """Whether a service can be asked. Raises UnknownService."""
        if service == LIVENESS:
            return True
        if service not in self._states:
            raise UnknownService(f"{service!r} is not served here")
        states = self._states.values() if service == OVERALL else (self._states[service],)
        return all(states) and not self._draining

    def drain(self) -> None:
        """Nothing serves any longer."""
        self._draining = True
        self._notify()

    def close(self) -> None:
        """End all watches."""
        self._closed = True
        self._notify()

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` whenever a state may have changed."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()

    def Check(self, request: HealthCheckRequest, call: Call) -> HealthCheckResponse:
        status = HealthCheckResponse.SERVING if self.serving(request.service) else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, call: Call) -> AsyncIterator[HealthCheckResponse]:
        changed = asyncio.Event()
        last = None
        with self.listening(changed.set):
            while not self._closed:
                status = self._watched(request.service)
                if status != last:
                    yield HealthCheckResponse(status=status)
                    last = status
                await changed.wait()
                changed.clear()

    def _watched(self, service: str) -> int:
        try:
            serving = self.serving(service)
        except UnknownService:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
