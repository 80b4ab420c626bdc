"""A thread with one connection that carries out operations, many to a transaction.

Whatever is waiting when the thread is free shares the next transaction, so the cost of making it durable
is paid once for all (group commit). Nothing ever waits for more to come, except posted operations: they
go with the next transaction, or by themselves a moment later.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import Counter, Histogram

from assistant import telemetry
from assistant.errors import AssistantError, StorageUnavailable
from assistant.journal.operation import Connection, Database, Operation, P, R

_MOST_OPERATIONS = 256
_MOST_POSTED = 100_000
_POSTED_WAIT_S = 0.02
_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 2.0

_COMMITS = Counter("assistant_journal_commits", "Transactions made durable.", ["worker"])
_OPERATIONS = Histogram(
    "assistant_journal_commit_operations",
    "Operations that shared a transaction.",
    ["worker"],
    buckets=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
)
_SECONDS = Histogram(
    "assistant_journal_commit_seconds",
    "Time of a transaction, from its begin until it is durable.",
    ["worker"],
    buckets=[0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3],
)
_FAILURES = Counter("assistant_journal_failures", "Transactions that the database did not take.", ["worker"])
_REFUSED = Counter("assistant_journal_refused_operations", "Posted operations that failed and were given up.")

Call = tuple[Operation[Any, Any], Any]


class _Submission:
    """Calls that share a transaction by their caller's will, and who waits for them."""

    __slots__ = ("calls", "error", "future", "one", "results")

    def __init__(self, calls: Sequence[Call], future: asyncio.Future[Any] | None, *, one: bool = False) -> None:
        self.calls = calls
        self.future = future
        self.one = one
        """Whether the future's result is that of the only call, not a list."""
        self.results: list[Any] = []
        self.error: Exception | None = None


