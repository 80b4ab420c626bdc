"""Suites of checks that anyone can run against a service of their own: does it keep the contract?

A check is a coroutine function. Its name says what a service does that keeps the contract, its docstring why
that matters, in one sentence. It returns if all is well, or raises Mismatch or Skipped.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from grpc.aio import AioRpcError

S = TypeVar("S")
Check = Callable[[S], Awaitable[None]]


class Outcome(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """One check and what came of it."""

    name: str
    """What a service does that keeps the contract, such as "answers chinese"."""
    why: str
    """Why that matters, in one sentence."""
    outcome: Outcome
    detail: str = ""
    """What was expected and what came, or why it was skipped. Empty if it passed."""


class Mismatch(Exception):
    """The service does not keep the contract."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}; came {came}")


class Skipped(Exception):
    """The contract leaves it open, and this service does without; or there was no occasion to see it."""


async def examine(checks: Sequence[Check[S]], subject: S) -> AsyncIterator[Result]:
    """Run the checks one after another and give each result as it comes."""
    for check in checks:
        outcome, detail = await _try(check, subject)
        name = check.__name__.replace("_", " ")
        yield Result(name, " ".join((check.__doc__ or "").split()), outcome, detail)


async def _try(check: Check[S], subject: S) -> tuple[Outcome, str]:
    try:
        await check(subject)
    except Skipped as reason:
        return Outcome.SKIPPED, str(reason)
    except Mismatch as mismatch:
        return Outcome.FAILED, str(mismatch)
    except AioRpcError as error:
        return Outcome.FAILED, f"expected an answer; came {error.code().name}: {error.details()}"
    return Outcome.PASSED, ""
