"""What skills did, durably, so that no effect happens twice, whatever process dies in between."""

import time
from dataclasses import dataclass
from typing import Any, TypeVar

from assistant.api.skill.v1.skill_pb2 import InvokeSkillResponse
from assistant.errors import StorageUnavailable
from assistant.journal import Journal, Operation, Transaction

P = TypeVar("P", bound=tuple[Any, ...])

MIGRATIONS = (
    """
    CREATE TABLE effects (
        name TEXT PRIMARY KEY,
        skill TEXT NOT NULL,
        response BLOB,
        begun_at REAL NOT NULL
    );
    CREATE INDEX effects_begun_at ON effects (begun_at);
    """,
)
"""An effect without a response was begun and not finished: by a process that still runs it, or that died."""

FORGET = "DELETE FROM effects WHERE name IN (SELECT name FROM effects WHERE begun_at < ? ORDER BY begun_at LIMIT ?)"

_FORGOTTEN_AT_ONCE = 4
"""Old effects deleted with each new one: more than one, so that their number falls."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One use of a skill that changes something."""

    new: bool
    """True: nobody has begun it before; do it. False: somebody has."""
    skill: str
    response: InvokeSkillResponse | None
    """What it answered. None: it was not finished, and nobody knows whether it was done."""


class Effects:
    """The table of effects."""

    def __init__(self, journal: Journal, keep_days: float) -> None:
        self._journal = journal
        self._keep_s = keep_days * 86_400

    async def begin(self, name: str, skill: str) -> Effect:
        """Claim an effect before it is caused. Raises StorageUnavailable: then nothing may be done."""
        now = time.time()
        return await self._journal.submit(_BEGIN, (name, skill, now, now - self._keep_s))

    async def finish(self, name: str, response: InvokeSkillResponse) -> None:
        """Keep what it answered."""
        await self._record(_FINISH, (response.SerializeToString(), name))

    async def withdraw(self, name: str) -> None:
        """Nothing was done: it may be begun again."""
        await self._record(_WITHDRAW, (name,))

    async def _record(self, operation: Operation[P, None], params: P) -> None:
        """What has happened has happened, even if the database takes nothing: then it is tried again, by itself."""
        try:
            await self._journal.submit(operation, params)
        except StorageUnavailable:
            self._journal.post((operation, params))


def _begin(tx: Transaction, batch: list[tuple[str, str, float, float]]) -> list[Effect]:
    tx.execute(FORGET, (max(before for *_, before in batch), _FORGOTTEN_AT_ONCE * len(batch)))
    inserted = tx.executemany(
        "INSERT INTO effects (name, skill, begun_at) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING RETURNING name",
        [(name, skill, now) for name, skill, now, _ in batch],
    )
    found = tx.executemany("SELECT skill, response FROM effects WHERE name = ?", [(name,) for name, *_ in batch])
    return [_effect(bool(new), *rows[0]) for new, rows in zip(inserted, found, strict=True)]


def _effect(new: bool, skill: str, response: bytes | None) -> Effect:
    return Effect(new, skill, None if response is None else InvokeSkillResponse.FromString(response))


def _finish(tx: Transaction, batch: list[tuple[bytes, str]]) -> list[None]:
    tx.executemany("UPDATE effects SET response = ? WHERE name = ?", batch)
    return [None] * len(batch)


def _withdraw(tx: Transaction, batch: list[tuple[str]]) -> list[None]:
    tx.executemany("DELETE FROM effects WHERE name = ?", batch)
    return [None] * len(batch)


_BEGIN = Operation("begin_effect", _begin)
_FINISH = Operation("finish_effect", _finish)
_WITHDRAW = Operation("withdraw_effect", _withdraw)
