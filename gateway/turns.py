"""Turns: one for each message, in order within a conversation, in parallel across conversations.

A turn's answer goes one of two ways, and one claim decides which. *Passive*: in the HTTP answer to the
callback. *Active*: the callback is acknowledged, and the answer goes to reply_svc. The claim is `Turn.path`,
set once, on the event loop. What makes it safe against a crash:

* Before a callback is acknowledged, ACKNOWLEDGED is durable: whoever finds the row owes the answer.
* A passive answer needs no commit before it is sent. If we die around it, the platform either has the answer
  or repeats the callback, and the repeated callback is given the answer.
* An active answer has a request id of the message: reply_svc sends it once, however often it is handed over.
"""

import asyncio
import functools
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from assistant import telemetry
from assistant.api.message.v1.message_pb2 import Content, InboundMessage
from assistant.api.storage.v1.storage_pb2 import (
    ANSWER_PATH_ACTIVE,
    ANSWER_PATH_PASSIVE,
    ANSWER_PATH_UNSPECIFIED,
    AnswerPath,
    TurnRecord,
)
from assistant.errors import AssistantError, Internal, StorageUnavailable, UnknownAccount
from assistant.journal import Row
from assistant.plugin import Codec
from gateway.conversations import Conversation, Conversations
from gateway.delivery import Delivery
from gateway.engine import Engine
from gateway.inbox import Inbox, InboxState, lane_of, message_key
from gateway.phrases import apology

Codecs = Mapping[tuple[str, str], Codec]
"""The codec of each account: (channel, account) -> codec."""

ORPHAN_GRACE_S = 2.0
"""How long a conversation waits for the repeated callback of a turn that a crash broke off."""

_SECONDS = Histogram(
    "assistant_turn_seconds", "From a callback's arrival to its answer.", ["channel", "path"], buckets=telemetry.EDGES_S
)
_FAILED = Counter("assistant_failed_turns", "Messages that got an apology for an answer.", ["channel", "reason"])
_UNCONFIRMED = Counter("assistant_unconfirmed_turns", "Turns broken off by a crash, whose callback was not repeated.")
_DUPLICATES = Counter("assistant_duplicate_callbacks", "Callbacks whose message was known already.", ["channel"])
_HELD = Gauge("assistant_held_callbacks", "Callbacks that wait for their answer.")


@dataclass(eq=False, slots=True)
class Turn:
    """One message on its way to its answer."""

    message: InboundMessage
    codec: Codec
    arrived_at: float
    """When its callback came; monotonic, in seconds."""
    key: str
    lane: str
    row: Row | None = None
    path: AnswerPath.ValueType = ANSWER_PATH_UNSPECIFIED
    """The claim. Set once."""
    admission: "asyncio.Future[bytes | None] | None" = None
    """Done when the message is durable; its result is the passive answer that was given before, if there is one."""
    acknowledged: "asyncio.Future[bool] | None" = None
    """From the claim of the active path: done when ACKNOWLEDGED is durable; False if another gateway took over."""
    waiters: "list[asyncio.Future[bytes | None]]" = field(default_factory=list)
    """Held callbacks. Each is given the passive answer, or None: acknowledge."""
    before: "asyncio.Future[None] | None" = None
    """`finished` of the turn before it in the conversation."""
    finished: "asyncio.Future[None] | None" = None
    """Done when the next turn of the conversation may begin."""
    orphan: bool = False
    """A crash broke it off before it was acknowledged: it waits for the repeated callback."""
    passive: bytes | None = None
    """The passive answer, from the claim of the passive path."""
    task: "asyncio.Task[None] | None" = None


