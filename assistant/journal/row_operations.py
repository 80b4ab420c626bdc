"""The statements on a table of work."""
# ruff: noqa: S608 - what is put into a statement is the name of a table, a column or a number, all from code

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from assistant.journal.migrations import SHARED_ONLY
from assistant.journal.operation import Operation, Params, R, Record, Transaction

CLOSED = 2
"""States below are open: something remains to be done. States from here on are closed."""

_COLUMNS = "seq, key, lane, state, body, result, attempts, due_at, owner, error, created_at, updated_at"
_LEASE_KEPT_S = 86_400
"""Leases that are over are kept this long: an owner that only slept may still admit a row under one."""


class Row(NamedTuple):
    """One piece of work. Times are seconds since 1970."""

    seq: int
    """Ascends in the order of admission, all lanes together."""
    key: str
    lane: str
    state: int
    body: bytes
    result: bytes | None
    attempts: int
    due_at: float
    """0: at once."""
    owner: str
    error: str
    created_at: float
    updated_at: float
    live: bool
    """Whether the lease of its owner held when the row was read."""

    @property
    def is_open(self) -> bool:
        """Whether something remains to be done."""
        return self.state < CLOSED


class Admitted(NamedTuple):
    """What became of an admission."""

    row: Row
    new: bool
    """False: the key was there before, and `row` is that one, unchanged."""
    blocked: bool
    """Whether an earlier open row of the lane belongs to another owner. Wait until `Rows.blocked` says no."""


class Admission(NamedTuple):
    """A row to insert."""

    key: str
    lane: str
    state: int
    body: bytes
    owner: str
    created_at: float
    updated_at: float


class Move(NamedTuple):
    """A change of a row. None leaves what is there."""

    key: str
    owner: str
    state: int
    result: bytes | None
    error: str | None
    due_at: float | None
    attempted: int
    updated_at: float


_ADMISSION = {
    "key": "TEXT",
    "lane": "TEXT",
    "state": "INTEGER",
    "body": "BLOB",
    "owner": "TEXT",
    "created_at": "REAL",
    "updated_at": "REAL",
}
_MOVE = {
    "key": "TEXT",
    "owner": "TEXT",
    "state": "INTEGER",
    "result": "BLOB",
    "error": "TEXT",
    "due_at": "REAL",
    "attempted": "INTEGER",
    "updated_at": "REAL",
}


def schema(table: str) -> list[str]:
    """The migrations that make a table of work and its leases."""
    return [
        f"""
        CREATE TABLE {table} (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            key TEXT NOT NULL UNIQUE,
            lane TEXT NOT NULL,
            state INTEGER NOT NULL,
            body BLOB NOT NULL,
            result BLOB,
            attempts INTEGER NOT NULL DEFAULT 0,
            due_at REAL NOT NULL DEFAULT 0,
            owner TEXT NOT NULL,
            error TEXT NOT NULL DEFAULT '',
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL
        );
        CREATE INDEX {table}_open ON {table} (seq) WHERE state < {CLOSED};
        CREATE INDEX {table}_closed ON {table} (state, seq) WHERE state >= {CLOSED};
        CREATE INDEX {table}_closed_at ON {table} (updated_at) WHERE state >= {CLOSED};
        CREATE TABLE {table}_leases (
            owner TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            expires_at REAL NOT NULL
        );
        """,
        # Where there are other owners, lanes are looked up; where not, it would only cost: every row of a
        # transaction changes another page of an index by lane.
        f"{SHARED_ONLY} CREATE INDEX {table}_open_lanes ON {table} (lane, seq, owner) WHERE state < {CLOSED}",
    ]


