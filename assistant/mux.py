"""Many unary calls on one stream, in batches of whatever is waiting.

A unary gRPC call costs Python some 300 us; an operation in a batch a tenth of that. Nothing waits for a batch to
fill where nothing is under way: the next one gathers while the last is written and answered. Used by server.py and
client.py, and seen by nobody else. The protocol: protos/assistant/api/mux/v1/mux.proto.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from assistant import tracing
from assistant.access import Access, caller
from assistant.api.mux.v1.mux_pb2 import (
    DESCRIPTOR,
    SERVING_STATE_NOT_SERVING,
    SERVING_STATE_SERVING,
    ExchangeRequest,
    ExchangeResponse,
    Operation,
    Result,
)
from assistant.deadlines import Deadlines
from assistant.dispatch import Call, Method
from assistant.errors import (
    AssistantError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    Overloaded,
    ServiceUnavailable,
    Unimplemented,
    from_status,
    to_status,
)
from assistant.health import Health

SERVICE = DESCRIPTOR.services_by_name["MuxService"].full_name
PATH = f"/{SERVICE}/Exchange"

_BATCH_ITEMS = 256
_BATCH_BYTES = 256 << 10
MAX_IN_FLIGHT = 10_000
"""Operations of one stream at once."""
_PATIENCE_S = 0.002
"""While a server has operations of ours, more of them gather until it answers any, at most so long.

