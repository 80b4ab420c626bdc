"""The schema, built up step by step; each step is applied once per database."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from sqlite3 import complete_statement

from assistant.journal.operation import Connection, Database

SHARED_ONLY = "-- shared databases only\n"
"""A migration that begins with this is for databases that several processes write to."""

_TABLE = "CREATE TABLE IF NOT EXISTS migrations (digest TEXT PRIMARY KEY, applied_at REAL NOT NULL)"


def migrate(database: Database, connection: Connection, migrations: Sequence[str]) -> None:
    """Apply the migrations that this database does not have yet, in order, each in one transaction.

    A migration is known by its text, so services with tables of different names can share a database. It is
    never changed once released: add another one.
    """
    connection.begin()
    connection.lock("migrations")
    connection.define(_TABLE)
    connection.commit()
    for sql in migrations:
        if database.shared or not sql.startswith(SHARED_ONLY):
            connection.begin()
            connection.lock("migrations")
            _apply(connection, sql, database.clock)
            connection.commit()


def digests(migrations: Sequence[str], *, shared: bool) -> list[str]:
    """By what the migrations of a database are known in it."""
    return [_digest(sql) for sql in migrations if shared or not sql.startswith(SHARED_ONLY)]


def _digest(sql: str) -> str:
    return sha256(sql.encode()).hexdigest()


def _apply(connection: Connection, sql: str, clock: str) -> None:
    digest = _digest(sql)
    if connection.execute("SELECT 1 FROM migrations WHERE digest = ?", (digest,)):
        return
    for statement in _statements(sql):
        connection.define(statement)
    connection.execute(f"INSERT INTO migrations (digest, applied_at) VALUES (?, {clock})", (digest,))  # noqa: S608


def _statements(sql: str) -> Iterator[str]:
    """Split at the semicolons that end a statement."""
    statement = ""
    for part in f"{sql};".split(";")[:-1]:
        statement += f"{part};"
        if complete_statement(statement):
            if statement.strip(" \n;"):
                yield statement
            statement = ""