class RowOperations:
    """The operations on one table of work. Their parameters are those of the statements, in order."""

    def __init__(self, table: str, clock: str, *, shared: bool) -> None:
        self._table = table
        self._leases = leases = f"{table}_leases"
        self._clock = clock
        self._row = f"{_COLUMNS}, owner IN (SELECT owner FROM {leases} WHERE expires_at > {clock})"
        self._our_row = f"{_COLUMNS}, TRUE"

        # A file has one process: all others are gone, whatever the clock says.
        earlier_lives, now = ("name = ?", clock) if shared else ("(name = ? OR TRUE)", "0.0")
        self.end_earlier_lives = _each(
            "end_earlier_lives",
            f"UPDATE {leases} SET expires_at = {now} WHERE owner <> ? AND {earlier_lives} AND expires_at > {now}",
            _nothing,
        )
        self.renew_lease = _each(
            "renew_lease",
            f"INSERT INTO {leases} (owner, name, expires_at) VALUES (?, ?, {clock} + ?) "
            "ON CONFLICT (owner) DO UPDATE SET expires_at = excluded.expires_at",
            _nothing,
        )
        self.release_lease = _each("release_lease", f"UPDATE {leases} SET expires_at = {now} WHERE owner = ?", _nothing)

        blocked = (
            f"EXISTS (SELECT 1 FROM {table} AS earlier WHERE earlier.lane = {table}.lane AND earlier.seq < {table}.seq "
            f"AND earlier.owner <> {table}.owner AND earlier.state < {CLOSED})"
        )
        self._insert = (
            f"INSERT INTO {table} ({', '.join(_ADMISSION)}) SELECT {', '.join(_ADMISSION)} FROM batch WHERE TRUE "
            f"ON CONFLICT (key) DO NOTHING RETURNING key, seq, {blocked if shared else 'FALSE'}"
        )
        self.admit = Operation("admit", self._admit)
        self.adopt = cache(self._adopt)
        self.move = cache(self._move)
        self.recover = Operation("recover", self._recover)
        self.reopen = _each(
            "reopen",
            f"UPDATE {table} SET state = ?, owner = ?, updated_at = ?, attempts = 0, due_at = 0.0, error = '' "
            f"WHERE key = ? AND state >= {CLOSED} RETURNING {self._our_row}",
            _first_row,
        )
        self.purge = _each(
            "purge",
            f"DELETE FROM {table} WHERE seq IN (SELECT seq FROM {table} WHERE state >= {CLOSED} AND updated_at < ? "
            "ORDER BY updated_at LIMIT ?) RETURNING seq",
            len,
        )

        self.get = _each("get", f"SELECT {self._row} FROM {table} WHERE key = ?", _first_row)
        self.list_all = _each(
            "list_all", f"SELECT {self._row} FROM {table} WHERE seq < ? ORDER BY seq DESC LIMIT ?", _rows
        )
        self.list_state = cache(self._list_state)
        self.blocked = _each(
            "blocked",
            f"SELECT 1 FROM {table} WHERE lane = ? AND seq < ? AND owner <> ? AND state < {CLOSED} LIMIT 1",
            bool,
        )
        self.earlier = _each(
            "earlier",
            f"SELECT key FROM {table} WHERE lane = ? AND seq < ? AND state < {CLOSED} ORDER BY seq",
            lambda records: [str(key) for (key,) in records],
        )
        self.counts = _each(
            "counts",
            f"SELECT state, count(*) FROM {table} WHERE state < {CLOSED} GROUP BY state UNION ALL "
            f"SELECT state, count(*) FROM {table} WHERE state >= {CLOSED} GROUP BY state",
            _counts,
        )
        self.oldest_open = _each(
            "oldest_open",
            f"SELECT created_at FROM {table} WHERE seq = (SELECT min(seq) FROM {table} WHERE state < {CLOSED})",
            lambda records: float(records[0][0]) if records else None,
        )

    def _admit(self, transaction: Transaction, batch: list[Admission]) -> list[Admitted]:
        transaction.lock(self._table)  # so that rows become visible in the order of their seq
        inserted = {
            key: (seq, blocked) for key, seq, blocked in transaction.execute_batch(self._insert, _ADMISSION, batch)
        }
        return [
            _admitted(admission, *inserted.pop(admission.key))
            if admission.key in inserted
            else self._known(transaction, admission.key)
            for admission in batch
        ]

    def _known(self, transaction: Transaction, key: str) -> Admitted:
        row = self.get.run(transaction, [(key,)])[0]
        if row is None:
            raise LookupError("the row that was in the way of an insert is gone")
        return Admitted(row, new=False, blocked=False)

    def _adopt(self, states: frozenset[int]) -> "Operation[Params, Row | None]":
        return _each(
            "adopt",
            f"UPDATE {self._table} SET owner = ? WHERE key = ? AND state IN ({_listed(states)}) "
            f"RETURNING {self._our_row}",
            _first_row,
        )

    def _move(self, states: frozenset[int] | None) -> "Operation[Move, bool]":
        table = self._table
        sql = (
            f"UPDATE {table} SET state = batch.state, result = coalesce(batch.result, {table}.result), "
            f"error = coalesce(batch.error, {table}.error), due_at = coalesce(batch.due_at, {table}.due_at), "
            f"attempts = attempts + batch.attempted, updated_at = batch.updated_at FROM batch "
            f"WHERE {table}.key = batch.key AND {table}.owner = batch.owner AND {table}."
            + (f"state < {CLOSED}" if states is None else f"state IN ({_listed(states)})")
            + f" RETURNING {table}.key"
        )

        def run(transaction: Transaction, batch: list[Move]) -> list[bool]:
            if len(batch) > len({move.key for move in batch}):  # one row moves twice: one after the other
                return [moved for move in batch for moved in run(transaction, [move])]
            moved = {key for (key,) in transaction.execute_batch(sql, _MOVE, batch)}
            return [move.key in moved for move in batch]

        return Operation("move", run)

    def _recover(self, transaction: Transaction, batch: list[tuple[str, int]]) -> list[list[Row]]:
        return [self._take_over(transaction, owner, limit) for owner, limit in batch]

    def _take_over(self, transaction: Transaction, owner: str, limit: int) -> list[Row]:
        transaction.lock(self._table)  # so that two owners do not take the same rows
        dead = f"SELECT owner FROM {self._leases} WHERE expires_at <= {self._clock}"
        rows = _rows(
            transaction.execute(
                f"UPDATE {self._table} SET owner = ? WHERE seq IN (SELECT seq FROM {self._table} "
                f"WHERE state < {CLOSED} AND owner IN ({dead}) AND owner <> ? ORDER BY seq LIMIT ?) "
                f"RETURNING {self._our_row}",
                (owner, owner, limit),
            )
        )
        if len(rows) < limit:  # the dead have nothing left
            transaction.execute(f"DELETE FROM {self._leases} WHERE expires_at < {self._clock} - {_LEASE_KEPT_S}")
        return sorted(rows)

    def _list_state(self, state: int) -> "Operation[Params, list[Row]]":
        part = f"state < {CLOSED}" if state < CLOSED else f"state >= {CLOSED}"  # names the index
        return _each(
            "list_state",
            f"SELECT {self._row} FROM {self._table} WHERE state = {state:d} AND {part} AND seq < ? "
            "ORDER BY seq DESC LIMIT ?",
            _rows,
        )


def _each(name: str, sql: str, read: Callable[[list[Record]], R]) -> Operation[Params, R]:
    """One statement for each call, and how its result is read."""

    def run(transaction: Transaction, batch: list[Params]) -> list[R]:
        return [read(records) for records in transaction.executemany(sql, batch)]

    return Operation(name, run)


def _listed(states: frozenset[int]) -> str:
    return ", ".join(f"{state:d}" for state in sorted(states))


def _admitted(admission: Admission, seq: int, blocked: bool) -> Admitted:
    key, lane, state, body, owner, created_at, updated_at = admission
    row = Row(seq, key, lane, state, body, None, 0, 0.0, owner, "", created_at, updated_at, live=True)
    return Admitted(row, new=True, blocked=bool(blocked))


def _rows(records: list[Record]) -> list[Row]:
    return [Row._make(record) for record in records]


def _first_row(records: list[Record]) -> Row | None:
    return Row._make(records[0]) if records else None


def _counts(records: list[Record]) -> dict[int, int]:
    return dict(records)


def _nothing(records: list[Record]) -> None:
    """The statement returns no rows."""
