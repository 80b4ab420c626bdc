"""SQLite: a file that one process has to itself. WAL, and an fsync with every commit."""

import fcntl
import os
import sqlite3
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

from assistant.errors import InvalidSetting, StorageUnavailable
from assistant.journal.operation import Params, Record

_BUSY_TIMEOUT_S = 2.0
_CACHED_STATEMENTS = 256
_ROWS_AT_ONCE = 16
_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}


class SqliteDatabase:
    """The file of a `sqlite:///absolute/path` URL, locked against other processes while this lives."""

    shared = False
    clock = "((julianday('now') - 2440587.5) * 86400.0)"

    def __init__(self, url: str) -> None:
        """Raises InvalidSetting if the URL is wrong, the folder cannot be written, or another process has the file."""
        self.path = _path(url)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(f"{self.path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise InvalidSetting(f"database {self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise InvalidSetting(
                f"database {self.path} is in use by another process: SQLite serves one. "
                "Stop the other one, or give all replicas one postgresql:// URL as their database."
            ) from error

    def connect(self, *, read_only: bool) -> "SqliteConnection":
        """Raises StorageUnavailable, or InvalidSetting if the file is something else."""
        try:
            return SqliteConnection(self.path, read_only=read_only)
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise InvalidSetting(f"database {self.path} is not an SQLite file: choose another path") from error
            raise StorageUnavailable(f"database {self.path} cannot be opened: {error}") from error

    def trouble(self, error: Exception) -> str | None:
        """Full, unreadable or locked, as opposed to a statement that is wrong."""
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNAVAILABLE:
            return f"{self.path}: {error}"
        return None

    def close(self) -> None:
        """Unlock the file."""
        os.close(self._lock)


class SqliteConnection:
    """Implements `Connection`."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._connection = sqlite3.connect(
            path,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,  # made in one thread, used by another one
            cached_statements=_CACHED_STATEMENTS,
        )
        self._begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        try:
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                "foreign_keys=ON",
                "temp_store=MEMORY",
                f"query_only={read_only:d}",
            ):
                self._connection.execute(f"PRAGMA {pragma}").close()
        except sqlite3.Error:
            self._connection.close()
            raise
        self._cursor = self._connection.cursor()

    def begin(self) -> None:
        """The writer takes the write lock at once, so that no statement meets it later."""
        self._cursor.execute(self._begin)

    def commit(self) -> None:
        """The write-ahead log is synchronised."""
        self._cursor.execute("COMMIT")

    def rollback(self) -> None:
        """SQLite may have done it already, as when the disk is full."""
        if self._connection.in_transaction:
            self._cursor.execute("ROLLBACK")

    def execute(self, sql: str, params: Params = ()) -> list[Record]:
        """See `Transaction`."""
        return self._cursor.execute(sql, params).fetchall()

    def executemany(self, sql: str, batch: Sequence[Params]) -> list[list[Record]]:
        """See `Transaction`."""
        execute = self._cursor.execute
        return [execute(sql, params).fetchall() for params in batch]

    def execute_batch(self, sql: str, columns: Mapping[str, str], rows: Sequence[Params]) -> list[Record]:
        """See `Transaction`."""
        whole = len(rows) // _ROWS_AT_ONCE * _ROWS_AT_ONCE  # so that few different statements are prepared
        records: list[Record] = []
        for part in (rows[:whole], rows[whole:]):
            if part:
                statement = _with_batch(sql, tuple(columns), len(part))
                records += self.execute(statement, list(chain.from_iterable(part)))
        return records

    def lock(self, name: str) -> None:
        """The writer has the whole file."""

    def define(self, sql: str) -> None:
        """See `Connection`."""
        self._cursor.execute(sql)

    def close(self) -> None:
        """See `Connection`."""
        self._connection.close()


@cache
def _with_batch(sql: str, columns: tuple[str, ...], rows: int) -> str:
    row = f"({', '.join('?' for _ in columns)})"
    return f"WITH batch ({', '.join(columns)}) AS (VALUES {', '.join([row] * rows)}) {sql}"


def _path(url: str) -> Path:
    path = url.removeprefix("sqlite://")
    if not url.startswith("sqlite://") or not path.startswith("/"):
        raise InvalidSetting(f"database {url!r} is not a path: write sqlite:///absolute/path.db")
    return Path("/", path.lstrip("/"))  # some write four slashes, and Path would keep two of them