A batch costs as much as ten operations. One that waits for a slow engine must not keep the others.
"""

M = TypeVar("M", bound=Message)


class _Batches(Generic[M]):
    """Messages on their way into a stream. The last one gathers while those before it are written."""

    def __init__(self, new: Callable[[], M]) -> None:
        self._new = new
        self._full: deque[M] = deque()
        self._gathering = new()
        self._items = 0
        self._bytes = 0
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._full) * _BATCH_ITEMS + self._items

    def to_add(self, size_bytes: int = 0) -> M:
        """The batch to add one item of this size to."""
        if self._items >= _BATCH_ITEMS or self._bytes >= _BATCH_BYTES:
            self._full.append(self._gathering)
            self._gathering, self._items, self._bytes = self._new(), 0, 0
        if not self._items:
            self._some.set()
        self._items += 1
        self._bytes += size_bytes
        return self._gathering

    async def take(self) -> M:
        """The oldest batch, once there is one."""
        await self._some.wait()
        if self._full:
            return self._full.popleft()
        batch = self._gathering
        self._gathering, self._items, self._bytes = self._new(), 0, 0
        self._some.clear()
        return batch


# --- The server's side ------------------------------------------------------------------------------------


class MuxHandler(grpc.GenericRpcHandler):
    """Serves Exchange: runs the operations of all streams on a server's methods."""

    def __init__(self, access: Access, health: Health) -> None:
        self._access = access
        self._health = health
        self._exchanges: set[_Exchange] = set()
        self._handler = grpc.stream_stream_rpc_method_handler(
            self._exchange, ExchangeRequest.FromString, ExchangeResponse.SerializeToString
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of a call, if it is Exchange."""
        return self._handler if handler_call_details.method == PATH else None

    def close(self) -> None:
        """End all streams as soon as what they began is answered."""
        for exchange in self._exchanges:
            exchange.close()

    async def _exchange(self, _: object, context: Any) -> None:
        exchange = _Exchange(self._access.methods(context), self._health, context)
        self._exchanges.add(exchange)
        try:
            await exchange.run()
        finally:
            self._exchanges.discard(exchange)


class _Exchange:
    """One stream of operations, as the server sees it."""

    def __init__(self, methods: Mapping[str, Method], health: Health, context: Any) -> None:
        self._methods = methods
        self._health = health
        self._context = context
        self._caller = caller(context)
        self._responses = _Batches(ExchangeResponse)
        self._running: dict[int, asyncio.Task[bytes]] = {}
        self._deadlines = Deadlines(self._cancel)
        self._room = asyncio.Event()
        self._closing = False

    async def run(self) -> None:
        reader = asyncio.create_task(self._read())
        try:
            with self._health.listening(self._tell_state):
                self._tell_state()
                while not self._finished():
                    await self._context.write(await self._responses.take())
                    self._room.set()
        finally:
            reader.cancel()
            for task in self._running.values():
                task.cancel()

    def close(self) -> None:
        self._closing = True
        self._tell_state()

    def _finished(self) -> bool:
        return self._closing and not self._running and not self._responses

    def _tell_state(self) -> None:
        serving = self._health.serving("") and not self._closing
        self._responses.to_add().serving_state = SERVING_STATE_SERVING if serving else SERVING_STATE_NOT_SERVING

    async def _read(self) -> None:
        while not self._closing:
            request = await self._context.read()
            if request is grpc.aio.EOF:
                self.close()
                return
            now = monotonic()
            for operation in request.operations:
                self._begin(operation, now)
            for operation_id in request.cancelled_ids:
                self._cancel(operation_id)
            while len(self._running) + len(self._responses) > MAX_IN_FLIGHT:
                self._room.clear()
                await self._room.wait()

    def _begin(self, operation: Operation, now: float) -> None:
        method = self._methods.get(operation.method)
        call = Call(operation.method, operation.request_id, now + operation.time_left_ms / 1000, self._caller)
        if tracing.tracer is not None:
            tracing.tracer.continues(operation.traceparent)
        try:
            if method is None:
                raise Unimplemented(f"{operation.method} is not served here")
            if method.waits:
                task = asyncio.create_task(method.run_waiting(operation.payload, call))
                self._running[operation.id] = task
                self._deadlines.add(operation.id, operation.time_left_ms / 1000)
                task.add_done_callback(partial(self._end, operation.id))
            else:
                self._succeed(operation.id, method.run(operation.payload, call))
        except AssistantError as error:
            self._fail(operation.id, error)

    def _cancel(self, operation_id: int) -> None:
        if task := self._running.get(operation_id):
            task.cancel()

    def _end(self, operation_id: int, task: asyncio.Task[bytes]) -> None:
        self._running.pop(operation_id, None)
        error = Cancelled() if task.cancelled() else task.exception()
        if error is None:
            self._succeed(operation_id, task.result())
        else:
            self._fail(operation_id, error if isinstance(error, AssistantError) else Internal())

    def _succeed(self, operation_id: int, payload: bytes) -> None:
        self._responses.to_add(len(payload)).results.add(id=operation_id, payload=payload)

    def _fail(self, operation_id: int, error: AssistantError) -> None:
        status = to_status(error)
        self._responses.to_add(status.ByteSize()).results.add(
            id=operation_id, code=status.code, message=status.message, status=status.SerializeToString()
        )


# --- The client's side ------------------------------------------------------------------------------------


class Multiplexer:
    """One stream of operations, as the client sees it. Lives as long as the stream."""

    def __init__(self) -> None:
        self._requests = _Batches(ExchangeRequest)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._deadlines = Deadlines(self._expire)
        self._loop = asyncio.get_running_loop()
        self._answered = asyncio.Event()
        self._last_id = 0

    def __len__(self) -> int:
        """Operations in flight."""
        return len(self._waiting)

    async def run(self, channel: grpc.aio.Channel, tell: Callable[[bool], None]) -> None:
        """Exchange until the stream ends. `tell` learns whether the server is serving: first of all, and again.

        Raises grpc.aio.AioRpcError. Whatever is still in flight then fails with ServiceUnavailable.
        """
        exchange = channel.stream_stream(PATH, ExchangeRequest.SerializeToString, ExchangeResponse.FromString)
        call: Any = exchange()
        writer = asyncio.create_task(self._write(call))
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                if response.serving_state:
                    tell(response.serving_state == SERVING_STATE_SERVING)
                for result in response.results:
                    self._end(result)
                self._answered.set()
        finally:
            writer.cancel()
            call.cancel()
            self._fail()

    async def _write(self, call: Any) -> None:
        while True:
            batch = await self._requests.take()
            self._answered.clear()
            await call.write(batch)
            if self._waiting:
                patience = self._loop.call_later(_PATIENCE_S, self._answered.set)
                await self._answered.wait()
                patience.cancel()

    def _end(self, result: Result) -> None:
        future = self._waiting.pop(result.id, None)
        if future is None or future.done():
            return
        if result.code:
            future.set_exception(from_status(result.code, result.message, result.status))
        else:
            future.set_result(result.payload)

    def _fail(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ServiceUnavailable("the connection broke before the answer"))
        self._waiting.clear()

    def call(self, method: str, payload: bytes, time_left_s: float, request_id: str) -> "asyncio.Future[bytes]":
        """Begin one operation: its response, or an AssistantError. Raises Overloaded.

        Who stops waiting for it says so: `abandon`.
        """
        if len(self._waiting) >= MAX_IN_FLIGHT:
            raise Overloaded(f"{MAX_IN_FLIGHT} calls wait for one server already")
        self._last_id = operation_id = self._last_id + 1
        operation = self._requests.to_add(len(payload)).operations.add(
            id=operation_id,
            method=method,
            payload=payload,
            time_left_ms=max(1, int(time_left_s * 1000)),
            request_id=request_id,
        )
        if tracing.tracer is not None:
            operation.traceparent = tracing.tracer.traceparent()
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[operation_id] = future
        self._deadlines.add(operation_id, time_left_s)
        return future

    def abandon(self, future: "asyncio.Future[bytes]") -> None:
        """Tell the server that nobody waits any longer, if it was still to answer."""
        for operation_id, waiting in self._waiting.items():
            if waiting is future:
                self._forget(operation_id)
                return

    def _expire(self, operation_id: int) -> None:
        if operation_id in self._waiting:
            future = self._forget(operation_id)
            if not future.done():
                future.set_exception(DeadlineExceeded())

    def _forget(self, operation_id: int) -> "asyncio.Future[bytes]":
        self._requests.to_add().cancelled_ids.append(operation_id)
        return self._waiting.pop(operation_id)