class Turns:
    """All turns that this gateway has under way."""

    def __init__(
        self,
        inbox: Inbox,
        conversations: Conversations,
        engine: Engine,
        delivery: Delivery,
        codecs: Codecs,
        *,
        held_callbacks: int,
        locale: str,
        orphan_grace_s: float = ORPHAN_GRACE_S,
    ) -> None:
        self._inbox = inbox
        self._conversations = conversations
        self._engine = engine
        self._delivery = delivery
        self._codecs = codecs
        self._held_callbacks = held_callbacks
        self._locale = locale
        self._orphan_grace_s = orphan_grace_s
        self._turns: dict[str, Turn] = {}
        self._lanes: dict[str, Turn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = 0
        _HELD.set_function(lambda: self._held)

    # --- A callback comes -------------------------------------------------------------------------------

    async def answer(self, message: InboundMessage, codec: Codec, arrived_at: float, budget_s: float) -> bytes | None:
        """Admit a message and wait for its passive answer, until `budget_s` after its arrival at most.

        Returns the answer's payload, or None: acknowledge. Either way the message is durable. Call `handed_out`
        once the HTTP answer is on its way. Raises StorageUnavailable.
        """
        key = message_key(message)
        telemetry.message_id.set(key)
        turn = await self._under_way(key)
        if turn is None:
            turn = Turn(message, codec, arrived_at, key, lane_of(message))
            await self._admit(turn)
        else:
            _DUPLICATES.labels(message.account.channel).inc()
            if turn.orphan:
                self._take_up(turn, arrived_at)
        given_before = await turn.admission if turn.admission is not None else None
        if given_before is not None or turn.finished is None:
            return given_before
        if turn.path == ANSWER_PATH_PASSIVE:
            return turn.passive
        if turn.acknowledged is not None:
            await turn.acknowledged
            return None
        return await self._hold(turn, arrived_at + budget_s)

    def handed_out(self, message: InboundMessage) -> None:
        """The HTTP answer with what `answer` returned is on its way: the conversation goes on."""
        turn = self._turns.get(message_key(message))
        if turn is not None and turn.path == ANSWER_PATH_PASSIVE:
            self._finish(turn)

    async def _under_way(self, key: str) -> Turn | None:
        """The turn of a message, if it is under way here, and ours to answer now that its callback is repeated."""
        while (turn := self._turns.get(key)) is not None:
            if not self._inbox.shared or await self._own(turn):
                return turn
            self._abandon(turn)
        return None

    def _abandon(self, turn: Turn) -> None:
        """Another gateway went on with it. Whoever still waits here was given up by the platform."""
        turn.orphan = False
        if turn.task is not None:
            turn.task.cancel()
        self._release(turn, None)
        self._finish(turn)

    async def _own(self, turn: Turn) -> bool:
        """Take a turn back from another gateway: who has the newest callback of a message answers it.

        False: the other one has answered or acknowledged it, or our claim came to nothing because of it.
        """
        if turn.admission is not None:
            await turn.admission
        if turn.finished is None:  # it was answered before
            return True
        adopted = turn.path == ANSWER_PATH_UNSPECIFIED and await self._inbox.adopt(turn.key) is not None
        if turn.acknowledged is not None:
            return await turn.acknowledged
        return adopted or turn.path == ANSWER_PATH_PASSIVE

    async def _admit(self, turn: Turn) -> None:
        """Make the message durable and begin its turn; callbacks that repeat it meanwhile wait for the same."""
        turn.admission = asyncio.get_running_loop().create_future()
        self._turns[turn.key] = turn
        try:
            turn.admission.set_result(await self._store(turn))
        except BaseException as error:
            turn.admission.set_exception(error)
            turn.admission.exception()  # it counts as seen even if no repeated callback waits for it
            raise
        finally:
            if turn.finished is None:
                del self._turns[turn.key]

    async def _store(self, turn: Turn) -> bytes | None:
        if not needs_answer(turn.message):
            await self._inbox.admit(turn.message, InboxState.ANSWERED)
            return None
        state = InboxState.RECEIVED if self._held < self._held_callbacks else InboxState.ACKNOWLEDGED
        admitted = await self._inbox.admit(turn.message, state)
        row = admitted.row
        if not admitted.new:
            _DUPLICATES.labels(turn.message.account.channel).inc()
            if row.state == InboxState.RECEIVED:
                row = await self._inbox.adopt(turn.key) or await self._inbox.get(turn.key) or row
            if row.state != InboxState.RECEIVED:
                record = TurnRecord.FromString(row.result or b"")
                passive = record.path == ANSWER_PATH_PASSIVE
                return turn.codec.format(turn.message, record.content) if passive else None
        turn.row = row
        if row.state == InboxState.ACKNOWLEDGED:
            self._acknowledge_at_once(turn)
        self._queue(turn)
        turn.task = self._spawn(self._run(turn, blocked=admitted.blocked))
        return None

    async def _hold(self, turn: Turn, until: float) -> bytes | None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bytes | None] = loop.create_future()
        turn.waiters.append(waiter)
        timer = loop.call_later(max(0.0, until - time.monotonic()), self._claim_active, turn)
        self._held += 1
        try:
            return await waiter
        finally:
            self._held -= 1
            timer.cancel()

    def _release(self, turn: Turn, payload: bytes | None) -> None:
        for waiter in turn.waiters:
            if not waiter.done():
                waiter.set_result(payload)
        turn.waiters.clear()

    # --- The claim --------------------------------------------------------------------------------------

    def _claim_active(self, turn: Turn) -> None:
        if turn.path == ANSWER_PATH_UNSPECIFIED:
            turn.path = ANSWER_PATH_ACTIVE
            turn.acknowledged = asyncio.get_running_loop().create_future()
            self._spawn(self._acknowledge(turn, turn.acknowledged))

    def _acknowledge_at_once(self, turn: Turn) -> None:
        """The row is ACKNOWLEDGED already."""
        turn.path = ANSWER_PATH_ACTIVE
        turn.acknowledged = asyncio.get_running_loop().create_future()
        turn.acknowledged.set_result(True)

    async def _acknowledge(self, turn: Turn, acknowledged: "asyncio.Future[bool]") -> None:
        pause_s = 0.05
        while not acknowledged.done():
            try:
                acknowledged.set_result(await self._inbox.acknowledge(turn.key))
            except StorageUnavailable:
                # The callback stays held. If the platform gives up on it, it repeats it.
                await asyncio.sleep(pause_s)
                pause_s = min(1.0, pause_s * 2)
        self._release(turn, None)

    # --- The turn ---------------------------------------------------------------------------------------

    def _queue(self, turn: Turn) -> None:
        last = self._lanes.get(turn.lane)
        turn.before = last.finished if last is not None else None
        turn.finished = asyncio.get_running_loop().create_future()
        self._turns[turn.key] = self._lanes[turn.lane] = turn

    def _finish(self, turn: Turn) -> None:
        if self._turns.get(turn.key) is turn:
            del self._turns[turn.key]
        if self._lanes.get(turn.lane) is turn:
            del self._lanes[turn.lane]
        if turn.finished is not None and not turn.finished.done():
            turn.finished.set_result(None)

    async def _run(self, turn: Turn, *, blocked: bool) -> None:
        telemetry.message_id.set(turn.key)
        if not telemetry.request_id.get():  # no callback of this life brought it
            telemetry.request_id.set(turn.key)
        try:
            if turn.before is not None:
                await turn.before
            if blocked:
                await self._wait_for_other_gateways(turn)
            conversation = await self._conversations.get(turn.lane)
            record, failure = await self._think(turn, conversation)
            await self._tell(turn, conversation, record, failure)
        except Exception as error:
            # A defect that one message meets must not stop its conversation, nor hold its callback for ever.
            telemetry.error("turn_broken", error)
            _FAILED.labels(turn.message.account.channel, Internal.reason).inc()
            self._inbox.finish(turn.key, InboxState.DEAD, TurnRecord(), type(error).__name__)
            self._release(turn, None)
            self._finish(turn)

    async def _wait_for_other_gateways(self, turn: Turn) -> None:
        pause_s = 0.01
        while turn.row is not None and await self._inbox.blocked(turn.row):
            await asyncio.sleep(pause_s)
            pause_s = min(0.2, pause_s * 1.5)

    async def _think(self, turn: Turn, conversation: Conversation) -> tuple[TurnRecord, AssistantError | None]:
        record, failure, state = TurnRecord(), None, conversation.state
        try:
            response = await self._engine.reply(turn.message, conversation)
        except AssistantError as error:
            failure = error
            record.content.add().text.text = apology(turn.message.locale or self._locale)
        else:
            record.content.extend(response.content)
            record.starts_conversation = response.starts_conversation
            state = response.state if response.HasField("state") else state
        if state is not None:
            record.state.CopyFrom(state)
        record.answered_at.FromNanoseconds(time.time_ns())
        return record, failure

    async def _tell(
        self, turn: Turn, conversation: Conversation, record: TurnRecord, failure: AssistantError | None
    ) -> None:
        payload = None
        if record.content and turn.waiters and await self._delivery.has_arrived(conversation):
            payload = turn.codec.format(turn.message, record.content)
        if turn.path == ANSWER_PATH_UNSPECIFIED and payload is not None:
            turn.path = record.path = ANSWER_PATH_PASSIVE
            turn.passive = payload
            self._close(turn, conversation, record, failure)
            self._release(turn, payload)  # `handed_out` lets the conversation go on
            return
        if record.content:
            self._claim_active(turn)
        if turn.acknowledged is None:  # nothing to say, and nothing claimed
            self._close(turn, conversation, record, failure)
            self._release(turn, None)
        elif await turn.acknowledged:
            if record.content:
                record.path = ANSWER_PATH_ACTIVE
                record.request_id = _request_id(turn)
                failure = await self._delivery.deliver(record.request_id, turn.message, record.content) or failure
            self._close(turn, conversation, record, failure)
        self._finish(turn)

    def _close(
        self, turn: Turn, conversation: Conversation, record: TurnRecord, failure: AssistantError | None
    ) -> None:
        state = InboxState.ANSWERED if failure is None else InboxState.DEAD
        self._inbox.finish(turn.key, state, record, failure.reason if failure else "")
        conversation.remember(turn.message, record)
        path, seconds = _PATHS[record.path], time.monotonic() - turn.arrived_at
        _seconds(turn.message.account.channel, path).observe(seconds)
        telemetry.info("turn_answered", path=path, seconds=round(seconds, 4))
        if failure is not None:
            _FAILED.labels(turn.message.account.channel, failure.reason).inc()
            telemetry.error("turn_failed", reason=failure.reason, detail=failure.message)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self, limit_s: float) -> None:
        """Wait for the turns under way, at most so long, and let go of the rest: the next start takes it up."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit_s)
        for turn in self._turns.values():
            turn.orphan = False  # nothing is left to do for its timers
        rest = list(self._tasks)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    # --- After a crash, and for operators ---------------------------------------------------------------

    async def recover(self) -> None:
        """Take up the turns of gateways that died, this one's former lives included. Raises StorageUnavailable."""
        rows = await self._inbox.recover()
        for row in rows:
            self._resume(row)
        if rows:
            telemetry.warning("turns_recovered", count=len(rows))

    async def retry(self, key: str) -> bool:
        """Take up a message again that was given up or not confirmed. False if no such message has this name."""
        row = await self._inbox.reopen(key)
        if row is not None:
            self._resume(row)
        return row is not None

    def _resume(self, row: Row) -> None:
        message = InboundMessage.FromString(row.body)
        codec = self._codecs.get((message.account.channel, message.account.name))
        if codec is None:
            self._inbox.finish(row.key, InboxState.DEAD, TurnRecord(), UnknownAccount.reason)
            return
        lost = self._turns.get(row.key)
        if lost is not None:  # another gateway had taken it over and died: what we knew of it is out of date
            self._abandon(lost)
        turn = Turn(message, codec, time.monotonic(), row.key, row.lane, row)
        self._queue(turn)
        if row.state == InboxState.ACKNOWLEDGED:
            self._acknowledge_at_once(turn)
            turn.task = self._spawn(self._run(turn, blocked=True))
        else:
            self._wait_for_repetition(turn)

    def _wait_for_repetition(self, turn: Turn) -> None:
        turn.orphan = True
        loop = asyncio.get_running_loop()
        loop.call_later(self._orphan_grace_s, self._let_pass, turn)
        loop.call_later(turn.codec.redelivery_s, self._give_up, turn)

    def _take_up(self, turn: Turn, arrived_at: float) -> None:
        """The repeated callback of an orphan came."""
        turn.orphan = False
        turn.arrived_at = arrived_at
        if turn.finished is not None and turn.finished.done():  # the conversation went on without it
            self._queue(turn)
        turn.task = self._spawn(self._run(turn, blocked=False))

    def _let_pass(self, turn: Turn) -> None:
        if turn.orphan and turn.finished is not None and not turn.finished.done():
            turn.finished.set_result(None)

    def _give_up(self, turn: Turn) -> None:
        if turn.orphan:
            _UNCONFIRMED.inc()
            telemetry.message_id.set(turn.key)
            telemetry.warning("turn_unconfirmed")
            self._inbox.finish(turn.key, InboxState.UNCONFIRMED, TurnRecord())
            self._finish(turn)


_PATHS = {ANSWER_PATH_UNSPECIFIED: "none", ANSWER_PATH_PASSIVE: "passive", ANSWER_PATH_ACTIVE: "active"}


@functools.cache
def _seconds(channel: str, path: str) -> Histogram:
    return _SECONDS.labels(channel, path)


def _request_id(turn: Turn) -> str:
    """The same for every attempt at the same answer; another one when an operator asked for another answer."""
    before = TurnRecord.FromString(turn.row.result).request_id if turn.row and turn.row.result else ""
    return f"{before}+" if before else turn.key


def needs_answer(message: InboundMessage) -> bool:
    """Whether a message is worth a turn. The others are recorded and acknowledged."""
    return any(_needs_answer(content) for content in message.content)


def _needs_answer(content: Content) -> bool:
    kind = content.WhichOneof("kind")
    if kind != "event":
        return kind is not None and kind != "unknown"
    event = content.event
    match event.WhichOneof("kind"):
        case "card_click":
            return True
        case "arrival":
            return event.arrival.first
        case "menu_click":
            return not event.menu_click.opened_url
        case "scan":
            return event.scan.awaits_reply
    return False
