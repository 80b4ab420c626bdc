"""Deliveries, durably: what was accepted, how far each has come, and what became of it."""

import asyncio
import builtins
import hashlib
import time
from collections.abc import Sequence
from enum import IntEnum

import msgspec

from assistant import telemetry, tracing
from assistant.api.message.v1.message_pb2 import Recipient
from assistant.api.reply.v1.reply_pb2 import (
    DELIVERY_STATE_DEAD,
    DELIVERY_STATE_DELIVERED,
    DELIVERY_STATE_PENDING,
    DELIVERY_STATE_RECALLED,
    DELIVERY_STATE_RECORDED,
    DeliverReplyRequest,
    DeliveryState,
)
from assistant.api.reply.v1.reply_pb2 import Delivery as DeliveryMessage
from assistant.errors import UnknownDelivery
from assistant.journal import Journal, Operation, Row, Rows, Transaction
from assistant.plugin import SELF_TEST_MEMBER
from assistant.settings import DEFAULT_ACCOUNT

_TABLE = "outbox"
_RECOVER_AT_ONCE = 500
_PURGE_AT_ONCE = 100
"""Deliveries wait while a batch is forgotten: in a file of 600,000, 2 ms for 100, 4 for 200 and 22 for 500."""
_PURGE_PAUSE_S = 0.05

SENDS_OF_A_LANE = "SELECT result FROM outbox WHERE lane = ? AND updated_at >= ? AND result IS NOT NULL"
"""How far the deliveries of a lane have come that changed since a time."""


class State(IntEnum):
    """How a delivery stands; below 2 something remains to be done."""

    PENDING = 0
    DELIVERED = 2
    DEAD = 3
    RECORDED = 4
    RECALLED = 5


_ON_THE_WIRE: dict[int, "DeliveryState.ValueType"] = {
    State.PENDING: DELIVERY_STATE_PENDING,
    State.DELIVERED: DELIVERY_STATE_DELIVERED,
    State.DEAD: DELIVERY_STATE_DEAD,
    State.RECORDED: DELIVERY_STATE_RECORDED,
    State.RECALLED: DELIVERY_STATE_RECALLED,
}
_FROM_THE_WIRE = {state: State(number) for number, state in _ON_THE_WIRE.items()}


class Sent(msgspec.Struct, array_like=True, frozen=True):
    """One request that the platform accepted."""

    message_id: str
    at: float
    """Seconds since 1970."""


class Progress(msgspec.Struct, omit_defaults=True, frozen=True):
    """How far a delivery has come."""

    sent: tuple[Sent, ...] = ()
    """Its requests that the platform accepted, in order; the others remain to be sent."""
    failing_since: float = 0.0
    """When its next request failed first, in seconds since 1970; 0: it did not."""
    carries: tuple[str, ...] = ()
    """Deliveries that go in the same request, behind it."""
    carried_by: str = ""
    """The delivery in whose request this one went."""


_PROGRESS = msgspec.json.Decoder(Progress)


class Delivery:
    """One accepted answer."""

    def __init__(self, row: Row, *, blocked: bool = False) -> None:
        self.row = row
        self.request = DeliverReplyRequest.FromString(row.body)
        self.progress = _PROGRESS.decode(row.result) if row.result else Progress()
        self.due_at = row.due_at
        """When it may be sent, in seconds since 1970."""
        self.blocked = blocked
        """Whether an earlier one of its lane may be in the hands of another process."""
        self.alone = not all(content.HasField("text") for content in self.request.content)
        """Whether it must not share a request with another one."""
        self.trace = ""
        """The request id of the callback that it answers; empty after a restart."""
        self.traceparent = ""
        """The span of the call that brought it; empty after a restart, or where nothing is traced."""
        self.rendered: list[bytes] = []
        """Its requests, once they were made."""

    @property
    def id(self) -> str:
        """Its name."""
        return self.row.key

    @property
    def state(self) -> "DeliveryState.ValueType":
        """How it stands, on the wire."""
        return _ON_THE_WIRE[self.row.state]

    def message(self, *, with_content: bool) -> DeliveryMessage:
        """As callers see it."""
        message = DeliveryMessage(
            delivery_id=self.id,
            request_id=self.request.request_id,
            account=self.request.account,
            recipient=self.request.recipient,
            content=self.request.content if with_content else (),
            state=self.state,
            attempts=self.row.attempts,
            last_error=self.row.error,
            platform_message_ids=[sent.message_id for sent in self.progress.sent],
        )
        message.accepted_at.FromNanoseconds(int(self.row.created_at * 1e9))
        message.updated_at.FromNanoseconds(int(self.row.updated_at * 1e9))
        return message


