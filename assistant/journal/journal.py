"""The journal: what a service has been told is durable when it is told so."""

import asyncio
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any

from prometheus_client import Gauge

from assistant.errors import InvalidSetting
from assistant.journal.migrations import migrate
from assistant.journal.operation import Database, Operation, P, R
from assistant.journal.sqlite import SqliteDatabase
from assistant.journal.worker import Call, Worker

_POSTED = Gauge("assistant_journal_posted_operations", "Posted operations that are not yet durable.")


class Journal:
    """Durable rows behind one writing and one reading connection, each with its thread.

    Operations that are pending at the same time have no order between them: await one before submitting
    another that depends on it. All methods belong to the event loop in which the journal was opened.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = Worker("writer", database, partial(database.connect, read_only=False))
        self._reader = Worker("reader", database, partial(database.connect, read_only=True))
        _POSTED.set_function(self._writer.posted)

    @classmethod
    async def open(cls, url: str, migrations: Sequence[str]) -> "Journal":
        """Open `sqlite:///absolute/path.db` or `postgresql://…` and bring its schema up to date.

        Migrations are SQL in SQLite's dialect, applied in order, once per database; PostgreSQL gets its own
        names for the types BLOB, REAL and INTEGER.

        Raises InvalidSetting if the URL is wrong or another process has the file, StorageUnavailable if the
        database cannot be reached.
        """
        return cls(await asyncio.to_thread(_prepare, url, migrations))

    @property
    def shared(self) -> bool:
        """Whether other processes may write to the database."""
        return self._database.shared

    @property
    def clock(self) -> str:
        """An SQL expression: the database's time in seconds since 1970."""
        return self._database.clock

    def submit(self, operation: Operation[P, R], params: P) -> Awaitable[R]:
        """Run an operation; once this is awaited, it is durable.

        Raises StorageUnavailable if nothing was stored. (If the connection to PostgreSQL breaks during the
        commit, it may have been stored: submit what can be repeated.)
        """
        return self._writer.submit_one(operation, params)

    async def submit_all(self, calls: Sequence[Call]) -> list[Any]:
        """Run operations in one transaction: all are stored, or none. Raises as `submit` does."""
        return await self._writer.submit(calls)

    def post(self, *calls: Call) -> None:
        """Run operations in one transaction, soon: with the next commit, or by itself after 20 ms.

        They are kept and tried again while the database takes nothing; they are lost if the process dies.
        Raises StorageUnavailable if 100,000 are waiting already.
        """
        self._writer.post(calls)

    async def flush(self) -> None:
        """Return when all that was posted is durable. Raises StorageUnavailable; what was posted is kept."""
        await self._writer.flush()

    def query(self, operation: Operation[P, R], params: P) -> Awaitable[R]:
        """Run an operation that only reads, beside the writer. Raises StorageUnavailable."""
        return self._reader.submit_one(operation, params)

    async def close(self) -> None:
        """Store what is pending and let go of the database."""
        await self._writer.stop()
        await self._reader.stop()
        self._database.close()


def _prepare(url: str, migrations: Sequence[str]) -> Database:
    database = _database(url)
    try:
        connection = database.connect(read_only=False)
        try:
            migrate(database, connection, migrations)
        finally:
            connection.close()
    except BaseException:
        database.close()
        raise
    return database


def _database(url: str) -> Database:
    scheme = url.partition("://")[0]
    if scheme == "sqlite":
        return SqliteDatabase(url)
    if scheme in ("postgresql", "postgres"):
        from assistant.journal.postgres import PostgresDatabase  # a quarter of a second that SQLite need not spend

        return PostgresDatabase(url)
    raise InvalidSetting(f"database {scheme!r}://… is unknown: write sqlite:///absolute/path.db or postgresql://…")
