"""Durable rows: one writer with group commit, and tables of work with leases, on SQLite or PostgreSQL.

A service opens one `Journal` and keeps what must survive it in there. `Rows` is a table of work on a
journal: every row is worked on by one process at a time, and taken over when that process has died.
"""

from assistant.journal.journal import Journal
from assistant.journal.operation import Operation, Transaction
from assistant.journal.row_operations import CLOSED, Admitted, Row
from assistant.journal.rows import Rows

__all__ = ["CLOSED", "Admitted", "Journal", "Operation", "Row", "Rows", "Transaction"]
