"""The schema, built up step by step; each step is applied once per database."""

from collections.abc import Sequence
from hashlib import sha256

from assistant.journal.operation import Connection

_TABLE = "CREATE TABLE IF NOT EXISTS migrations (digest TEXT PRIMARY KEY, applied_at REAL NOT NULL)"


def migrate(connection: Connection, migrations: Sequence[str], clock: str) -> None:
    """Apply the migrations that this database does not have yet, in order, each in one transaction.

    A migration is known by its text, so services with tables of different names can share a database. It is
    never changed once released: add another one.
    """
    for sql in [_TABLE, *migrations]:
        connection.begin()
        connection.lock("migrations")
        if sql == _TABLE:
            connection.script(sql)
        else:
            _apply(connection, sql, clock)
        connection.commit()


def _apply(connection: Connection, sql: str, clock: str) -> None:
    digest = sha256(sql.encode()).hexdigest()
    if not connection.execute("SELECT 1 FROM migrations WHERE digest = ?", (digest,)):
        connection.script(sql)
        connection.execute(f"INSERT INTO migrations (digest, applied_at) VALUES (?, {clock})", (digest,))  # noqa: S608
