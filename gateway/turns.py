"""Turns: one for each message, in order within a conversation, in parallel across conversations.

A turn's answer goes one of two ways, and one claim decides which. *Passive*: in the HTTP answer to the
callback. *Active*: the callback is acknowledged, and the answer goes to reply_svc. The claim is `Turn.path`,
set once, on the event loop. What makes it safe against a crash:

* Before a callback is acknowledged, ACKNOWLEDGED is durable: whoever finds the row owes the answer.
* A passive answer needs no commit before it is sent. If we die around it, the platform either has the answer
  or repeats the callback, which is then acknowledged and answered by the API.
* An active answer has a request id of the message: reply_svc sends it once, however often it is handed over.
"""

import asyncio
import functools
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from assistant import telemetry, tracing
from assistant.api.message.v1.message_pb2 import Content, InboundMessage
from assistant.api.storage.v1.storage_pb2 import (
    ANSWER_PATH_ACTIVE,
    ANSWER_PATH_PASSIVE,
    ANSWER_PATH_UNSPECIFIED,
    AnswerPath,
    TurnRecord,
)
from assistant.deadlines import Deadlines
from assistant.errors import AssistantError, Internal, StorageUnavailable, UnknownAccount
from assistant.journal import Row
from assistant.plugin import Codec
from gateway.conversations import Conversation, Conversations
from gateway.delivery import Delivery
from gateway.engine import Engine
from gateway.held import HeldCallback
from gateway.inbox import Inbox, InboxState, lane_of, message_key
from gateway.phrases import apology
from gateway.policy import Gatekeeper

Codecs = Mapping[tuple[str, str], Codec]
"""The codec of each account: (channel, account) -> codec."""

