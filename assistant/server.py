"""A gRPC service as a process: calls, health, reflection, metrics, drain.

A servicer is a plain object whose methods have the RPCs' names and take `(request, call)`: a `def` that
computes is answered inline, an `async def` may wait, an async generator streams responses; of a method with
streamed requests the first argument is an async iterator. AssistantErrors travel to the caller.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from http.server import ThreadingHTTPServer
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, TypeVar

import grpc
import uvloop
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from assistant import garbage, ports, telemetry, tracing, wire
from assistant.access import Access, Callers, caller
from assistant.dispatch import DEFAULT_TIMEOUT_S, Call, Method, Servicers
from assistant.errors import AssistantError, to_status
from assistant.health import Health
from assistant.mux import MuxHandler
from assistant.settings import Address
from assistant.tls import Identity

__all__ = ["Call", "Health", "Server", "Servicers", "run", "serve", "to_its_end"]

T = TypeVar("T")

_HEALTH: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]
_GRACE_S = 10.0
_TURN_S = 1.0
"""A loop that takes longer to come round hangs."""
_OPTIONS = (
    *wire.OPTIONS,
    ("grpc.so_reuseport", 0),  # or a second process would silently share the port
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # callers may keep connections alive
    ("grpc.keepalive_permit_without_calls", 1),
    # No max_connection_age: it would break streams of operations, and our clients see new replicas without it.
)


class Server:
    """Serves servicers on one address, and on another its metrics and health over HTTP.

    `listen` is "host:port" (0: any free port) or "unix:/path". Once stopping, it answers what still arrives
    for `drain_s`, and has `grace_s` to finish what it began. With an `identity` it speaks mutual TLS, and only
    `callers` may call. `listen_setting` and `admin_setting` are the settings that the addresses come from, for
    whoever has to change them.
    """

    def __init__(
        self,
        servicers: Servicers,
        *,
        listen: Address | str,
        listen_setting: str = "listen",
        admin: Address | None = None,
        admin_setting: str = "admin",
        drain_s: float = 1.0,
        grace_s: float = _GRACE_S,
        identity: Identity | None = None,
        callers: Callers = MappingProxyType({}),
    ) -> None:
        self.health = Health(service.full_name for service in servicers)
        self.port = 0
        self._services = [service.full_name for service in servicers]
        self._access = Access({**servicers, _HEALTH: self.health}, callers if identity else None)
        self._mux = MuxHandler(self._access, self.health)
        self._identity = identity
        self._listen = listen
        self._listen_setting = listen_setting
        self._admin = admin
        self._admin_setting = admin_setting
        self._drain_s = drain_s
        self._grace_s = grace_s
        self._grpc: grpc.aio.Server
        self._http: ThreadingHTTPServer | None = None

    async def start(self) -> None:
        """Begin to serve. Raises InvalidSetting if an address is taken."""
        self._grpc = grpc.aio.server(options=_OPTIONS)
        self._grpc.add_generic_rpc_handlers((_Handlers(self._access), self._mux))
        names = (*self._services, _HEALTH.full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        try:
            if self._identity is None:
                self.port = self._grpc.add_insecure_port(self._listen)
            else:
                self.port = self._grpc.add_secure_port(self._listen, self._identity.server_credentials())
        except RuntimeError as error:
            raise ports.cannot_listen(self._listen, "another process may be there", self._listen_setting) from error
        if self._admin is not None:
            checks = {"/healthz": lambda: self.health.serving(""), "/livez": self._loop_turns()}
            self._http = telemetry.serve_admin(self._admin, checks, self._admin_setting)
        await self._grpc.start()

    def _loop_turns(self) -> Callable[[], bool]:
        """A check whether this loop still turns, for those who cannot ask over gRPC, asked in another thread."""
        loop = asyncio.get_running_loop()

        def turns() -> bool:
            turned = threading.Event()
            loop.call_soon_threadsafe(turned.set)
            return turned.wait(_TURN_S)

        return turns

    async def stop(self) -> None:
        """Say that nothing new is welcome, answer what arrives for a while, finish, and stop."""
        self.health.drain()
        await asyncio.sleep(self._drain_s)
        self._mux.close()
        self.health.close()
        await self._grpc.stop(self._grace_s)
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()

    async def __aenter__(self) -> "Server":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def serve(server: Server) -> None:
    """Serve until SIGTERM or SIGINT, then stop in good order."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with server:
        garbage.settle()
        telemetry.info("serving", port=server.port)
        await stopping.wait()
        telemetry.info("stopping")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do all of it, even if the caller stops waiting in the middle and the method is cancelled.

    For what must not be half done: stored, say, and forgotten in memory.
    """
    return await asyncio.shield(asyncio.create_task(work))


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a service's main coroutine to its end. An AssistantError of it is logged and ends the process with 1."""
    try:
        uvloop.run(_quiet(main))
    except AssistantError as error:
        telemetry.error("start_failed", error)
        raise SystemExit(1) from None


async def _quiet(main: Coroutine[Any, Any, None]) -> None:
    asyncio.get_running_loop().set_exception_handler(_log_stray)
    try:
        tracing.start(telemetry.service())
        await main
    finally:
        main.close()  # it may not have begun
        tracing.stop()


def _log_stray(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that nobody waited for, without the text of it."""
    telemetry.error("stray_exception", context.get("exception"), message=context["message"])


class _Handlers(grpc.GenericRpcHandler):
    """Brings gRPC's calls to dispatch."""

    def __init__(self, access: Access) -> None:
        self._handlers = {path: _handler(method, access) for path, method in access.all().items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        return self._handlers.get(handler_call_details.method)


def _handler(served: Method, access: Access) -> "grpc.RpcMethodHandler[Any, Any]":
    async def unary(payload: bytes, context: Any) -> bytes:
        method = access.methods(context)[served.path]
        call = _call(method, context)
        try:
            async with asyncio.timeout(call.time_left_s()):
                return await method.run_waiting(payload, call) if method.waits else method.run(payload, call)
        except AssistantError as error:
            return await _abort(context, error)

    async def server_streaming(payload: bytes, context: Any) -> AsyncIterator[bytes]:
        method = access.methods(context)[served.path]
        try:
            async for response in method.run_server_streaming(payload, _call(method, context)):
                yield response
        except AssistantError as error:
            await _abort(context, error)

    async def client_streaming(payloads: AsyncIterator[bytes], context: Any) -> bytes:
        method = access.methods(context)[served.path]
        call = _call(method, context)
        try:
            async with asyncio.timeout(call.time_left_s()):
                return await method.run_client_streaming(payloads, call)
        except AssistantError as error:
            return await _abort(context, error)

    if served.server_streaming:
        return grpc.unary_stream_rpc_method_handler(server_streaming)
    if served.client_streaming:
        return grpc.stream_unary_rpc_method_handler(client_streaming)
    return grpc.unary_unary_rpc_method_handler(unary)


def _call(method: Method, context: Any) -> Call:
    metadata = dict(context.invocation_metadata())
    if tracing.tracer is not None:
        tracing.tracer.continues(metadata.get(tracing.TRACEPARENT, ""))
    time_left_s = context.time_remaining()
    deadline = monotonic() + (DEFAULT_TIMEOUT_S if time_left_s is None else time_left_s)
    return Call(method.path, metadata.get(wire.REQUEST_ID, ""), deadline, caller(context))


async def _abort(context: Any, error: AssistantError) -> NoReturn:
    """End a gRPC call with a status that says what the error says."""
    status = to_status(error)
    await context.abort(error.code, status.message, ((wire.STATUS_DETAILS, status.SerializeToString()),))
    raise AssertionError  # abort() raises
