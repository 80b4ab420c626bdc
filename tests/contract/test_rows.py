"""What a table of work promises, over every kind of database."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Any

import pytest

from assistant.journal import Journal, Operation, Rows, Transaction
from assistant.journal.row_operations import Admission, Move, RowOperations
from assistant.journal.sqlite import SqliteConnection
from assistant.journal.worker import Call


class State(IntEnum):
    WAITING = 0
    WORKING = 1
    DONE = 2
    DEAD = 3


@asynccontextmanager
async def opened(url: str, owner: str) -> AsyncIterator[Rows]:
    """A process' hold on the table, given back in the end."""
    journal = await Journal.open(url, Rows.migrations("work"))
    rows = Rows(journal, "work", owner)
    await rows.open()
    yield rows
    await rows.close()
    await journal.close()


@asynccontextmanager
async def killed(url: str, owner: str) -> AsyncIterator[Rows]:
    """A process' hold on the table, not given back: what a crash leaves behind."""
    journal = await Journal.open(url, Rows.migrations("work"))
    rows = Rows(journal, "work", owner)
    await rows.open()
    yield rows
    await journal.close()
    if rows._renewing:
        rows._renewing.cancel()


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with opened(database_url, "one:1") as rows:
        yield rows


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_an_admitted_row_is_ours_and_durable(rows: Rows) -> None:
    """A new row is what was given, owned by us, open, and the same when read again."""
    row, new, blocked = await rows.admit("key", "lane", b"\x00body\xff", State.WAITING)
    assert (row.key, row.lane, row.state, row.body) == ("key", "lane", State.WAITING, b"\x00body\xff")
    assert (row.result, row.attempts, row.due_at, row.error) == (None, 0, 0.0, "")
    assert new
    assert not blocked
    assert rows.owns(row)
    assert row.live
    assert row.is_open
    assert await rows.get("key") == row


async def test_a_key_is_admitted_once(rows: Rows) -> None:
    """Of many admissions of one key, at once or later, one is new, and all see its row."""
    at_once = await asyncio.gather(*(rows.admit("key", "lane", str(number).encode()) for number in range(5)))
    later = await rows.admit("key", "another lane", b"other")
    assert [admitted.new for admitted in [*at_once, later]].count(True) == 1
    first = next(admitted.row for admitted in at_once if admitted.new)
    assert {admitted.row for admitted in [*at_once, later]} == {first}


async def test_rows_are_numbered_in_the_order_of_admission(rows: Rows) -> None:
    """Rows admitted together get ascending numbers in the order of the calls."""
    admitted = await asyncio.gather(*(rows.admit(str(number), "lane", b"") for number in range(300)))
    numbers = [row.seq for row, _, _ in admitted]
    assert numbers == sorted(set(numbers))


async def test_a_move_changes_what_it_names(rows: Rows) -> None:
    """A move sets the state and what is given, counts an attempt if told so, and leaves the rest."""
    await rows.admit("key", "lane", b"body")
    assert await rows.move("key", State.WORKING, error="busy", due_at=12.5, attempted=True)
    assert await rows.move("key", State.WORKING, result=b"half", attempted=True)
    row = await rows.get("key")
    assert row
    assert (row.state, row.result, row.error, row.due_at, row.attempts) == (State.WORKING, b"half", "busy", 12.5, 2)
    assert row.body == b"body"
    assert row.updated_at >= row.created_at


async def test_a_move_from_another_state_is_refused(rows: Rows) -> None:
    """A move happens only from the states that it names, by default from open ones."""
    await rows.admit("key", "lane", b"")
    assert not await rows.move("key", State.DONE, from_states=(State.WORKING,))
    assert await rows.move("key", State.DONE, from_states=(State.WAITING, State.WORKING))
    assert not await rows.move("key", State.WORKING)
    assert await rows.move("key", State.DEAD, from_states=(State.DONE,))
    assert not await rows.move("unknown", State.DONE)
    row = await rows.get("key")
    assert row
    assert row.state == State.DEAD


