"""The inbox: every callback's message, durable before anything is acknowledged, and how its turn ended."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeVar

from assistant.api.message.v1.message_pb2 import InboundMessage
from assistant.api.storage.v1.storage_pb2 import TurnRecord
from assistant.backoff import Backoff
from assistant.errors import StorageUnavailable
from assistant.journal import Admitted, Journal, Operation, Row, Rows, Transaction

_Read = TypeVar("_Read")

TABLE = "inbox"
_RECOVER_AT_ONCE = 1_000
_PURGE_AT_ONCE = 100
"""Callbacks wait while a batch is forgotten. In a file of a million messages it takes 5 ms, and one of 500 33 ms."""
MIGRATIONS = [
    *Rows.migrations(TABLE),
    # A conversation's history is read from its lane's newest rows.
    f"CREATE INDEX {TABLE}_history ON {TABLE} (lane, seq)",
]


class InboxState(IntEnum):
    """How a message stands. Below 2 something remains to be done."""

    RECEIVED = 0
    """A callback is, or was, held for its answer. If that broke, the platform repeats the callback."""
    ACKNOWLEDGED = 1
    """The platform was told "received": we owe an answer by its API."""
    ANSWERED = 2
    """Answered, or nothing was to be said."""
    DEAD = 3
    """Given up after an apology; `ai-assistant-cli inbox retry` tries again."""
    UNCONFIRMED = 4
    """A crash broke the turn off, and the platform did not repeat the callback: it seems to have the answer."""


def message_key(message: InboundMessage) -> str:
    """What makes a message the same message, in all tables and logs of the mesh."""
    return f"{message.account.channel}:{message.account.name}:{message.message_id}"


def lane_of(message: InboundMessage) -> str:
    """The lane of a conversation: its turns run one after another."""
    return f"{message.account.channel}:{message.account.name}:{message.conversation.id}"


class Said(NamedTuple):
    """A turn that is over: a message, and what it was answered."""

    seq: int
    """Its place in the inbox."""
    message: InboundMessage
    record: TurnRecord


def _read_history(
    transaction: Transaction, queries: list[tuple[str, int, int]]
) -> list[list[tuple[int, bytes, bytes]]]:
    found = transaction.executemany(
        f"SELECT seq, body, result FROM {TABLE} WHERE lane = ? AND seq > ? AND state >= 2 AND result IS NOT NULL "  # noqa: S608
        "ORDER BY seq DESC LIMIT ?",
        queries,
    )
    return [[(seq, bytes(body), bytes(result)) for seq, body, result in rows] for rows in found]


_HISTORY: Operation[tuple[str, int, int], list[tuple[int, bytes, bytes]]] = Operation("inbox_history", _read_history)


class Inbox:
    """The gateway's durable rows.

    When the database takes nothing, every method raises StorageUnavailable, but for those that a turn begins with:
    they wait for it, since the message is accepted already, and what it is owed is its answer.
    """

    def __init__(self, journal: Journal, owner: str) -> None:
        self._journal = journal
        self._rows = Rows(journal, TABLE, owner)

    @property
    def shared(self) -> bool:
        """Whether other gateways work on the same inbox."""
        return self._journal.shared

    async def open(self) -> None:
        """Begin to own rows."""
        await self._rows.open()

    async def close(self) -> None:
        """Write what is still to be written, and own rows no longer."""
        await self._rows.close()
        await self._journal.close()

    def admit(self, key: str, lane: str, body: bytes, state: InboxState) -> Awaitable[Admitted]:
        """Store a message, once: its key, its lane, and itself serialised.

        If it is there already, say how it stands and change nothing.
        """
        return self._rows.admit(key, lane, body, state)

    async def adopt(self, key: str) -> Row | None:
        """Take over the turn of a repeated callback from whoever held the one before. None if it moved on."""
        return await self._rows.adopt(key, (InboxState.RECEIVED,))

    async def acknowledge(self, key: str) -> bool:
        """Record, durably, that we owe an answer by the API. False if another gateway took the turn over."""
        return await self._rows.move(key, InboxState.ACKNOWLEDGED, from_states=(InboxState.RECEIVED,))

    def finish(self, key: str, state: InboxState, record: TurnRecord, error: str = "") -> None:
        """Record how the turn ended. Rides along with the next commit."""
        self._rows.post_move(key, state, result=record.SerializeToString(), error=error, attempted=True)

    async def recover(self) -> list[Row]:
        """Take over the open turns of gateways that died, oldest first."""
        rows: list[Row] = []
        while True:
            rows += (found := await self._rows.recover(_RECOVER_AT_ONCE))
            if len(found) < _RECOVER_AT_ONCE:
                return rows

    async def earlier(self, row: Row) -> "list[str]":
        """The keys of earlier messages of the conversation that are not closed yet. Waits for the database."""
        return await _insisted(lambda: self._rows.earlier(row.lane, row.seq))

    async def history(self, lane: str, after: int, limit: int) -> list[Said]:
        """The newest turns of a conversation after a place in the inbox, oldest first. Waits for the database.

        Those that this gateway finished within the last moments may not be there yet.
        """
        found = await _insisted(lambda: self._journal.query(_HISTORY, (lane, after, limit)))
        return [
            Said(seq, InboundMessage.FromString(body), TurnRecord.FromString(result))
            for seq, body, result in reversed(found)
        ]

    async def get(self, key: str) -> Row | None:
        """One message."""
        return await self._rows.get(key)

    async def list(self, states: Sequence[int] | None, before_seq: int | None, limit: int) -> list[Row]:
        """Messages, newest first."""
        return await self._rows.list(states, before_seq, limit)

    async def reopen(self, key: str) -> Row | None:
        """Take a message up again that was given up or not confirmed. None if it is neither."""
        row = await self._rows.get(key)
        if row is None or row.state not in (InboxState.DEAD, InboxState.UNCONFIRMED):
            return None
        return await self._rows.reopen(key, InboxState.ACKNOWLEDGED)

    async def purge(self, keep_days: float) -> int:
        """Forget a batch of what was closed longer ago than this; returns how many."""
        return await self._rows.purge(time.time() - keep_days * 86_400, _PURGE_AT_ONCE)

    async def counts(self) -> dict[InboxState, int]:
        """How many messages stand how."""
        return {InboxState(state): count for state, count in (await self._rows.counts()).items()}

    async def oldest_open_s(self) -> float:
        """Age of the oldest message that waits for its answer, in seconds; 0 if none does."""
        oldest = await self._rows.oldest_open()
        return 0.0 if oldest is None else max(0.0, time.time() - oldest)


async def _insisted(read: Callable[[], Awaitable[_Read]]) -> _Read:
    """What is read, once the database gives it."""
    backoff = Backoff(first_s=0.05, max_s=1.0)
    while True:
        try:
            return await read()
        except StorageUnavailable:
            await asyncio.sleep(backoff.next_s())
