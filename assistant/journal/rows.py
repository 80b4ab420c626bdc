"""A table of work: rows in lanes, each worked on by one process at a time.

Rows belong to an owner, which is one life of one process. An owner holds a lease, which it renews every
second; when it is over, another owner may take its rows. So a dead process costs one row in a table of
leases, however many rows it leaves behind, and a living one pays nothing per row. A row is changed only by
its owner, so whatever clocks do, and however long a process slept, no work is recorded twice.

An SQLite file belongs to one process: the lease is for ever, and ends when the next process opens the file.
"""

import asyncio
import builtins
import contextlib
import time
from collections.abc import Sequence
from typing import TypedDict, Unpack
from uuid import uuid4

from assistant import telemetry
from assistant.errors import StorageUnavailable
from assistant.journal.journal import Journal
from assistant.journal.row_operations import Admission, Admitted, Move, Row, RowOperations, schema
from assistant.journal.worker import Call

LEASE_S = 5.0
RENEW_EVERY_S = 1.0
_FOREVER_S = 1e9
_NO_SEQ = 2**62


class Changes(TypedDict, total=False):
    """What a move may change besides the state. What is left out, or None, stays as it is."""

    result: bytes | None
    error: str | None
    due_at: float | None
    """Seconds since 1970."""
    attempted: bool
    """True counts an attempt."""
    from_states: Sequence[int] | None
    """Move only if the row is in one of these; by default, if it is open."""


class Rows:
    """One process' hold on a table of work. Make one per table and process.

    Whatever writes raises StorageUnavailable if nothing was stored.
    """

    def __init__(self, journal: Journal, table: str, owner: str) -> None:
        """`owner` names the process, the same over restarts and unlike all others, such as "host:port"."""
        self._journal = journal
        self._name = owner
        self._owner = f"{owner}#{uuid4().hex[:12]}"
        self._operations = RowOperations(table, journal.clock, shared=journal.shared)
        self._lease_s = LEASE_S if journal.shared else _FOREVER_S
        self._renewed_at = float("-inf")
        self._renewing: asyncio.Task[None] | None = None

    @staticmethod
    def migrations(table: str) -> list[str]:
        """The schema of a table of work and its leases."""
        return schema(table)

    # --- Ownership --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take a lease, and end those of this process' earlier lives."""
        await self._journal.submit(self._operations.end_earlier_lives, (self._owner, self._name))
        await self._renew()
        if self._journal.shared:
            self._renewing = asyncio.create_task(self._renew_forever())

    async def close(self) -> None:
        """Give the lease back: what is still open may be taken over at once."""
        if self._renewing:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        self._renewed_at = float("-inf")
        with contextlib.suppress(StorageUnavailable):  # then it ends by itself
            await self._journal.submit(self._operations.release_lease, (self._owner,))

    def owns(self, row: Row) -> bool:
        """Whether the row was ours when it was read."""
        return row.owner == self._owner

    def holds_lease(self) -> bool:
        """Whether our lease surely holds. If not, others may have taken our rows."""
        return time.monotonic() - self._renewed_at < self._lease_s

    async def _renew(self) -> None:
        began_at = time.monotonic()
        await self._journal.submit(self._operations.renew_lease, (self._owner, self._name, self._lease_s))
        self._renewed_at = began_at

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self._renew()
            except StorageUnavailable as error:
                telemetry.error("lease_not_renewed", error, owner=self._owner)

    # --- Work -------------------------------------------------------------------------------------------

    async def admit(self, key: str, lane: str, body: bytes, state: int = 0) -> Admitted:
        """Insert a row of ours, once: durable on return. After StorageUnavailable, repeat it."""
        if not self.holds_lease():
            await self._renew()
        now = time.time()
        return await self._journal.submit(
            self._operations.admit, Admission(key, lane, state, body, self._owner, now, now)
        )

    async def adopt(self, key: str, states: Sequence[int] = (0,)) -> Row | None:
        """Take a row over, whoever owns it, if its state is one of these. None if it is not."""
        return await self._journal.submit(self._operations.adopt(frozenset(states)), (self._owner, key))

    async def move(self, key: str, state: int, **changes: Unpack[Changes]) -> bool:
        """Change a row of ours, durably. False, and nothing is changed, if it is not ours or not in `from_states`."""
        operation, params = self.move_operation(key, state, **changes)
        moved: bool = await self._journal.submit(operation, params)
        return moved

    def post_move(self, key: str, state: int, **changes: Unpack[Changes]) -> None:
        """As `move`, but soon, with the next commit."""
        self._journal.post(self.move_operation(key, state, **changes))

    def move_operation(self, key: str, state: int, **changes: Unpack[Changes]) -> Call:
        """A `move` that can share a transaction with other operations. Its result is whether it moved."""
        states = changes.get("from_states")
        return self._operations.move(None if states is None else frozenset(states)), Move(
            key,
            self._owner,
            state,
            changes.get("result"),
            changes.get("error"),
            changes.get("due_at"),
            int(changes.get("attempted", False)),
            time.time(),
        )

    async def recover(self, limit: int) -> builtins.list[Row]:
        """Take over open rows whose owner's lease is over, oldest first. Fewer than `limit`: there are no more."""
        return await self._journal.submit(self._operations.recover, (self._owner, limit))

    async def blocked(self, lane: str, seq: int) -> bool:
        """Whether an open row of the lane, earlier than `seq`, belongs to another owner.

        If that owner is dead, somebody's `recover` will take the row over.
        """
        if not self._journal.shared:
            return False
        return await self._journal.query(self._operations.blocked, (lane, seq, self._owner))

    async def earlier(self, lane: str, seq: int) -> builtins.list[str]:
        """The keys of the open rows of the lane that are earlier than `seq`, whoever owns them.

        On a database that only we write to there is nothing to ask: whoever admitted them knows.
        """
        if not self._journal.shared:
            return []
        return await self._journal.query(self._operations.earlier, (lane, seq))

    # --- For operators ----------------------------------------------------------------------------------

    async def get(self, key: str) -> Row | None:
        """The row of a key."""
        return await self._journal.query(self._operations.get, (key,))

    async def list(self, states: Sequence[int] | None, before_seq: int | None, limit: int) -> builtins.list[Row]:
        """Rows in any of the states (None: all), newest first; `before_seq` continues an earlier list."""
        params = (_NO_SEQ if before_seq is None else before_seq, limit)
        if states is None:
            return await self._journal.query(self._operations.list_all, params)
        found = [await self._journal.query(self._operations.list_state(int(state)), params) for state in states]
        return sorted((row for rows in found for row in rows), reverse=True)[:limit]

    async def reopen(self, key: str, state: int) -> Row | None:
        """Take up a closed row again, as ours, with no attempts counted. None if it is open or unknown."""
        return await self._journal.submit(self._operations.reopen, (state, self._owner, time.time(), key))

    async def purge(self, closed_before: float, limit: int) -> int:
        """Forget up to `limit` rows that were closed before this time (seconds since 1970); how many they were."""
        return await self._journal.submit(self._operations.purge, (closed_before, limit))

    async def counts(self) -> dict[int, int]:
        """How many rows are in which state."""
        return await self._journal.query(self._operations.counts, ())

    async def oldest_open(self) -> float | None:
        """When the oldest open row was admitted, in seconds since 1970. None if none is open."""
        return await self._journal.query(self._operations.oldest_open, ())