async def test_moves_at_once_each_know_whether_they_moved(rows: Rows) -> None:
    """Of moves that share a transaction, those of one row happen one after the other."""
    await asyncio.gather(*(rows.admit(key, "lane", b"") for key in "abc"))
    moved = await asyncio.gather(
        rows.move("a", State.WORKING),
        rows.move("b", State.DONE),
        rows.move("b", State.DEAD),
        rows.move("none", State.DONE),
        rows.move("c", State.DONE, result=b"c"),
    )
    assert list(moved) == [True, True, False, False, True]
    assert {(row.key, row.state) for row in await rows.list(None, None, 9)} == {
        ("a", State.WORKING),
        ("b", State.DONE),
        ("c", State.DONE),
    }


async def test_posted_moves_happen_in_order(rows: Rows) -> None:
    """Moves posted one after another are all done, in that order."""
    await rows.admit("key", "lane", b"")
    rows.post_move("key", State.WORKING, error="first", attempted=True)
    rows.post_move("key", State.DONE, error="second", attempted=True)
    await rows.admit("next", "lane", b"")
    row = await rows.get("key")
    assert row
    assert (row.state, row.error, row.attempts) == (State.DONE, "second", 2)


async def test_lists_are_paged_newest_first(rows: Rows) -> None:
    """A list shows the rows of the wanted states, newest first, and goes on where it ended."""
    for key in "abcdef":
        await rows.admit(key, "lane", b"")
    for key in "bd":
        await rows.move(key, State.DONE)
    await rows.move("e", State.DEAD)

    async def keys(states: Sequence[int] | None, before: int | None = None, limit: int = 9) -> str:
        return "".join(row.key for row in await rows.list(states, before, limit))

    assert await keys(None) == "fedcba"
    assert await keys((State.WAITING, State.WORKING)) == "fca"
    assert await keys((State.DEAD, State.DONE)) == "edb"
    assert await keys((State.DONE, State.WAITING), limit=2) == "fd"
    d = await rows.get("d")
    assert d
    assert await keys(None, before=d.seq, limit=2) == "cb"
    assert await keys((State.DONE,), before=d.seq) == "b"


async def test_counts_and_the_oldest_open_row(rows: Rows) -> None:
    """Counts tell how many rows are in which state; the oldest open row tells since when work waits."""
    assert await rows.counts() == {}
    assert await rows.oldest_open() is None
    first = (await rows.admit("a", "lane", b"")).row
    second = (await rows.admit("b", "lane", b"")).row
    assert await rows.oldest_open() == first.created_at
    await rows.move("a", State.DONE)
    assert await rows.counts() == {State.WAITING: 1, State.DONE: 1}
    assert await rows.oldest_open() == second.created_at


async def test_reopening_a_closed_row(rows: Rows) -> None:
    """A closed row taken up again is open and ours, with no attempts; an open one is left alone."""
    await rows.admit("key", "lane", b"")
    assert await rows.reopen("key", State.WAITING) is None
    await rows.move("key", State.DEAD, error="gave up", due_at=99.0, attempted=True)
    row = await rows.reopen("key", State.WORKING)
    assert row
    assert (row.state, row.attempts, row.due_at, row.error) == (State.WORKING, 0, 0.0, "")
    assert rows.owns(row)
    assert await rows.reopen("unknown", State.WAITING) is None


async def test_purging_forgets_old_closed_rows(rows: Rows) -> None:
    """Only rows closed before the given time are forgotten, no more at once than wanted."""
    for key in "abcd":
        await rows.admit(key, "lane", b"")
    for key in "abc":
        await rows.move(key, State.DONE)
    assert await rows.purge(time.time() - 60, 10) == 0
    assert await rows.purge(time.time() + 60, 2) == 2
    assert await rows.purge(time.time() + 60, 2) == 1
    assert [row.key for row in await rows.list(None, None, 9)] == ["d"]


