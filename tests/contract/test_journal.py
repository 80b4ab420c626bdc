"""What a journal promises, over every kind of database."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg.conninfo import conninfo_to_dict

from assistant.errors import InvalidSetting, StorageUnavailable
from assistant.journal import Journal, Operation, Transaction

MIGRATIONS = ["CREATE TABLE notes (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL UNIQUE);"]


def _write(transaction: Transaction, texts: list[str]) -> list[int]:
    records = transaction.executemany("INSERT INTO notes (text) VALUES (?) RETURNING id", [(text,) for text in texts])
    return [rows[0][0] for rows in records]


def _read(transaction: Transaction, patterns: list[str]) -> list[list[str]]:
    return [
        [text for (text,) in transaction.execute("SELECT text FROM notes WHERE text LIKE ? ORDER BY id", (pattern,))]
        for pattern in patterns
    ]


def _fail(_: Transaction, params: list[str]) -> list[None]:
    raise ValueError(params[0])


WRITE: Operation[str, int] = Operation("write", _write)
READ: Operation[str, list[str]] = Operation("read", _read)
FAIL: Operation[str, None] = Operation("fail", _fail)

_WRITE_UNTIL_KILLED = """
import asyncio, sys
from assistant.journal import Journal, Operation

def write(transaction, numbers):
    return [transaction.execute("INSERT INTO notes (text) VALUES (?)", (number,)) for number in numbers]

async def main():
    journal = await Journal.open(sys.argv[1], [sys.argv[2]])
    operation = Operation("write", write)
    for start in range(0, 10**9, 10):
        numbers = [str(number) for number in range(start, start + 10)]
        await asyncio.gather(*(journal.submit(operation, number) for number in numbers))
        print(*numbers, sep="\\n", flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def journal(database_url: str) -> AsyncIterator[Journal]:
    journal = await Journal.open(database_url, MIGRATIONS)
    yield journal
    await journal.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def commits() -> float:
    return metric("assistant_journal_commits_total", worker="writer")


@contextmanager
def as_operator(url: str) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    name = str(conninfo_to_dict(url)["dbname"])
    with psycopg.connect(url.replace(f"/{name}?", "/postgres?"), autocommit=True) as connection:
        yield connection, name


def disconnect_all(operator: psycopg.Connection[Any], name: str) -> None:
    operator.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,))