class Worker:
    """Runs submissions over one connection, in a thread of its own."""

    def __init__(self, name: str, database: Database, connect: Callable[[], Connection]) -> None:
        self._database = database
        self._connect = connect
        self._connection: Connection | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[_Submission | None] = queue.SimpleQueue()  # None only wakes the thread
        self._posted: deque[_Submission] = deque()
        self._posted_count = 0
        self._settled_count = 0
        self._stopping = False
        self._backoff_s = 0.0
        self._unavailable_until = 0.0
        self._reason = ""
        self._commits = _COMMITS.labels(name)
        self._operations = _OPERATIONS.labels(name)
        self._seconds = _SECONDS.labels(name)
        self._failures = _FAILURES.labels(name)
        self._thread = threading.Thread(target=self._run, name=f"journal-{name}", daemon=True)
        self._thread.start()

    # --- In the loop's thread ---------------------------------------------------------------------------

    def submit(self, calls: Sequence[Call]) -> asyncio.Future[list[Any]]:
        """Run the calls in the next transaction; their results, once it is durable."""
        return self._submit(_Submission(calls, self._loop.create_future()))

    def submit_one(self, operation: Operation[P, R], params: P) -> asyncio.Future[R]:
        """Run one call in the next transaction; its result, once it is durable."""
        return self._submit(_Submission(((operation, params),), self._loop.create_future(), one=True))

    def _submit(self, submission: _Submission) -> asyncio.Future[Any]:
        future = submission.future
        assert future is not None  # noqa: S101 - somebody waits for it
        if self._stopping:
            future.set_exception(StorageUnavailable("the journal is closed"))
        else:
            self._waiting.put(submission)
        return future

    def post(self, calls: Sequence[Call]) -> None:
        """Run the calls some time soon, until it succeeds. Raises StorageUnavailable if too many are pending."""
        if self._stopping:
            raise StorageUnavailable("the journal is closed")
        if len(self._posted) >= _MOST_POSTED:
            raise StorageUnavailable(f"{_MOST_POSTED} operations wait for the database already", retry_after_s=1.0)
        self._posted_count += 1
        self._posted.append(_Submission(calls, None))
        if len(self._posted) == 1:
            self._waiting.put(None)

    def posted(self) -> int:
        """How many posted submissions are not yet durable."""
        return len(self._posted)

    async def flush(self) -> None:
        """Return when all that was posted before is settled. Raises StorageUnavailable."""
        target = self._posted_count
        while self._settled_count < target:
            await self.submit(())

    async def stop(self) -> None:
        """Finish what is waiting, then end. What the database does not take now is lost, and logged."""
        self._stopping = True
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    # --- In the worker's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping or self._posted or not self._waiting.empty():
            awaited = self._wait()
            if self._stopping or time.monotonic() >= self._unavailable_until:
                posted = [self._posted[index] for index in range(min(len(self._posted), _MOST_OPERATIONS))]
                stored = self._store(posted, awaited)
            else:
                stored = False
            if not stored:
                self._refuse(awaited)
                if self._stopping:
                    self._give_up()
            if awaited:
                self._loop.call_soon_threadsafe(_resolve, awaited)
        if self._connection is not None:
            self._connection.close()

    def _wait(self) -> list[_Submission]:
        """What somebody waits for, as soon as there is something; nothing if it is time for what was posted."""
        deadline = None
        while True:
            now = time.monotonic()
            if self._stopping:
                deadline = now
            elif self._posted and deadline is None:
                deadline = max(now + _POSTED_WAIT_S, self._unavailable_until)
            try:
                first = self._waiting.get(timeout=None if deadline is None else max(0.0, deadline - now))
            except queue.Empty:
                return []
            if first is not None:
                return self._with_others(first)

    def _with_others(self, first: _Submission) -> list[_Submission]:
        awaited = [first]
        operations = len(first.calls)
        while operations < _MOST_OPERATIONS:
            try:
                submission = self._waiting.get_nowait()
            except queue.Empty:
                break
            if submission is not None:
                awaited.append(submission)
                operations += len(submission.calls)
        return awaited

    def _store(self, posted: list[_Submission], awaited: list[_Submission]) -> bool:
        """Run both in one transaction. False if the database did not take it."""
        submissions = [*posted, *awaited]
        if not submissions:
            return True
        try:
            self._commit(submissions)
        except Exception as error:
            self._pause(error)
            return False
        self._backoff_s = 0.0
        for submission in posted:
            self._posted.popleft()
            if submission.error is not None:
                _REFUSED.inc()
                telemetry.error(
                    "journal_post_refused", submission.error, operations=[call[0].name for call in submission.calls]
                )
        self._settled_count += len(posted)
        return True

    def _commit(self, submissions: list[_Submission]) -> None:
        started = time.perf_counter()
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        connection.begin()
        try:
            _run_together(connection, submissions)
        except Exception as error:
            if self._database.trouble(error):
                raise
            connection.rollback()
            connection.begin()
            self._run_apart(connection, submissions)
        connection.commit()
        self._commits.inc()
        self._operations.observe(sum(len(submission.calls) for submission in submissions))
        self._seconds.observe(time.perf_counter() - started)

    def _run_apart(self, connection: Connection, submissions: list[_Submission]) -> None:
        """One of them is wrong: find out which, and let the others pass."""
        for submission in submissions:
            connection.execute("SAVEPOINT submission")
            try:
                _run_together(connection, [submission])
            except Exception as error:
                if self._database.trouble(error):
                    raise
                connection.execute("ROLLBACK TO SAVEPOINT submission")
                submission.error = error
            connection.execute("RELEASE SAVEPOINT submission")

    def _pause(self, error: Exception) -> None:
        """Try nothing for a moment, then begin with a new connection."""
        self._failures.inc()
        self._reason = self._database.trouble(error) or str(error if isinstance(error, AssistantError) else type(error))
        telemetry.error("journal_unavailable", error, why=self._reason)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._backoff_s = min(max(2 * self._backoff_s, _FIRST_BACKOFF_S), _LONGEST_BACKOFF_S)
        self._unavailable_until = time.monotonic() + self._backoff_s

    def _refuse(self, awaited: list[_Submission]) -> None:
        for submission in awaited:
            submission.error = StorageUnavailable(
                f"the database takes nothing: {self._reason}",
                retry_after_s=max(_FIRST_BACKOFF_S, self._unavailable_until - time.monotonic()),
            )

    def _give_up(self) -> None:
        """The process ends, and the database does not take what was posted."""
        telemetry.error("journal_posts_lost", operations=len(self._posted))
        self._posted.clear()


def _run_together(connection: Connection, submissions: Iterable[_Submission]) -> None:
    """Run every operation once, with the parameters of all its calls."""
    groups: dict[Operation[Any, Any], list[tuple[list[Any], int, Any]]] = {}
    for submission in submissions:
        submission.results = [None] * len(submission.calls)
        for place, (operation, params) in enumerate(submission.calls):
            groups.setdefault(operation, []).append((submission.results, place, params))
    for operation, calls in groups.items():
        results = operation.run(connection, [params for _, _, params in calls])
        for (places, place, _), result in zip(calls, results, strict=True):
            places[place] = result


def _resolve(submissions: list[_Submission]) -> None:
    """Tell everyone who still waits."""
    for submission in submissions:
        future = submission.future
        if future is None or future.done():
            continue
        if submission.error is None:
            future.set_result(submission.results[0] if submission.one else submission.results)
        else:
            future.set_exception(submission.error)