async def test_work_goes_on_while_old_rows_are_purged(rows: Rows) -> None:
    """Admissions beside a purge in batches are all stored, and the purge forgets only what is old and closed."""
    for start in range(0, 600, 200):
        keys = [f"old {number}" for number in range(start, start + 200)]
        await asyncio.gather(*(rows.admit(key, "lane", b"x" * 400) for key in keys))
        await asyncio.gather(*(rows.move(key, State.DONE) for key in keys))
    closed_before = time.time() + 60

    async def purge() -> int:
        purged = 0
        while batch := await rows.purge(closed_before, 50):
            purged += batch
        return purged

    purging = asyncio.create_task(purge())
    admitted = await asyncio.gather(*(rows.admit(f"new {number}", "lane", b"") for number in range(100)))
    assert await purging == 600
    assert all(each.new for each in admitted)
    assert await rows.counts() == {State.WAITING: 100}


async def test_numbers_are_not_used_again(rows: Rows) -> None:
    """A row admitted after the newest one was forgotten gets a number of its own."""
    old = (await rows.admit("a", "lane", b"")).row
    await rows.move("a", State.DONE)
    await rows.purge(time.time() + 60, 9)
    assert (await rows.admit("b", "lane", b"")).row.seq > old.seq


async def test_the_next_life_recovers_what_a_crash_left(database_url: str) -> None:
    """A process that starts again takes over the open rows of its earlier life, oldest first, in batches."""
    async with killed(database_url, "one:1") as before:
        for key in "abcd":
            await before.admit(key, "lane", b"")
        await before.move("b", State.DONE)
        await before.move("c", State.WORKING, attempted=True)
    async with opened(database_url, "one:1") as rows:
        known = (await rows.admit("a", "lane", b"")).row
        assert not rows.owns(known)
        assert not known.live
        assert not await rows.move("a", State.DONE)
        assert [row.key for row in await rows.recover(2)] == ["a", "c"]
        recovered = await rows.recover(2)
        assert [(row.key, rows.owns(row), row.live) for row in recovered] == [("d", True, True)]
        assert await rows.recover(2) == []
        assert await rows.move("a", State.DONE)


async def test_adopting_takes_a_row_over(database_url: str) -> None:
    """A row left by somebody else can be adopted in the states named, and in no others."""
    async with killed(database_url, "one:1") as before:
        await before.admit("key", "lane", b"body")
    async with opened(database_url, "two:1") as rows:
        assert await rows.adopt("key", (State.WORKING,)) is None
        row = await rows.adopt("key")
        assert row
        assert rows.owns(row)
        assert row.body == b"body"
        assert await rows.move("key", State.DONE)
        assert await rows.adopt("key") is None
        assert await rows.adopt("unknown") is None


async def test_moves_share_a_transaction_with_other_operations(rows: Rows) -> None:
    """A move can be submitted together with operations of the caller's own."""

    def note(transaction: Transaction, keys: list[str]) -> list[int]:
        return [len(transaction.execute("SELECT 1 FROM work WHERE key = ?", (key,))) for key in keys]

    await rows.admit("key", "lane", b"")
    operation: Operation[str, int] = Operation("note", note)
    assert await rows._journal.submit_all([rows.move_operation("key", State.DONE), (operation, "key")]) == [True, 1]


# --- Several owners at once: only a shared database has them ------------------------------------------------


async def test_the_row_of_a_living_owner_is_its_own(postgres_url: str) -> None:
    """What another living owner works on can neither be moved nor recovered, until it is adopted."""
    async with opened(postgres_url, "one:1") as one, opened(postgres_url, "two:1") as two:
        await one.admit("key", "lane", b"")
        known = await two.admit("key", "lane", b"")
        assert not known.new
        assert known.row.live
        assert not two.owns(known.row)
        assert not await two.move("key", State.DONE)
        assert await two.recover(10) == []
        assert await two.adopt("key")
        assert not await one.move("key", State.DONE)
        assert await two.move("key", State.DONE)


