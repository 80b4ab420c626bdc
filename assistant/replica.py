"""One server as its callers see it: a connection that is kept up, and the calls on it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from assistant import tls, tracing, wire
from assistant.backoff import Backoff
from assistant.errors import AssistantError, ServiceUnavailable, from_status
from assistant.mux import Multiplexer
from assistant.telemetry import request_id
from assistant.tls import Certificates

_CONNECT_WITHIN_S = 5.0
_LINGER_S = 60.0
_IDLE_CHECK_S = 0.1
_OPTIONS = (
    *wire.OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, without the backoff of the last
    ("grpc.enable_http_proxy", 0),
)
# Only our own servers, those with Exchange, welcome pings on an idle connection; others end it.
_KEPT_ALIVE = (*_OPTIONS, ("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 5_000))


class Replica:
    """One server, by its address: "127.0.0.1:7001" or "unix:/path". Connects at once, and again until closed.

    `changed` is called whenever `ready`, `serving` or `failure` may have changed. With `certificates` it speaks
    mutual TLS, to none but the process named `server`.
    """

    def __init__(
        self,
        address: str,
        multiplex: bool,
        changed: Callable[[], None],
        certificates: Certificates | None = None,
        server: str = "",
    ) -> None:
        self.ready = False
        """Whether it can be called."""
        self.serving = False
        """Whether it takes calls gladly; else another one should be preferred."""
        self.failure = ""
        """Why the last attempt to connect failed. Empty: none did."""
        self._address = address
        self._multiplex = multiplex
        self._changed = changed
        self._certificates = certificates
        self._server = server
        self._mux: Multiplexer | None = None
        self._channel: Any
        self._plain_calls = 0
        self._closed = asyncio.Event()
        self._lingering: set[asyncio.Task[None]] = set()
        self._keeper = asyncio.create_task(self._keep_connected())

    @property
    def load(self) -> int:
        """Calls in flight."""
        return self._plain_calls + (len(self._mux) if self._mux is not None else 0)

    async def retire(self) -> None:
        """Close once what is in flight has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while self.load and not self._closed.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._closed.wait(), _IDLE_CHECK_S)
        await self.close()

    async def close(self) -> None:
        """Break the connection. What is in flight fails."""
        self._closed.set()
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        await asyncio.gather(*self._lingering)

    # --- Calls --------------------------------------------------------------------------------------------

    def unary(self, path: str, payload: bytes, time_left_s: float) -> Awaitable[bytes]:
        """Begin one call, in whichever way the server offers. What is returned raises AssistantError.

        Who stops waiting for it says so: `abandon`.
        """
        if self._mux is not None:
            return self._mux.call(path, payload, time_left_s, request_id.get())
        return self._plain(self._channel.unary_unary(path), payload, time_left_s)

    def abandon(self, call: Awaitable[bytes]) -> None:
        """Nobody waits for what `unary` returned any longer."""
        if self._mux is not None and isinstance(call, asyncio.Future):
            self._mux.abandon(call)

    async def client_streaming(self, path: str, payloads: AsyncIterator[bytes], time_left_s: float) -> bytes:
        """One call with a stream of requests. Raises AssistantError."""
        return await self._plain(self._channel.stream_unary(path), payloads, time_left_s)

    async def server_streaming(self, path: str, payload: bytes, time_left_s: float) -> AsyncIterator[bytes]:
        """One call with a stream of responses. Raises AssistantError."""
        call: Any = self._channel.unary_stream(path)(payload, timeout=time_left_s, metadata=_metadata())
        self._plain_calls += 1
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        except asyncio.CancelledError:
            raise _unless_we_are(ServiceUnavailable("the connection was closed")) from None
        finally:
            self._plain_calls -= 1
            call.cancel()

    async def _plain(self, method: Callable[..., Awaitable[bytes]], argument: object, time_left_s: float) -> bytes:
        self._plain_calls += 1
        try:
            return await method(argument, timeout=time_left_s, metadata=_metadata())
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        except asyncio.CancelledError:
            raise _unless_we_are(ServiceUnavailable("the connection was closed")) from None
        finally:
            self._plain_calls -= 1

    # --- The connection -----------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        backoff = Backoff()
        multiplex = self._multiplex
        while not self._closed.is_set():  # gRPC may take a cancellation for the end of a call
            options = _KEPT_ALIVE if multiplex else _OPTIONS
            channel = tls.open_channel(self._address, self._certificates, self._server, options)
            offered = True
            try:
                async with asyncio.timeout(_CONNECT_WITHIN_S) as limit:
                    await self._stay_connected(channel, multiplex, limit)
                self.failure = "the server ended the connection"
            except grpc.aio.AioRpcError as error:
                offered = error.code() is not grpc.StatusCode.UNIMPLEMENTED
                if offered:
                    self.failure = error.details() or error.code().name
            except TimeoutError:
                self.failure = f"no answer within {_CONNECT_WITHIN_S} s"
            finally:
                was_ready, self.ready, self._mux = self.ready, False, None
                if was_ready:
                    backoff.reset()
                    self._close_later(channel)
                else:
                    await channel.close()
            multiplex = self._multiplex and offered
            self._changed()
            await asyncio.sleep(backoff.next_s())

    async def _stay_connected(self, channel: grpc.aio.Channel, multiplex: bool, limit: asyncio.Timeout) -> None:
        mux = Multiplexer() if multiplex else None

        def tell(serving: bool) -> None:
            limit.reschedule(None)
            self._channel, self._mux, self.ready, self.serving = channel, mux, True, serving
            self._changed()

        await (mux.run(channel, tell) if mux is not None else _watch(channel, tell))

    def _close_later(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.create_task(self._linger(channel))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    async def _linger(self, channel: grpc.aio.Channel) -> None:
        """Close a channel after its plain calls had the time to end: a server that drains still answers them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await self._closed.wait()
        await channel.close()


async def _watch(channel: grpc.aio.Channel, tell: Callable[[bool], None]) -> None:
    """Follow the health of a server without Exchange, until the connection breaks."""
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
    )
    try:
        async for response in watch(HealthCheckRequest()):
            tell(response.status != HealthCheckResponse.NOT_SERVING)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        tell(True)
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)


def _unless_we_are(error: AssistantError) -> BaseException:
    """What a CancelledError means: gRPC raises it for a closed channel as well as for a cancelled task."""
    task = asyncio.current_task()
    return asyncio.CancelledError() if task is not None and task.cancelling() else error


def _metadata() -> tuple[tuple[str, str], ...]:
    value = request_id.get()
    metadata = ((wire.REQUEST_ID, value),) if value else ()
    if tracing.tracer is not None and (traceparent := tracing.tracer.traceparent()):
        metadata = (*metadata, (tracing.TRACEPARENT, traceparent))
    return metadata


def _translated(error: grpc.aio.AioRpcError) -> AssistantError:
    details = dict(error.trailing_metadata()).get(wire.STATUS_DETAILS, b"")
    code: int = error.code().value[0]
    return from_status(code, error.details() or "", details if isinstance(details, bytes) else b"")
