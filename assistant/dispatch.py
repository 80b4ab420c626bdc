"""One call of one method of a servicer: its deadline, request id, status and metrics.

Every call passes here, whichever way it came: as a gRPC call or as an operation on a stream (mux.py).
Either it gives the serialised response, or it raises an AssistantError. Whoever brings a call cancels it at
its deadline; here this becomes DeadlineExceeded.
"""

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from prometheus_client import Histogram

from assistant import telemetry, tracing, wire
from assistant.errors import (
    AssistantError,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    PayloadTooLarge,
    Unimplemented,
)

Servicers = Mapping[ServiceDescriptor, object]
"""What a server serves: each service's descriptor, and an object whose methods have the RPCs' names."""

DEFAULT_TIMEOUT_S = 60.0
"""For a unary call whose caller sets no deadline."""

# An edge at 0.5 s, where the alert on latency lies, and fine ones below: quantiles are interpolated.
_EDGES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_duration = Histogram("assistant_call_seconds", "Time to answer a call.", ("method", "code"), buckets=_EDGES_S)


class Call:
    """What a servicer's method is given beside its request."""

    __slots__ = ("_deadline", "caller", "method", "request_id")

    def __init__(self, method: str, request_id: str, deadline: float, caller: str) -> None:
        self.method = method
        """Full name: "/assistant.api.crypto.v1.CryptoService/OpenCallback"."""
        self.request_id = request_id
        """Follows one message through all services. Empty: none."""
        self.caller = caller
        """Who calls, for records: the name in its certificate, or where an unauthenticated one comes from."""
        self._deadline = deadline

    def time_left_s(self) -> float:
        """Until the caller stops waiting; never below 0."""
        return max(0.0, self._deadline - monotonic())


class Method:
    """One method of a servicer."""

    def __init__(self, descriptor: MethodDescriptor, servicer: object) -> None:
        self.path = "/{}/{}".format(*descriptor.full_name.rsplit(".", 1))
        self.client_streaming: bool = descriptor.client_streaming
        self.server_streaming: bool = descriptor.server_streaming
        self._function: Callable[..., Any] = getattr(servicer, descriptor.name, _unimplemented)
        if tracing.tracer is not None:
            self._function = tracing.tracer.serving(self.path, self._function)
        self._read: Callable[[bytes], Message] = GetMessageClass(descriptor.input_type).FromString
        self._durations: dict[StatusCode, Histogram] = {}
        self.waits = inspect.iscoroutinefunction(self._function)
        """Whether a unary call is a coroutine; else it is answered inline."""

    def run(self, payload: bytes, call: Call) -> bytes:
        """Answer one unary call of a method that does not wait."""
        with _Observed(self, call):
            if not call.time_left_s():
                raise DeadlineExceeded
            return self._write(self._function(self._parse(payload), call))

    async def run_waiting(self, payload: bytes, call: Call) -> bytes:
        """Answer one unary call of a method that `waits`."""
        with _Observed(self, call):
            return self._write(await self._function(self._parse(payload), call))

    async def run_server_streaming(self, payload: bytes, call: Call) -> AsyncIterator[bytes]:
        """Answer one call with a stream of responses."""
        with _Observed(self, call):
            async for response in self._function(self._parse(payload), call):
                yield self._write(response)

    async def run_client_streaming(self, payloads: AsyncIterable[bytes], call: Call) -> bytes:
        """Answer one call that brings a stream of requests."""
        with _Observed(self, call):
            requests = (self._parse(payload) async for payload in payloads)
            return self._write(await self._function(requests, call))

    def observe(self, code: StatusCode, seconds: float) -> None:
        """Count one call."""
        duration = self._durations.get(code)
        if duration is None:
            duration = self._durations[code] = _duration.labels(self.path, code.name)
        duration.observe(seconds)

    def _parse(self, payload: bytes) -> Message:
        try:
            return self._read(payload)
        except DecodeError:
            raise InvalidRequest(
                f"the request of {self.path} cannot be read: it is not the message it should be"
            ) from None

    def _write(self, response: Message) -> bytes:
        try:
            return wire.checked(self.path, "response", response.SerializeToString())
        except PayloadTooLarge as error:
            raise Internal(error.message) from None


class _Observed:
    """Around one call: sets the request id, counts, and lets nothing out but AssistantErrors and cancellation."""

    __slots__ = ("_call", "_method", "_started")

    def __init__(self, method: Method, call: Call) -> None:
        self._method = method
        self._call = call

    def __enter__(self) -> None:
        telemetry.request_id.set(self._call.request_id)
        self._started = monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raised = error and self._translated(error)
        code = StatusCode.OK if raised is None else getattr(raised, "code", StatusCode.CANCELLED)
        self._method.observe(code, monotonic() - self._started)
        if raised is not None and raised is not error:
            raise raised

    def _translated(self, error: BaseException) -> BaseException:
        if isinstance(error, asyncio.CancelledError) and not self._call.time_left_s():
            return DeadlineExceeded()
        if isinstance(error, AssistantError) or not isinstance(error, Exception):
            return error
        telemetry.error("call_failed", error, method=self._method.path)
        return Internal()


def _unimplemented(request: object, call: Call) -> Message:
    raise Unimplemented(f"{call.method} is not served here")


def methods(servicers: Servicers) -> dict[str, Method]:
    """All methods by path."""
    found = [Method(method, servicer) for service, servicer in servicers.items() for method in service.methods]
    return {method.path: method for method in found}