@contextmanager
def unavailable(url: str) -> Iterator[None]:
    """A database that takes nothing: a locked file, or a server that lets nobody in."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite://"), isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
        connection.close()
    else:
        with as_operator(url) as (operator, name):
            operator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            disconnect_all(operator, name)
            yield
            operator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


async def stored(journal: Journal, text: str) -> bool:
    try:
        return await journal.query(READ, text) == [text]
    except StorageUnavailable:
        return False


async def test_what_was_submitted_is_there_for_readers(journal: Journal) -> None:
    """A query begun after a submission returned sees what it stored."""
    first, second = await asyncio.gather(journal.submit(WRITE, "a1"), journal.submit(WRITE, "a2"))
    assert first != second
    assert await journal.query(READ, "a%") == ["a1", "a2"]


async def test_what_was_stored_outlives_the_journal(database_url: str) -> None:
    """A journal opened again has the rows, and its migrations are not applied twice."""
    for expected in ([], ["a"]):
        journal = await Journal.open(database_url, MIGRATIONS)
        assert await journal.query(READ, "a") == expected
        if not expected:
            await journal.submit(WRITE, "a")
        await journal.close()


async def test_a_later_migration_is_applied_to_an_existing_database(database_url: str) -> None:
    """A journal opened with one migration more gets that one alone."""
    first = await Journal.open(database_url, MIGRATIONS)
    await first.submit(WRITE, "a")
    await first.close()
    second = await Journal.open(database_url, [*MIGRATIONS, "UPDATE notes SET text = 'b'; DELETE FROM notes WHERE 1=0"])
    assert await second.query(READ, "%") == ["b"]
    await second.close()


async def test_a_broken_migration_leaves_nothing_behind(database_url: str) -> None:
    """A migration whose second statement fails is rolled back, and the database can be opened without it."""
    with pytest.raises((sqlite3.Error, psycopg.Error)):
        await Journal.open(database_url, [*MIGRATIONS, "CREATE TABLE half (a TEXT); CREATE TABLE notes (a TEXT);"])
    journal = await Journal.open(database_url, [*MIGRATIONS, "CREATE TABLE half (a TEXT)"])
    await journal.close()


async def test_many_submissions_share_a_commit(journal: Journal) -> None:
    """Submissions that wait at the same time are made durable together."""
    before = commits()
    await asyncio.gather(*(journal.submit(WRITE, str(number)) for number in range(500)))
    assert 2 <= commits() - before <= 50
    assert len(await journal.query(READ, "%")) == 500


async def test_posts_ride_along(journal: Journal) -> None:
    """What was posted before a submission is stored by the time the submission is."""
    journal.post((WRITE, "posted"))
    await journal.submit(WRITE, "submitted")
    assert await journal.query(READ, "%") == ["posted", "submitted"]


async def test_posts_go_by_themselves(journal: Journal) -> None:
    """What was posted is stored soon, though nobody submits anything."""
    journal.post((WRITE, "posted"))
    await until(lambda: stored(journal, "posted"))


async def test_a_flush_waits_for_all_posts(journal: Journal) -> None:
    """After a flush everything posted before is stored, more than fits a transaction."""
    for number in range(1_000):
        journal.post((WRITE, str(number)))
    await journal.flush()
    assert len(await journal.query(READ, "%")) == 1_000


async def test_closing_stores_what_was_posted(database_url: str) -> None:
    """Nothing posted is lost when a journal is closed."""
    journal = await Journal.open(database_url, MIGRATIONS)
    journal.post((WRITE, "posted"))
    await journal.close()
    journal = await Journal.open(database_url, MIGRATIONS)
    assert await journal.query(READ, "%") == ["posted"]
    await journal.close()


async def test_a_closed_journal_takes_nothing(database_url: str) -> None:
    """Submitting to a closed journal fails at once instead of waiting for ever."""
    journal = await Journal.open(database_url, MIGRATIONS)
    await journal.close()
    with pytest.raises(StorageUnavailable):
        await journal.submit(WRITE, "late")
    with pytest.raises(StorageUnavailable):
        journal.post((WRITE, "late"))
    with pytest.raises(StorageUnavailable):
        await journal.query(READ, "late")


async def test_submit_all_is_all_or_nothing(journal: Journal) -> None:
    """If one of several operations submitted together fails, none is stored."""
    with pytest.raises(ValueError, match="no"):
        await journal.submit_all([(WRITE, "a"), (FAIL, "no")])
    results = await journal.submit_all([(WRITE, "b"), (READ, "b")])
    assert results[1] == ["b"]
    assert await journal.query(READ, "%") == ["b"]


async def test_a_wrong_operation_hurts_only_its_caller(journal: Journal) -> None:
    """Of submissions that share a transaction, only the failing ones fail, each with its own error."""
    await journal.submit(WRITE, "twice")
    results = await asyncio.gather(
        *(journal.submit(WRITE, str(number)) for number in range(5)),
        journal.submit(FAIL, "one"),
        journal.submit(WRITE, "twice"),
        journal.submit(FAIL, "two"),
        *(journal.submit(WRITE, str(number)) for number in range(5, 10)),
        return_exceptions=True,
    )
    failed = [result for result in results if isinstance(result, BaseException)]
    assert [str(error) for error in failed if isinstance(error, ValueError)] == ["one", "two"]
    assert [type(error).__name__ for error in failed if not isinstance(error, ValueError)] in (
        ["IntegrityError"],
        ["UniqueViolation"],
    )
    assert sorted(await journal.query(READ, "_")) == [str(number) for number in range(10)]


async def test_a_wrong_operation_may_stand_anywhere(journal: Journal) -> None:
    """Wherever in a large transaction the failing ones stand, all others are stored."""
    await journal.submit(WRITE, "twice")
    for place in (0, 1, 100, 199):
        texts = [f"{place} {number}" for number in range(200)]
        texts[place] = "twice"
        results = await asyncio.gather(*(journal.submit(WRITE, text) for text in texts), return_exceptions=True)
        assert [number for number, result in enumerate(results) if isinstance(result, BaseException)] == [place]
        assert type(results[place]).__name__ in ("IntegrityError", "UniqueViolation")
        assert len(await journal.query(READ, f"{place} %")) == 199


async def test_a_wrong_post_does_not_stop_the_others(journal: Journal) -> None:
    """A posted operation that can never succeed is given up, counted, and those around it are stored."""
    before = metric("assistant_journal_refused_operations_total")
    journal.post((WRITE, "before"))
    journal.post((WRITE, "with it"), (FAIL, "no"))
    journal.post((WRITE, "after"))
    await journal.flush()
    assert await journal.query(READ, "%") == ["before", "after"]
    assert metric("assistant_journal_refused_operations_total") - before == 1


async def test_a_caller_may_go_away(journal: Journal) -> None:
    """A cancelled caller does not disturb those who share its transaction."""
    cancelled = asyncio.ensure_future(journal.submit(WRITE, "cancelled"))
    waiting = asyncio.ensure_future(journal.submit(WRITE, "waiting"))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert await waiting > 0


async def test_an_unavailable_database_refuses_and_recovers(journal: Journal, database_url: str) -> None:
    """While the database takes nothing, callers are told so and posts are kept; afterwards all goes on by itself."""
    with unavailable(database_url):
        journal.post((WRITE, "posted"))
        with pytest.raises(StorageUnavailable) as refused:
            await journal.submit(WRITE, "refused")
        assert refused.value.retry_after_s
        assert metric("assistant_journal_posted_operations") == 1
        with pytest.raises(StorageUnavailable):
            await journal.flush()
    await until(lambda: stored(journal, "posted"))
    await journal.submit(WRITE, "afterwards")
    assert await journal.query(READ, "%") == ["posted", "afterwards"]
    assert metric("assistant_journal_posted_operations") == 0


async def test_closing_does_not_hang_on_an_unavailable_database(database_url: str) -> None:
    """A journal whose database takes nothing can be closed; whoever waits is told."""
    journal = await Journal.open(database_url, MIGRATIONS)
    with unavailable(database_url):
        journal.post((WRITE, "lost"))
        waiting = asyncio.ensure_future(journal.submit(WRITE, "refused"))
        await asyncio.sleep(0)
        await journal.close()
        with pytest.raises(StorageUnavailable):
            await waiting


async def test_acknowledged_rows_survive_a_kill(database_url: str) -> None:
    """Whatever a killed process was told is durable is there for the next one."""
    command = [sys.executable, "-c", _WRITE_UNTIL_KILLED, database_url, MIGRATIONS[0]]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = [(await process.stdout.readline()).decode().strip() for _ in range(200)]
    process.kill()
    acknowledged += (await process.stdout.read()).decode().split()
    await process.wait()
    assert len(acknowledged) >= 200
    journal = await Journal.open(database_url, MIGRATIONS)
    assert set(acknowledged) <= set(await journal.query(READ, "%"))
    await journal.close()


@pytest.mark.parametrize("url", ["mysql://localhost/x", "sqlite://relative.db", "state.db", "postgresql://a b@x/y?z"])
async def test_a_wrong_url_is_refused(url: str) -> None:
    """A database URL that means nothing stops the start with what to write instead."""
    with pytest.raises(InvalidSetting, match=r"sqlite:///|postgresql://"):
        await Journal.open(url, [])


async def test_an_unreachable_server_is_named() -> None:
    """A PostgreSQL server that does not answer is StorageUnavailable, with its address and without the password."""
    with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1/assistant") as refused:
        await Journal.open("postgresql://me:hunter2@127.0.0.1:1/assistant", [])
    assert "hunter2" not in str(refused.value)


async def test_replicas_may_start_at_once(postgres_url: str) -> None:
    """Journals that open one empty PostgreSQL database at the same time all find its schema complete."""
    journals = await asyncio.gather(*(Journal.open(postgres_url, MIGRATIONS) for _ in range(4)))
    await asyncio.gather(*(journal.submit(WRITE, str(number)) for number, journal in enumerate(journals)))
    assert len(await journals[0].query(READ, "%")) == 4
    await asyncio.gather(*(journal.close() for journal in journals))


async def test_a_lost_connection_is_made_again(postgres_url: str) -> None:
    """After PostgreSQL dropped our connections, statements prepared before work again on new ones."""
    journal = await Journal.open(postgres_url, MIGRATIONS)
    for number in range(10):
        await journal.submit(WRITE, f"before {number}")
        await journal.query(READ, "%")
    with as_operator(postgres_url) as (operator, name):
        disconnect_all(operator, name)
    with pytest.raises(StorageUnavailable):
        await journal.submit(WRITE, "refused")
    await until(lambda: stored(journal, "before 9"))
    for number in range(10):
        await journal.submit(WRITE, f"after {number}")
    assert len(await journal.query(READ, "after%")) == 10
    await journal.close()
