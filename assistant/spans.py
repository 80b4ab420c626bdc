"""Spans with OpenTelemetry. Imported only where tracing is on: see tracing.py.

A trace begins at the edge: at Envoy or, where a callback comes without one, at the gateway. A call that brings no
trace begins none, so that health checks and operators leave no spans. Names and attributes follow OpenTelemetry's
semantic conventions for HTTP and RPC. What members write, secrets, and texts of exceptions are never in a span.
"""

import asyncio
import inspect
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import grpc
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode

from assistant.errors import AssistantError
from assistant.tracing import TRACEPARENT

_CLOSE_WITHIN_S = 2.0
_TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")  # twice as fast as the library
_NO_TRACE = Context()
_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
"""Statuses that are the server's fault; others are the caller's, and an error only to it (semantic conventions)."""


class _Answer(Protocol):
    @property
    def status(self) -> int: ...


class _Exchange(Protocol):
    """An HTTP request that waits for its answer: the gateway's `Exchange`."""

    @property
    def is_open(self) -> bool: ...

    def respond(self, answer: Any) -> None: ...


_Take = Callable[[str, list[tuple[bytes, bytes]], bytes, Any], Coroutine[Any, Any, None]]
T = TypeVar("T")


class Tracer:
    """Makes the spans of one process and exports them in the background, over OTLP by HTTP."""

    def __init__(self, resource: Mapping[str, str], ratio: float) -> None:
        """`ratio`: the share of traces to keep, of those that begin here."""
        sampler = ParentBased(TraceIdRatioBased(ratio))
        self._provider = TracerProvider(sampler, Resource.create(dict(resource)), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("ai-assistant")

    def close(self) -> None:
        """Export what is left. A collector that does not answer must not hold up the end of the process."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        closing.start()
        closing.join(_CLOSE_WITHIN_S)

    # --- The context --------------------------------------------------------------------------------------

    def traceparent(self) -> str:
        """The current span as others are told of it (W3C Trace Context). Empty: there is none."""
        span = trace.get_current_span().get_span_context()
        return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}" if span.is_valid else ""

    def trace_id(self) -> str:
        """Of the current trace, for log lines. Empty: there is none, or it is not kept."""
        span = trace.get_current_span().get_span_context()
        return f"{span.trace_id:032x}" if span.trace_flags.sampled else ""

    def continues(self, traceparent: str) -> None:
        """What this task does from now on belongs to the trace of a caller; empty: to none."""
        contexts.attach(_remote(traceparent))

    # --- The gateway --------------------------------------------------------------------------------------

    def taking(self, take: _Take, method: str, attributes: Mapping[str, str]) -> _Take:
        """The same function that sees callbacks to their end, with a span for each exchange: until it is answered.

        A trace begins here if the edge began none.
        """
        name = f"{method} {attributes['http.route']}"

        async def traced(query: str, headers: list[tuple[bytes, bytes]], body: bytes, exchange: _Exchange) -> None:
            told = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
            span = self._tracer.start_span(name, _remote(told.get(TRACEPARENT, "")), SpanKind.SERVER, dict(attributes))
            span.set_attribute("http.request.method", method)
            span.set_attribute("url.scheme", told.get("x-forwarded-proto", "http"))
            span.set_attribute("http.request.header.x-request-id", told.get("x-request-id", ""))
            contexts.attach(trace.set_span_in_context(span))
            observed = _ObservedExchange(exchange, span)
            await take(query, headers, body, observed)
            observed.leave()

        return traced

    def turn_begins(self, message_id: str) -> None:
        """What this task does is a turn: its span ends with the task."""
        span = self._tracer.start_span("turn", attributes={"assistant.message_id": message_id})
        contexts.attach(trace.set_span_in_context(span))
        if task := asyncio.current_task():
            task.add_done_callback(lambda task: _end(span, "cancelled" if task.cancelled() else ""))

    def note(self, **attributes: str) -> None:
        """Say more about the current span."""
        trace.get_current_span().set_attributes({f"assistant.{name}": value for name, value in attributes.items()})

    def failed(self, reason: str) -> None:
        """What the current span stands for failed."""
        _mark(trace.get_current_span(), reason)

    # --- Calls --------------------------------------------------------------------------------------------

    def calling(self, path: str, start: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        """The same function that makes unary calls of a method, with a span around each that belongs to a trace."""

        async def traced(request: object, *, timeout: float) -> T:  # noqa: ASYNC109 - as stubs call it
            with self._rpc(path, SpanKind.CLIENT):
                return await start(request, timeout=timeout)

        def call(request: object, *, timeout: float) -> Awaitable[T]:
            return traced(request, timeout=timeout) if _is_traced() else start(request, timeout=timeout)

        return call

    def serving(self, path: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same method of a servicer, with a span around each call that belongs to a trace."""

        async def streaming(request: object, call: object) -> AsyncIterator[Any]:
            with self._rpc(path, SpanKind.SERVER):
                async for response in function(request, call):
                    yield response

        async def waiting(request: object, call: object) -> Any:
            if not _is_traced():
                return await function(request, call)
            with self._rpc(path, SpanKind.SERVER):
                return await function(request, call)

        def computing(request: object, call: object) -> Any:
            if not _is_traced():
                return function(request, call)
            with self._rpc(path, SpanKind.SERVER):
                return function(request, call)

        if inspect.isasyncgenfunction(function):
            return streaming
        return waiting if inspect.iscoroutinefunction(function) else computing

    async def sending(self, channel: str, request: Awaitable[T]) -> T:
        """Around one request to a platform's API."""
        with self._span(f"send {channel}", SpanKind.CLIENT, {"assistant.channel": channel}) as span:
            try:
                return await request
            except BaseException as error:
                _mark(span, _reason(error))
                raise

    @contextmanager
    def _rpc(self, path: str, kind: SpanKind) -> Iterator[None]:
        """Around one call, at either end of it."""
        name = path[1:]
        with self._span(name, kind, {"rpc.system.name": "grpc", "rpc.method": name}) as span:
            try:
                yield
            except BaseException as error:
                code = _code(error)
                span.set_attribute("rpc.response.status_code", code.name)
                if kind is SpanKind.CLIENT or code in _FAULTS:
                    _mark(span, _reason(error))
                raise
            span.set_attribute("rpc.response.status_code", grpc.StatusCode.OK.name)

    @contextmanager
    def _span(self, name: str, kind: SpanKind, attributes: Mapping[str, str]) -> Iterator[Span]:
        """A child of the current span, if that belongs to a trace that is kept."""
        if not _is_traced():
            yield trace.INVALID_SPAN
            return
        span = self._tracer.start_span(name, kind=kind, attributes=dict(attributes))
        with _current(span):
            yield span


class _ObservedExchange:
    """An exchange whose answer ends its span."""

    def __init__(self, exchange: _Exchange, span: Span) -> None:
        self._exchange = exchange
        self._span = span

    @property
    def is_open(self) -> bool:
        return self._exchange.is_open

    def respond(self, answer: _Answer) -> None:
        if self._exchange.is_open:
            self._span.set_attribute("http.response.status_code", answer.status)
            _end(self._span, str(answer.status) if answer.status >= 500 else "")
        self._exchange.respond(answer)

    def leave(self) -> None:
        """Whoever took the request has done so. It may be answered with another one's answer yet; or nobody waits."""
        if self._span.is_recording() and not self._exchange.is_open:
            _end(self._span, "disconnected")


def _remote(traceparent: str) -> Context:
    """The context that a caller's span is; none if it says nothing that we understand."""
    parts = _TRACEPARENT.fullmatch(traceparent)
    if parts is None:
        return _NO_TRACE
    trace_id, span_id, flags = (int(part, 16) for part in parts.groups())
    span = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
    return trace.set_span_in_context(trace.NonRecordingSpan(span), _NO_TRACE)


def _is_traced() -> bool:
    return trace.get_current_span().get_span_context().trace_flags.sampled


@contextmanager
def _current(span: Span) -> Iterator[None]:
    """Around what a span stands for: ends it."""
    before = contexts.get_current()
    contexts.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        span.end()
        contexts.attach(before)


def _code(error: BaseException) -> grpc.StatusCode:
    if isinstance(error, AssistantError):
        return error.code
    return grpc.StatusCode.INTERNAL if isinstance(error, Exception) else grpc.StatusCode.CANCELLED


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, AssistantError) else type(error).__name__


def _mark(span: Span, reason: str) -> None:
    span.set_status(StatusCode.ERROR, reason)
    span.set_attribute("error.type", reason)


def _end(span: Span, reason: str) -> None:
    if reason:
        _mark(span, reason)
    span.end()
