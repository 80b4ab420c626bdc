"""What is done in a transaction, and what a database must offer for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

P = TypeVar("P")
R = TypeVar("R", covariant=True)
Params = Sequence[Any]
Record = tuple[Any, ...]


class Transaction(Protocol):
    """A transaction under way.

    Statements are written in SQLite's dialect, as far as PostgreSQL has it too, with `?` placeholders.
    """

    def execute(self, sql: str, params: Params = ()) -> list[Record]:
        """Run one statement; its rows, if it returns any."""

    def executemany(self, sql: str, batch: Sequence[Params]) -> list[list[Record]]:
        """Run one statement for each set of parameters, in order; the rows of each."""

    def execute_batch(self, sql: str, columns: Mapping[str, str], rows: Sequence[Params]) -> list[Record]:
        """Run one statement that reads the rows as the table `batch`; its rows. `columns` names their types.

        Much cheaper than `executemany`: one statement is one round trip to PostgreSQL, and in SQLite one time
        of giving up and taking back the interpreter's lock, for which a busy event loop makes us wait.
        """

    def lock(self, name: str) -> None:
        """Keep every other transaction that locks the same name waiting until this one ends."""


@dataclass(frozen=True, eq=False)
class Operation(Generic[P, R]):
    """A named step of a transaction. Make one per kind of step and keep it: its identity is what groups calls.

    `run` gets the parameters of all calls that share the transaction, in their order, and returns as many
    results in the same order. It may run again if the transaction failed, and runs in another thread.
    """

    name: str
    run: Callable[[Transaction, list[P]], Sequence[R]]


class Connection(Transaction, Protocol):
    """A connection to a database, used by one thread."""

    def begin(self) -> None:
        """Start a transaction."""

    def commit(self) -> None:
        """End the transaction; on return it is durable."""

    def rollback(self) -> None:
        """End the transaction; nothing of it remains. Does nothing if there is none."""

    def define(self, sql: str) -> None:
        """Run one statement of a migration."""

    def close(self) -> None:
        """Never raises."""


class Database(Protocol):
    """Where a journal's rows are: makes connections and knows its errors."""

    shared: bool
    """Whether other processes may write to it."""

    clock: str
    """An SQL expression: the database's time in seconds since 1970."""

    def connect(self, *, read_only: bool) -> Connection:
        """Raises StorageUnavailable or InvalidSetting."""

    def trouble(self, error: Exception) -> str | None:
        """What ails the database, if the error is about that; None if it is about the statement."""

    def close(self) -> None:
        """Let go of what the connections share."""