_AT_ONCE = 0.0
"""Until when a callback is held that is repeated because the one before broke: a platform tries only so often."""
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
    body: bytes
    """The message, serialised."""
    row: Row | None = None
    path: AnswerPath.ValueType = ANSWER_PATH_UNSPECIFIED
    """The claim. Set once."""
    admission: "asyncio.Future[bytes | None] | None" = None
    """Done when the message is durable; its result is the passive answer that was given before, if there is one."""
    acknowledged: "asyncio.Future[bool] | None" = None
    """From the claim of the active path: done when ACKNOWLEDGED is durable; False if another gateway took over."""
    held: list[HeldCallback] = field(default_factory=list)
    """Callbacks that wait for the answer."""
    blocked: bool = False
    """An earlier turn of the conversation may be another gateway's."""
    begun: bool = False
    """It waits for no other turn any longer."""
    finished: "asyncio.Future[None] | None" = None
    """Done when the next turn of the conversation may begin."""
    repeated: bool = False
    """The platform repeated its callback."""
    orphan: bool = False
    """A crash broke it off before it was acknowledged: it waits for the repeated callback."""
    passive: bytes | None = None
    """The passive answer, from the claim of the passive path."""
    task: "asyncio.Task[None] | None" = None
    """Runs it: that of the callback which brought the message, or one of its own."""


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
        gatekeeper: Gatekeeper | None = None,
        orphan_grace_s: float = ORPHAN_GRACE_S,
    ) -> None:
        """`gatekeeper` None: everybody may write, as often as they like."""
        self._inbox = inbox
        self._conversations = conversations
        self._engine = engine
        self._delivery = delivery
        self._codecs = codecs
        self._held_callbacks = held_callbacks
        self._locale = locale
        self._gatekeeper = gatekeeper
        self._orphan_grace_s = orphan_grace_s
        self._turns: dict[str, Turn] = {}
        self._lanes: dict[str, list[Turn]] = {}
        """The turns of each conversation that are not over, in the order in which they run."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = 0
        self._budgets = Deadlines(self._budget_is_over)
        _HELD.set_function(lambda: self._held)

    # --- A callback comes -------------------------------------------------------------------------------

    async def take(
        self, message: InboundMessage, codec: Codec, held: HeldCallback, arrived_at: float, budget_s: float
    ) -> None:
        """See a message to its end, and answer its callback on the way: at most `budget_s` after its arrival.

        The callback gets the passive answer or is acknowledged, and the message is durable before either. Returns
        when its turn is over; if the turn is under way already, the callback is left to that one. Raises
        StorageUnavailable, with the callback unanswered.
        """
        key = message_key(message)
        telemetry.message_id.set(key)
        until = arrived_at + budget_s
        known = await self._under_way(key) if key in self._turns else None
        if known is not None:
            _DUPLICATES.labels(message.account.channel).inc()
            await self._join(known, held, arrived_at, until)
            return
        body = message.SerializeToString()
        turn = Turn(message, codec, arrived_at, key, lane_of(message), body, task=asyncio.current_task())
        given_before = await self._admit(turn)
        if turn.finished is None:
            await _answer(held, given_before)
        else:
            if turn.acknowledged is None:
                self._hold(turn, held, _AT_ONCE if turn.repeated else until)
            else:
                held.acknowledge()
            await self._run(turn)

    async def _join(self, turn: Turn, held: HeldCallback, arrived_at: float, until: float) -> None:
        """Answer a repeated callback as its turn stands."""
        if turn.orphan:
            self._take_up(turn, arrived_at)
            self._hold(turn, held, _AT_ONCE)
            await self._run(turn)
            return
        given_before = await turn.admission if turn.admission is not None else None
        if given_before is not None or turn.finished is None:
            await _answer(held, given_before)
        elif turn.path == ANSWER_PATH_PASSIVE:
            await _answer(held, turn.passive)
        elif turn.acknowledged is not None:
            await turn.acknowledged
            held.acknowledge()
        else:
            self._hold(turn, held, until if any(other.is_open for other in turn.held) else _AT_ONCE)

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
        self._acknowledge_held(turn)
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

    async def _admit(self, turn: Turn) -> bytes | None:
        """Make the message durable and queue its turn; callbacks that repeat it meanwhile wait for the same.

        Returns the passive answer that was given before, if there is one. `finished` is None if no turn begins.
        """
        turn.admission = asyncio.get_running_loop().create_future()
        self._turns[turn.key] = turn
        try:
            given_before = await self._store(turn)
        except BaseException as error:
            turn.admission.set_exception(error)
            turn.admission.exception()  # it counts as seen even if no repeated callback waits for it
            raise
        else:
            turn.admission.set_result(given_before)
            return given_before
        finally:
            if turn.finished is None:
                del self._turns[turn.key]

    async def _store(self, turn: Turn) -> bytes | None:
        if not needs_answer(turn.message):
            await self._inbox.admit(turn.key, turn.lane, turn.body, InboxState.ANSWERED)
            return None
        state = InboxState.RECEIVED if self._held < self._held_callbacks else InboxState.ACKNOWLEDGED
        row, new, turn.blocked = await self._inbox.admit(turn.key, turn.lane, turn.body, state)
        if not new:
            _DUPLICATES.labels(turn.message.account.channel).inc()
            if row.state == InboxState.RECEIVED:
                row = await self._inbox.adopt(turn.key) or await self._inbox.get(turn.key) or row
            if row.state != InboxState.RECEIVED:
                record = TurnRecord.FromString(row.result or b"")
                passive = record.path == ANSWER_PATH_PASSIVE
                return turn.codec.format(turn.message, record.content) if passive else None
            turn.blocked = turn.repeated = True  # what came before it may be under way where it was
        turn.row = row
        if row.state == InboxState.ACKNOWLEDGED:
            self._is_acknowledged(turn)
        self._queue(turn)
        return None

    # --- Held callbacks ---------------------------------------------------------------------------------

    def _hold(self, turn: Turn, held: HeldCallback, until: float) -> None:
        """Keep a callback for the answer until then; from then on, until its acknowledgement is durable."""
        turn.held.append(held)
        self._held += 1
        left_s = until - time.monotonic()
        if left_s > 0.0:
            self._budgets.add(turn.key, left_s)
        else:
            self._claim_active(turn)

    def _budget_is_over(self, key: str) -> None:
        turn = self._turns.get(key)
        if turn is not None and turn.held:
            self._claim_active(turn)

    def _let_go(self, turn: Turn) -> list[HeldCallback]:
        """Those that were held; the caller answers them."""
        held, turn.held = turn.held, []
        self._held -= len(held)
        return held

    def _acknowledge_held(self, turn: Turn) -> None:
        for held in self._let_go(turn):
            held.acknowledge()

    # --- The claim --------------------------------------------------------------------------------------

    def _claim_active(self, turn: Turn) -> None:
        if turn.path == ANSWER_PATH_UNSPECIFIED:
            turn.path = ANSWER_PATH_ACTIVE
            turn.acknowledged = asyncio.get_running_loop().create_future()
            self._spawn(self._acknowledge(turn, turn.acknowledged))

    def _is_acknowledged(self, turn: Turn) -> None:
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
        self._acknowledge_held(turn)

    # --- The turn ---------------------------------------------------------------------------------------

    def _queue(self, turn: Turn) -> None:
        """Put a turn into its conversation: in the inbox's order, but behind what has begun.

        So a turn waits for those whose messages came earlier, here and in other gateways, and for some that wait for
        nobody: never in a circle.
        """
        turn.finished = asyncio.get_running_loop().create_future()
        self._turns[turn.key] = turn
        lane = self._lanes.setdefault(turn.lane, [])
        place = len(lane)
        while place and not lane[place - 1].begun and _seq(lane[place - 1]) > _seq(turn):
            place -= 1
        lane.insert(place, turn)

    def _leave(self, turn: Turn) -> None:
        lane = self._lanes.get(turn.lane, [])
        if turn in lane:
            lane.remove(turn)
            if not lane:
                del self._lanes[turn.lane]

    def _finish(self, turn: Turn) -> None:
        if self._turns.get(turn.key) is turn:
            del self._turns[turn.key]
        self._leave(turn)
        if turn.finished is not None and not turn.finished.done():
            turn.finished.set_result(None)

    async def _run(self, turn: Turn) -> None:
        telemetry.message_id.set(turn.key)
        if not telemetry.request_id.get():  # no callback of this life brought it
            telemetry.request_id.set(turn.key)
        if tracing.tracer is not None:
            tracing.tracer.turn_begins(turn.key)
        try:
            await self._come_to(turn)
            turn.begun = True
            conversation = await self._conversations.get(turn.lane)
            refused = None if self._gatekeeper is None else await self._refused(turn, conversation, self._gatekeeper)
            record, failure = refused or await self._think(turn, conversation)
            await self._tell(turn, conversation, record, failure)
        except Exception as error:
            # A defect that one message meets must not stop its conversation, nor hold its callback for ever.
            telemetry.error("turn_broken", error)
            _FAILED.labels(turn.message.account.channel, Internal.reason).inc()
            self._inbox.finish(turn.key, InboxState.DEAD, TurnRecord(), type(error).__name__)
            self._acknowledge_held(turn)
            self._finish(turn)

    async def _come_to(self, turn: Turn) -> None:
        """Return when no turn of the conversation that comes before it is under way, here or in another gateway."""
        pause_s = 0.01
        while True:
            if (before := self._before(turn)) is not None:
                await before
                turn.blocked = turn.blocked or self._inbox.shared  # another gateway may have taken that one over
            elif not turn.blocked or turn.row is None:
                return
            elif any(key not in self._turns for key in await self._inbox.earlier(turn.row)):
                await asyncio.sleep(pause_s)  # another gateway's, or on its way from there to us
                pause_s = min(0.2, pause_s * 1.5)
            elif self._before(turn) is None:
                return

    def _before(self, turn: Turn) -> "asyncio.Future[None] | None":
        """`finished` of a turn that comes before it here, if there is one that is not."""
        for one in self._lanes.get(turn.lane, ()):
            if one is turn:
                break
            if one.finished is not None and not one.finished.done():
                return one.finished
        return None

    async def _refused(
        self, turn: Turn, conversation: Conversation, gatekeeper: Gatekeeper
    ) -> tuple[TurnRecord, AssistantError | None] | None:
        retried = turn.row is not None and turn.row.result is not None  # it was over once
        return await gatekeeper.refuse(turn.message, conversation, retried=retried)

    async def _think(self, turn: Turn, conversation: Conversation) -> tuple[TurnRecord, AssistantError | None]:
        record, failure, state = TurnRecord(), None, conversation.state
        try:
            response = await self._engine.reply(turn.key, turn.message, turn.body, conversation)
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
        # Where all connections broke, the platform may have tried for the last time: then only its API is left.
        if (
            record.content
            and any(held.is_open for held in turn.held)
            and await self._delivery.has_arrived(conversation)
        ):
            payload = turn.codec.format(turn.message, record.content)
        if turn.path == ANSWER_PATH_UNSPECIFIED and payload is not None:
            turn.path = record.path = ANSWER_PATH_PASSIVE
            turn.passive = payload
            self._close(turn, conversation, record, failure)
            for held in self._let_go(turn):
                await held.reply(payload)
            self._finish(turn)
            return
        if record.content:
            self._claim_active(turn)
        if turn.acknowledged is None:  # nothing to say, and nothing claimed
            self._close(turn, conversation, record, failure)
            self._acknowledge_held(turn)
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
        self._inbox.finish(turn.key, state, record, failure.reason if failure else record.refusal)
        conversation.remember(0 if turn.row is None else turn.row.seq, turn.message, record)
        path, seconds = _PATHS[record.path], time.monotonic() - turn.arrived_at
        _seconds(turn.message.account.channel, path).observe(seconds)
        telemetry.info("turn_answered", path=path, seconds=round(seconds, 4))
        if tracing.tracer is not None:
            tracing.tracer.note(channel=turn.message.account.channel, path=path)
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
        tasks = self._tasks | {turn.task for turn in self._turns.values() if turn.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=limit_s)
        for turn in self._turns.values():
            turn.orphan = False  # nothing is left to do for its timers
        rest = [task for task in tasks if not task.done()]
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
        turn = Turn(message, codec, time.monotonic(), row.key, row.lane, row.body, row, blocked=True)
        self._queue(turn)
        if row.state == InboxState.ACKNOWLEDGED:
            self._is_acknowledged(turn)
            turn.task = self._spawn(self._run(turn))
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
            self._leave(turn)
            self._queue(turn)
        turn.task = asyncio.current_task()

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


def _seq(turn: Turn) -> int:
    """The place of its message in the inbox."""
    return turn.row.seq if turn.row is not None else sys.maxsize


async def _answer(held: HeldCallback, passive: bytes | None) -> None:
    if passive is None:
        held.acknowledge()
    else:
        await held.reply(passive)


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
