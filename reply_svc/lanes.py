"""Carrying out deliveries: in order within a lane, lanes in parallel, again and again until one of them is over.

A lane is everything of one account to one recipient. It sends one request at a time and records each before
the next, so that another process can go on from there: the request that was under way when this one died
is sent again, byte for byte, and a platform that recognises it shows it once.
"""

import asyncio
import functools
from bisect import insort
from collections.abc import Awaitable, Callable, Iterable
from operator import attrgetter
from time import perf_counter

from msgspec.structs import replace
from prometheus_client import Counter, Gauge, Histogram

from assistant import telemetry, tracing
from assistant.api.message.v1.message_pb2 import Content
from assistant.backoff import Backoff
from assistant.errors import (
    AssistantError,
    Internal,
    PlatformMisconfigured,
    PlatformOutcomeUnknown,
    PlatformRefused,
    PlatformThrottled,
    StorageUnavailable,
    UnknownAccount,
)
from assistant.plugin import Receipt
from reply_svc.accounts import Connection, Connections
from reply_svc.clock import Clock
from reply_svc.outbox import Delivery, Outbox, Progress, Sent, State

DEFAULT_PATIENCE_S = 3_000.0
PATIENCE_S = {PlatformRefused: 0.0, PlatformMisconfigured: 86_400.0, PlatformThrottled: 86_400.0}
"""How long a request may go on failing before its delivery is given up, by kind of failure.

What an operator can mend, or midnight, is waited for. The rest stays below the hour within which WeCom, told so
by its sender, surely recognises a repeated request.
"""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_LONG_PAUSE_S = 60.0
_BLOCKED_PAUSE_S = 0.05
_FIRST_STORAGE_PAUSE_S = 0.05
_LONGEST_STORAGE_PAUSE_S = 2.0
_CLOSE_TIMEOUT_S = 5.0

_finished = Counter("assistant_deliveries", "Deliveries that came to an end.", ("channel", "outcome", "error_code"))
_failed = Counter(
    "assistant_send_failures", "Requests to the platform that failed.", ("channel", "reason", "error_code")
)
_seconds = Histogram(
    "assistant_send_seconds", "Time of one request to the platform.", ("channel",), buckets=telemetry.EDGES_S
)
_delivery_seconds = Histogram(
    "assistant_delivery_seconds",
    "From a delivery's acceptance to its end.",
    ("channel", "outcome"),
    buckets=telemetry.EDGES_S,
)
_open = Gauge("assistant_outbox_open_deliveries", "Deliveries that wait or are under way in this process.")
_oldest = Gauge("assistant_outbox_oldest_seconds", "Age of the oldest delivery that waits or is under way.")

_seconds_of = functools.cache(_seconds.labels)
_finished_of = functools.cache(_finished.labels)
_delivery_seconds_of = functools.cache(_delivery_seconds.labels)


class Lanes:
    """The lanes of this process that have something to deliver."""

    def __init__(self, outbox: Outbox, connections: Connections, clock: Clock) -> None:
        self._outbox = outbox
        self._connections = connections
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}
        self._waiting = 0
        _open.set_function(lambda: self._waiting)
        _oldest.set_function(self._oldest_s)

    def __len__(self) -> int:
        """Deliveries that wait or are under way."""
        return self._waiting

    def add(self, delivery: Delivery) -> None:
        """Carry out a delivery that is ours."""
        key = delivery.row.lane
        lane = self._lanes.get(key)
        if lane is None:
            connection = self._connections.of(delivery.request.account)
            lane = self._lanes[key] = _Lane(key, connection, self._outbox, self._clock, self._left)
            lane.task = asyncio.create_task(self._run(lane))
        lane.add(delivery)
        self._waiting += 1

    async def recover(self) -> None:
        """Carry out what processes left behind that are gone."""
        for delivery in await self._outbox.recover():
            try:
                self.add(delivery)
            except UnknownAccount as error:  # it waits for a start with this account configured
                telemetry.error("delivery_without_account", error, delivery_id=delivery.id)

    async def close(self) -> None:
        """Finish the requests that are under way. What remains is recovered by the next process."""
        tasks = [lane.stop() for lane in self._lanes.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, lane: "_Lane") -> None:
        try:
            await lane.run()
        finally:
            del self._lanes[lane.key]

    def _left(self) -> None:
        self._waiting -= 1

    def _oldest_s(self) -> float:
        accepted = [lane.waiting[0].row.created_at for lane in self._lanes.values() if lane.waiting]
        return max(0.0, self._clock.now() - min(accepted)) if accepted else 0.0


class _TakenOver(Exception):
    """The delivery that was worked on belongs to another process by now."""