async def test_a_lane_is_blocked_by_an_earlier_row_of_another_owner(postgres_url: str) -> None:
    """A row waits for earlier rows of its lane that another owner has not closed; other lanes do not matter."""
    async with opened(postgres_url, "one:1") as one, opened(postgres_url, "two:1") as two:
        assert not (await one.admit("a1", "a", b"")).blocked
        assert not (await one.admit("a2", "a", b"")).blocked
        third = await two.admit("a3", "a", b"")
        other = await two.admit("b1", "b", b"")
        assert third.blocked
        assert not other.blocked
        assert await two.blocked("a", third.row.seq)
        assert await two.earlier("a", third.row.seq) == ["a1", "a2"]
        await one.move("a1", State.DONE)
        assert await two.blocked("a", third.row.seq)
        assert await two.earlier("a", third.row.seq) == ["a2"]
        await one.move("a2", State.DEAD)
        assert not await two.blocked("a", third.row.seq)


async def test_of_two_owners_in_a_lane_exactly_one_is_not_blocked(postgres_url: str) -> None:
    """However admissions of two owners interleave, only the first row of a lane may be worked on at once."""
    async with opened(postgres_url, "one:1") as one, opened(postgres_url, "two:1") as two:
        owners = (one, two)
        admitted = await asyncio.gather(
            *(owners[number % 2].admit(f"{number}", f"{number // 2 % 40}", b"") for number in range(400))
        )
        for lane in range(40):
            in_lane = sorted(each for each in admitted if each.row.lane == str(lane))
            first_owner = in_lane[0].row.owner
            seen_other = False
            for each in in_lane:
                seen_other = seen_other or each.row.owner != first_owner
                assert each.blocked == (seen_other and any(r.row.owner != each.row.owner for r in in_lane if r < each))


async def test_a_dead_owners_rows_are_taken_over_when_its_lease_ends(postgres_url: str) -> None:
    """Rows of a killed process stay blocked until its lease is over, and then go to exactly one of the others."""
    async with opened(postgres_url, "two:1") as two, opened(postgres_url, "three:1") as three:
        async with killed(postgres_url, "one:1") as one:
            for number in range(20):
                await one.admit(f"{number}", "lane", b"")
        later = await two.admit("later", "lane", b"")
        assert later.blocked
        assert await two.recover(100) == []

        taken: list[list[Any]] = [[], []]

        async def all_taken() -> bool:
            for rows, mine in zip((two, three), taken, strict=True):
                mine += [row.key for row in await rows.recover(3)]
            return sum(map(len, taken)) >= 20

        await until(all_taken)
        assert sorted(taken[0] + taken[1], key=int) == [str(number) for number in range(20)]
        assert taken[0]
        assert taken[1]


async def test_an_owner_that_slept_can_neither_move_nor_lose_rows(postgres_url: str) -> None:
    """An owner whose rows were taken over while it slept sees its moves refused, and goes on with new rows."""
    async with opened(postgres_url, "one:1") as one, opened(postgres_url, "two:1") as two:
        await one.admit("old", "lane", b"")
        await _end_leases(two, except_for="two:1")
        assert [row.key for row in await two.recover(10)] == ["old"]
        assert not await one.move("old", State.DONE)
        new = await one.admit("new", "another lane", b"")
        assert one.owns(new.row)
        await until(lambda: _lives(two, "new"))
        assert await two.recover(10) == []
        assert await one.move("new", State.DONE)


async def test_a_lease_given_back_frees_rows_at_once(postgres_url: str) -> None:
    """What a process leaves open when it stops is taken over without waiting for a lease to end."""
    async with opened(postgres_url, "two:1") as two:
        async with opened(postgres_url, "one:1") as one:
            await one.admit("key", "lane", b"")
            assert one.holds_lease()
        assert not one.holds_lease()
        assert [row.key for row in await two.recover(10)] == ["key"]


async def _end_leases(rows: Rows, except_for: str) -> None:
    def end(transaction: Transaction, names: list[str]) -> list[None]:
        for name in names:
            transaction.execute("UPDATE work_leases SET expires_at = 0 WHERE name <> ?", (name,))
        return [None for _ in names]

    await rows._journal.submit(Operation("end", end), except_for)