def delivery_id(request_id: str) -> str:
    """The name of the delivery that a request makes: short, and fit for a shell and an address."""
    return hashlib.blake2b(request_id.encode(), digest_size=10).hexdigest()


def lane(request: DeliverReplyRequest) -> str:
    """What is delivered in order: everything of one account to one recipient."""
    account = request.account
    return "/".join((account.channel, account.name or DEFAULT_ACCOUNT, _recipient(request.recipient).casefold()))


def _recipient(recipient: Recipient) -> str:
    return recipient.conversation.id or recipient.member.id


class Outbox:
    """The table of deliveries. What writes raises StorageUnavailable if nothing was stored."""

    def __init__(self, journal: Journal, owner: str) -> None:
        """`owner` names the process, the same over restarts."""
        self._journal = journal
        self._rows = Rows(journal, _TABLE, owner)

    @staticmethod
    def migrations() -> list[str]:
        """The schema."""
        return [
            *Rows.migrations(_TABLE),
            "CREATE INDEX outbox_sends ON outbox (lane, updated_at) WHERE result IS NOT NULL",
            "CREATE TABLE probe (at REAL NOT NULL); INSERT INTO probe (at) VALUES (0.0)",
        ]

    @property
    def shared(self) -> bool:
        """Whether other processes deliver from the same table."""
        return self._journal.shared

    async def open(self) -> None:
        """Take hold of the table."""
        await self._rows.open()

    async def close(self) -> None:
        """Let go of it: another process may take over what is pending."""
        await self._rows.close()

    def holds(self) -> bool:
        """Whether what we took is surely still ours."""
        return self._rows.holds_lease()

    # --- Work ---------------------------------------------------------------------------------------------

    async def admit(self, request: DeliverReplyRequest) -> tuple[Delivery, bool]:
        """Accept a delivery, durably, and say whether it is new; a known `request_id` gives the first one."""
        recorded = SELF_TEST_MEMBER in (request.recipient.member.id, request.recipient.conversation.id)
        admitted = await self._rows.admit(
            delivery_id(request.request_id),
            lane(request),
            request.SerializeToString(),
            State.RECORDED if recorded else State.PENDING,
        )
        delivery = Delivery(admitted.row, blocked=admitted.blocked)
        delivery.trace = telemetry.request_id.get()
        if tracing.tracer is not None:
            delivery.traceparent = tracing.tracer.traceparent()
        return delivery, admitted.new

    async def recover(self) -> list[Delivery]:
        """Take over all that processes left behind which are gone, oldest first."""
        rows: list[Row] = []
        while True:
            rows += (found := await self._rows.recover(_RECOVER_AT_ONCE))
            if len(found) < _RECOVER_AT_ONCE:
                return [Delivery(row, blocked=self.shared) for row in rows]

    async def blocked(self, delivery: Delivery) -> bool:
        """Whether an earlier delivery of its lane is in the hands of another process."""
        return await self._rows.blocked(delivery.row.lane, delivery.row.seq)

    async def still_ours(self, delivery: Delivery) -> bool:
        """Whether it is pending, and nobody took it over."""
        row = await self._rows.get(delivery.id)
        return row is not None and row.state == State.PENDING and self._rows.owns(row)

    async def take(self, key: str) -> Delivery | None:
        """Take over a pending delivery, whoever has it."""
        row = await self._rows.adopt(key, (State.PENDING,))
        return Delivery(row) if row else None

    async def advance(
        self, delivery: Delivery, progress: Progress, *, error: str = "", due_at: float = 0.0, attempted: bool = False
    ) -> bool:
        """Record how far a pending delivery has come. False: it is no longer ours."""
        delivery.progress, delivery.due_at = progress, due_at
        return await self._rows.move(
            delivery.id,
            State.PENDING,
            result=_encode(progress),
            error=error,
            due_at=due_at,
            attempted=attempted,
        )

    async def finish(self, finished: Sequence[tuple[Delivery, Progress]], state: State, error: str = "") -> bool:
        """Record the end of pending deliveries, all at once. False: the first is no longer ours."""
        moves = [
            self._rows.move_operation(delivery.id, state, result=_encode(progress), error=error, attempted=True)
            for delivery, progress in finished
        ]
        moved: list[bool] = await self._journal.submit_all(moves)
        return moved[0]

    async def sent_since(self, lane: str, since: float) -> list[float]:
        """When the platform accepted requests of a lane, ascending, in seconds since 1970."""
        results = await self._journal.query(_SENDS, (lane, since))
        return sorted(sent.at for result in results for sent in _PROGRESS.decode(result).sent if sent.at >= since)

    # --- For callers and operators ------------------------------------------------------------------------

    async def get(self, key: str) -> Delivery:
        """Raises UnknownDelivery."""
        row = await self._rows.get(key)
        if row is None:
            raise UnknownDelivery(f"there is no delivery {key}; finished ones are forgotten after some days")
        return Delivery(row)

    async def list(
        self, state: "DeliveryState.ValueType", before_seq: int | None, limit: int
    ) -> builtins.list[Delivery]:
        """Newest first; `before_seq` continues an earlier list. State UNSPECIFIED: all."""
        states = [_FROM_THE_WIRE[state]] if state else None
        return [Delivery(row) for row in await self._rows.list(states, before_seq, limit)]

    async def reopen(self, key: str) -> Delivery | None:
        """Take up a dead delivery again, as ours, where it stopped. None: it is not dead."""
        row = await self._rows.adopt(key, (State.DEAD,))
        if row is None:
            return None
        progress = msgspec.structs.replace(Delivery(row).progress, failing_since=0.0)
        reopened = await self._rows.move(
            key, State.PENDING, result=_encode(progress), error="", due_at=0.0, from_states=(State.DEAD,)
        )
        return Delivery(row._replace(state=State.PENDING, due_at=0.0, result=_encode(progress))) if reopened else None

    async def recalled(self, key: str) -> None:
        """Record that a delivered one was taken back."""
        if await self._rows.adopt(key, (State.DELIVERED,)):
            await self._rows.move(key, State.RECALLED, from_states=(State.DELIVERED,))

    # --- Upkeep -------------------------------------------------------------------------------------------

    async def purge(self, finished_before: float) -> None:
        """Forget what was finished before this time (seconds since 1970), in small steps that hold up nobody."""
        while True:
            if await self._rows.purge(finished_before, _PURGE_AT_ONCE) < _PURGE_AT_ONCE:
                return
            await asyncio.sleep(_PURGE_PAUSE_S)

    async def counts(self) -> dict[State, int]:
        """How many deliveries stand how."""
        return {State(state): count for state, count in (await self._rows.counts()).items()}

    async def probe(self) -> None:
        """Write something. Raises StorageUnavailable if the database takes nothing."""
        await self._journal.submit(_PROBE, (time.time(),))


def _encode(progress: Progress) -> bytes:
    return msgspec.json.encode(progress)


def _sends(transaction: Transaction, batch: list[tuple[str, float]]) -> list[list[bytes]]:
    return [[result for (result,) in records] for records in transaction.executemany(SENDS_OF_A_LANE, batch)]


def _probe(transaction: Transaction, batch: list[tuple[float]]) -> list[None]:
    transaction.executemany("UPDATE probe SET at = ?", batch)
    return [None for _ in batch]


_SENDS = Operation("outbox_sends", _sends)
_PROBE = Operation("outbox_probe", _probe)