class _Lane:
    task: asyncio.Task[None]

    def __init__(
        self, key: str, connection: Connection, outbox: Outbox, clock: Clock, left: Callable[[], None]
    ) -> None:
        self.key = key
        self.waiting: list[Delivery] = []
        self._connection = connection
        self._outbox = outbox
        self._clock = clock
        self._left = left
        self._backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._crowded = False
        self._sending = False
        self._stopping = False

    def add(self, delivery: Delivery) -> None:
        insort(self.waiting, delivery, key=attrgetter("row.seq"))

    def _remove(self, delivery: Delivery) -> None:
        self.waiting.remove(delivery)
        self._left()

    def stop(self) -> "asyncio.Task[None]":
        self._stopping = True
        if not self._sending:
            self.task.cancel()
        return self.task

    async def run(self) -> None:
        """Deliver until nothing waits."""
        while self.waiting and not self._stopping:
            first = self.waiting[0]
            telemetry.request_id.set(first.trace)
            telemetry.message_id.set(first.request.request_id)
            if tracing.tracer is not None:
                tracing.tracer.continues(first.traceparent)
            try:
                if await self._may_go(first):
                    await self._attempt(first)
            except _TakenOver:
                self._remove(first)
            except StorageUnavailable:
                await self._clock.sleep(_LONGEST_STORAGE_PAUSE_S)
            except Exception as error:
                telemetry.error("lane_failed", error, delivery_id=first.id)
                await self._clock.sleep(_LONG_PAUSE_S)

    # --- Before sending -----------------------------------------------------------------------------------

    async def _may_go(self, first: Delivery) -> bool:
        """Whether it can be sent now. If not, returns after a while: another one may be the first by then."""
        if first.blocked:
            await self._unblock(first)
        elif (wait_s := first.due_at - self._clock.now()) > 0:
            await self._clock.sleep(wait_s)
        elif not self._outbox.holds():
            await self._clock.sleep(_BLOCKED_PAUSE_S)
        elif (wait_s := await self._quota_wait_s()) > 0:
            self._crowded = True
            await self._clock.sleep(wait_s)
        else:
            await self._connection.ready()
            return self.waiting[0] is first
        return False

    async def _unblock(self, first: Delivery) -> None:
        pauses = Backoff(_BLOCKED_PAUSE_S, _BLOCKED_PAUSE_S)
        while await self._outbox.blocked(first):
            await self._clock.sleep(pauses.next_s())
            if self.waiting[0] is not first:
                return
        if not await self._outbox.still_ours(first):  # whoever held the lane up may have taken it along
            raise _TakenOver
        first.blocked = False

    async def _quota_wait_s(self) -> float:
        """Until the recipient may be sent one more. What others sent, or we in an earlier life, is in the outbox."""
        pacer = self._connection.pacer
        if pacer.window_s and (self._outbox.shared or self.key not in pacer):
            pacer.load(self.key, await self._outbox.sent_since(self.key, self._clock.now() - pacer.window_s))
        return pacer.wait_s(self.key)

    # --- Sending ------------------------------------------------------------------------------------------

    async def _attempt(self, first: Delivery) -> None:
        self._sending = True
        try:
            if self._crowded:
                self._crowded = False
                await self._gather(first)
            carried = await self._carried(first)
            first.rendered = first.rendered or self._render(first, *carried)
            receipt = await self._send(first.rendered[len(first.progress.sent)])
        except (_TakenOver, StorageUnavailable):
            raise
        except AssistantError as error:
            await self._failed(first, error)
        except Exception as error:
            telemetry.error("sender_failed", error, delivery_id=first.id)
            await self._failed(first, Internal("the channel's sender failed: the log of reply_svc says where"))
        else:
            await self._sent(first, carried, receipt)
        finally:
            self._sending = False

    def _render(self, *deliveries: Delivery) -> list[bytes]:
        first = deliveries[0]
        recipient, content = first.request.recipient, _contents(deliveries)
        return self._connection.sender.render(first.id, first.row.seq, recipient, content)

    async def _send(self, request: bytes) -> Receipt:
        began_at = perf_counter()
        try:
            sending: Awaitable[Receipt] = self._connection.call(
                functools.partial(self._connection.sender.send, request)
            )
            if tracing.tracer is not None:
                sending = tracing.tracer.sending(self._connection.name, sending)
            receipt = await sending
        except PlatformOutcomeUnknown:
            self._connection.pacer.count(self.key)
            raise
        self._connection.pacer.count(self.key)
        _seconds_of(self._connection.name).observe(perf_counter() - began_at)
        return receipt

    async def _gather(self, first: Delivery) -> None:
        """After a wait for the quota: put the texts that wait into one request, and record which before it is sent."""
        if first.alone or first.progress.sent or first.progress.carries:
            return
        together = [first]
        for delivery in self.waiting[1:]:
            if delivery.alone or delivery.blocked or delivery.request.recipient != first.request.recipient:
                break
            if len(self._render(*together, delivery)) > 1:
                break
            together.append(delivery)
        if len(together) > 1:
            first.rendered = []
            await self._advance(first, replace(first.progress, carries=tuple(other.id for other in together[1:])))

    async def _carried(self, first: Delivery) -> list[Delivery]:
        waiting = {delivery.id: delivery for delivery in self.waiting}
        carried = [waiting.get(key) or await self._outbox.take(key) for key in first.progress.carries]
        return [delivery for delivery in carried if delivery]

    # --- Afterwards ---------------------------------------------------------------------------------------

    async def _sent(self, first: Delivery, carried: list[Delivery], receipt: Receipt) -> None:
        self._backoff.reset()
        sent = Sent(receipt.platform_message_id, self._clock.now())
        progress = replace(first.progress, sent=(*first.progress.sent, sent), failing_since=0.0)
        if len(progress.sent) < len(first.rendered):
            await self._advance(first, progress)
            return
        finished = [(first, progress), *((delivery, Progress(carried_by=first.id)) for delivery in carried)]
        left_out = f"the platform left out {', '.join(receipt.refused)}" if receipt.refused else ""
        await self._finish(finished, State.DELIVERED, left_out)

    async def _failed(self, first: Delivery, error: AssistantError) -> None:
        code = error.metadata.get("error_code", "")
        _failed.labels(self._connection.name, error.reason, code).inc()
        telemetry.warning("send_failed", delivery_id=first.id, reason=error.reason, error_code=code)
        if isinstance(error, PlatformRefused) and first.progress.carries:
            await self._part(first)
            return
        now = self._clock.now()
        failing_since = first.progress.failing_since or now
        if now - failing_since >= PATIENCE_S.get(type(error), DEFAULT_PATIENCE_S):
            progress = replace(first.progress, carries=())
            await self._finish([(first, progress)], State.DEAD, str(error), code)
            return
        self._connection.trouble(error)
        progress = replace(first.progress, failing_since=failing_since)
        due_at = now + self._pause_s(error)
        await self._advance(first, progress, error=str(error), due_at=due_at, attempted=True)

    def _pause_s(self, error: AssistantError) -> float:
        if isinstance(error, PlatformThrottled | PlatformMisconfigured):
            return error.retry_after_s or _LONG_PAUSE_S
        return max(self._backoff.next_s(), error.retry_after_s or 0.0)

    async def _part(self, first: Delivery) -> None:
        """One of several deliveries in a request is refused, and nobody says which: each goes alone."""
        for delivery in self.waiting:
            delivery.alone = delivery.alone or delivery is first or delivery.id in first.progress.carries
        first.rendered = []
        await self._advance(first, replace(first.progress, carries=()), attempted=True)

    async def _advance(
        self, first: Delivery, progress: Progress, *, error: str = "", due_at: float = 0.0, attempted: bool = False
    ) -> None:
        await self._record(
            lambda: self._outbox.advance(first, progress, error=error, due_at=due_at, attempted=attempted)
        )

    async def _finish(
        self, finished: list[tuple[Delivery, Progress]], state: State, error: str = "", error_code: str = ""
    ) -> None:
        await self._record(lambda: self._outbox.finish(finished, state, error))
        self._backoff.reset()
        for delivery, _ in finished:
            if delivery in self.waiting:
                self._remove(delivery)
            self._told(delivery, state, error_code)

    async def _record(self, write: Callable[[], Awaitable[bool]]) -> None:
        """Write until the database takes it: what is not recorded must not be followed by the next request."""
        pauses = Backoff(_FIRST_STORAGE_PAUSE_S, _LONGEST_STORAGE_PAUSE_S)
        while True:
            try:
                ours = await write()
            except StorageUnavailable as error:
                telemetry.error("delivery_not_recorded", error)
                await self._clock.sleep(pauses.next_s())
            else:
                break
        if not ours:
            raise _TakenOver

    def _told(self, delivery: Delivery, state: State, error_code: str) -> None:
        channel, outcome = self._connection.name, state.name.lower()
        seconds = self._clock.now() - delivery.row.created_at
        _finished_of(channel, outcome, error_code).inc()
        _delivery_seconds_of(channel, outcome).observe(seconds)
        telemetry.request_id.set(delivery.trace)
        telemetry.message_id.set(delivery.request.request_id)
        telemetry.info(
            "delivery_finished",
            delivery_id=delivery.id,
            channel=channel,
            outcome=outcome,
            error_code=error_code,
            seconds=round(seconds, 3),
        )


def _contents(deliveries: Iterable[Delivery]) -> list[Content]:
    return [content for delivery in deliveries for content in delivery.request.content]