async def _lives(rows: Rows, key: str) -> bool:
    row = await rows.get(key)
    return row is not None and row.live


# --- What statements cost -----------------------------------------------------------------------------------


class _Explaining:
    """A transaction that keeps the plan of every statement before it runs it."""

    def __init__(self, connection: Any, plans: list[str]) -> None:
        self._connection = connection
        self._plans = plans
        self._explain = "EXPLAIN QUERY PLAN" if isinstance(connection, SqliteConnection) else "EXPLAIN"

    def execute(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        plan = self._connection.execute(f"{self._explain} {sql}", params)
        self._plans += [f"{line[-1]}   [{sql}]" for line in plan]
        result: list[tuple[Any, ...]] = self._connection.execute(sql, params)
        return result

    def executemany(self, sql: str, batch: Sequence[Sequence[Any]]) -> list[list[tuple[Any, ...]]]:
        return [self.execute(sql, params) for params in batch]

    def execute_batch(self, sql: str, columns: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> Any:
        return type(self._connection).execute_batch(self, sql, columns, rows)

    def lock(self, name: str) -> None:
        self._connection.lock(name)


def _fill(transaction: Transaction, _: list[None]) -> list[None]:
    """Many closed rows, some open ones of ours, some that a dead owner left."""
    row = "INSERT INTO work (key, lane, body, created_at, state, owner, updated_at) VALUES (?, ?, ?, 0, ?, ?, ?)"
    body = b"x" * 400
    transaction.executemany(row, [(f"c{n}", f"{n % 99}", body, 2 + n % 2, "dead", n) for n in range(3_000)])
    transaction.executemany(row, [(f"o{n}", f"{n % 99}", body, n % 2, "live", n) for n in range(300)])
    transaction.executemany(row, [(f"d{n}", f"{n % 99}", body, n % 2, "dead", n) for n in range(50)])
    lease = "INSERT INTO work_leases (owner, name, expires_at) VALUES (?, ?, ?)"
    transaction.executemany(lease, [("live", "live", 9e9), ("dead", "dead", 0.0)])
    transaction.execute("ANALYZE")
    return [None]


async def test_no_statement_reads_the_whole_table(database_url: str) -> None:
    """Every statement finds its rows by an index, however many closed rows there are."""
    journal = await Journal.open(database_url, Rows.migrations("work"))
    await journal.submit(Operation("fill", _fill), None)
    rows = RowOperations("work", journal.clock, shared=journal.shared)
    move = Move("o1", "live", 1, None, None, None, 1, 1.0)
    calls: list[Call] = [
        (rows.admit, Admission("new", "1", 0, b"", "live", 1.0, 1.0)),
        (rows.admit, Admission("o1", "1", 0, b"", "live", 1.0, 1.0)),
        (rows.move(None), move),
        (rows.move(frozenset({0, 1})), move),
        (rows.adopt(frozenset({0})), ("live", "o1")),
        (rows.recover, ("live", 10)),
        (rows.reopen, (0, "live", 1.0, "c1")),
        (rows.purge, (100.0, 10)),
        (rows.get, ("o1",)),
        (rows.blocked, ("1", 3_100, "other")),
        (rows.earlier, ("1", 3_100)),
        (rows.list_all, (2_000, 10)),
        (rows.list_state(0), (9_999, 10)),
        (rows.list_state(3), (2_000, 10)),
        (rows.oldest_open, ()),
    ]
    plans: list[str] = []

    def explained(operation: Operation[Any, Any]) -> Operation[Any, Any]:
        return Operation(operation.name, lambda tx, batch: operation.run(_Explaining(tx, plans), batch))

    for operation, params in calls:
        await journal.submit(explained(operation), params)
    await journal.close()
    assert len(plans) > len(calls)
    whole_table = re.compile(r"Seq Scan on work\b|SCAN (work|earlier)\b(?! USING)")
    assert [line for line in plans if whole_table.search(line)] == []
