"""PostgreSQL: a database that the replicas of a service share."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from itertools import count

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from assistant.errors import InvalidSetting, StorageUnavailable
from assistant.journal.operation import Params, Record

# A peer that is gone is noticed, and what a paused process has locked is freed, in seconds.
_CONNECTION = {
    "application_name": "ai-assistant",
    "connect_timeout": "3",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_SESSION = {"lock_timeout": "5s", "idle_in_transaction_session_timeout": "10s"}

_TYPES = {
    "INTEGER PRIMARY KEY AUTOINCREMENT": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "BLOB": "BYTEA",
}
_TYPE = re.compile(r"\b(?:" + "|".join(_TYPES) + r")\b")

_STATEMENT_TOO_LARGE = "54"
_READ_ONLY = "25006"
_IDLE_IN_TRANSACTION = "25P03"


class PostgresDatabase:
    """The database of a `postgresql://` URL."""

    shared = True
    clock = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"

    def __init__(self, url: str) -> None:
        """Raises InvalidSetting."""
        try:
            given = conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise InvalidSetting("database is not a URL of the form postgresql://user:password@host/name") from error
        self._conninfo = make_conninfo(url, **{key: value for key, value in _CONNECTION.items() if key not in given})
        self._name = f"{given.get('host', 'localhost')}/{given.get('dbname', '')}"

    def connect(self, *, read_only: bool) -> "PostgresConnection":
        """Raises StorageUnavailable."""
        try:
            return PostgresConnection(self._conninfo, read_only=read_only)
        except psycopg.Error as error:
            raise StorageUnavailable(f"database {self._name} cannot be reached: {error}") from error

    def trouble(self, error: Exception) -> str | None:
        """Gone, full, locked or standing by, as opposed to a statement that is wrong."""
        if not isinstance(error, psycopg.Error):
            return None
        state = error.sqlstate or ""
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            if state.startswith(_STATEMENT_TOO_LARGE):
                return None
        elif state not in (_READ_ONLY, _IDLE_IN_TRANSACTION):
            return None
        return f"{self._name}: {error.diag.message_primary or error}"

    def close(self) -> None:
        """There is nothing that the connections share."""


class PostgresConnection:
    """Implements `Connection`, in pipeline mode: only statements whose rows are wanted cost a round trip."""

    def __init__(self, conninfo: str, *, read_only: bool) -> None:
        self._connection = psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.RawCursor)
        self._open = ExitStack()
        try:
            for name, value in _SESSION.items():
                self._connection.execute("SELECT set_config($1, $2, FALSE)", (name, value))
            # Durable means durable, unless somebody asks for even more than "on".
            self._connection.execute(
                "SELECT set_config('synchronous_commit', 'on', FALSE) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
            self._connection.autocommit = False
            self._connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            self._connection.read_only = read_only
            self._pipeline = self._open.enter_context(self._connection.pipeline())
        except psycopg.Error:
            self._connection.close()
            raise

    def begin(self) -> None:
        """The driver does it with the first statement."""

    def commit(self) -> None:
        """See `Connection`."""
        self._connection.commit()

    def rollback(self) -> None:
        """See `Connection`."""
        self._connection.rollback()

    def execute(self, sql: str, params: Params = ()) -> list[Record]:
        """See `Transaction`."""
        return self.executemany(sql, [params])[0]

    def executemany(self, sql: str, batch: Sequence[Params]) -> list[list[Record]]:
        """See `Transaction`."""
        try:
            cursors = [self._connection.execute(_numbered(sql), params, binary=True) for params in batch]
            self._pipeline.sync()
        except psycopg.Error:
            with suppress(psycopg.Error):
                self._pipeline.sync()  # what was sent after the wrong one has failed with it
            raise
        return [cursor.fetchall() if cursor.description else [] for cursor in cursors]

    def execute_batch(self, sql: str, columns: Mapping[str, str], rows: Sequence[Params]) -> list[Record]:
        """See `Transaction`."""
        return self.execute(
            _with_batch(sql, tuple(columns.items())), [list(column) for column in zip(*rows, strict=True)]
        )

    def lock(self, name: str) -> None:
        """See `Transaction`."""
        self._connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", (f"ai-assistant/{name}",))

    def define(self, sql: str) -> None:
        """See `Connection`. Types are written as in SQLite."""
        self.execute(_TYPE.sub(lambda found: _TYPES[found[0]], sql))

    def close(self) -> None:
        """See `Connection`."""
        with suppress(psycopg.Error):
            self._open.close()
        self._connection.close()


@cache
def _numbered(sql: str) -> str:
    """`?` placeholders as PostgreSQL's `$1`, `$2`, …"""
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", sql)


@cache
def _with_batch(sql: str, columns: tuple[tuple[str, str], ...]) -> str:
    names = ", ".join(name for name, _ in columns)
    arrays = ", ".join(f"CAST(? AS {_TYPES.get(kind, kind)}[])" for _, kind in columns)
    return f"WITH batch ({names}) AS (SELECT * FROM unnest({arrays})) {sql}"  # noqa: S608 - the code's own names
