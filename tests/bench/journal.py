"""What a durable row costs: admissions per second, microseconds of CPU each, and how long a caller waits.

.venv/bin/python -m tests.bench.journal [rows per case] [database URL]

As a yardstick for the machine, the first line is the same insert in a plain loop, 64 to a transaction, with nothing
around it. "closed" admits a row and posts its end, as a message does. "busy" shares the interpreter with an event
loop that is never idle.
"""

import asyncio
import itertools
import json
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from assistant.journal import Journal, Rows

BODY = b"x" * 400


def plain(path: Path, count: int) -> None:
    """One thread, one statement per row."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE plain (seq INTEGER PRIMARY KEY, key TEXT UNIQUE, lane TEXT, body BLOB)")
    began = time.perf_counter(), time.process_time()
    for start in range(0, count, 64):
        connection.execute("BEGIN IMMEDIATE")
        for number in range(start, min(start + 64, count)):
            connection.execute(
                "INSERT OR IGNORE INTO plain (key, lane, body) VALUES (?, ?, ?)", (f"k:{number}", "l", BODY)
            )
        connection.execute("COMMIT")
    seconds, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
    connection.close()
    print(f"plain loop                {count / seconds:8.0f}/s {cpu_s / count * 1e6:6.1f} us CPU")


async def measure(rows: Rows, journal: Journal, waiters: int, count: int, *, close: bool, busy: bool) -> None:
    """Print one line."""
    case = f"{'closed' if close else 'admitted'}{', busy' if busy else ''}, {waiters}"
    numbers = iter(range(count))
    waits_s: list[float] = []

    async def waiter() -> None:
        for number in numbers:
            key = f"{case}:{number}"
            began_at = time.perf_counter()
            await rows.admit(key, f"wecom:default:{number * 7919 % 5000}", BODY)
            waits_s.append(time.perf_counter() - began_at)
            if close:
                rows.post_move(key, 2, result=BODY[:150], attempted=True)

    async def work() -> None:
        for _ in itertools.count():
            json.dumps([BODY.decode()] * 20)
            await asyncio.sleep(0)

    worker = asyncio.create_task(work()) if busy else None
    began = time.perf_counter(), time.process_time()
    await asyncio.gather(*(waiter() for _ in range(waiters)))
    await journal.flush()
    seconds, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
    if worker:
        worker.cancel()
    waits_s.sort()
    p50, p99 = waits_s[count // 2] * 1e3, waits_s[count * 99 // 100] * 1e3
    cpu = "" if busy else f"{cpu_s / count * 1e6:6.1f} us CPU"
    print(f"{case:26}{count / seconds:8.0f}/s {cpu:13} p50 {p50:6.2f} ms, p99 {p99:6.2f} ms")


async def main() -> None:
    """Print all cases."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[2] if len(sys.argv) > 2 else f"sqlite://{folder}/journal.db"
        plain(Path(folder) / "plain.db", count)
        journal = await Journal.open(url, Rows.migrations("bench"))
        rows = Rows(journal, "bench", "bench:1")
        await rows.open()
        for waiters in (1, 16, 64, 256):
            await measure(rows, journal, waiters, count if waiters > 1 else count // 20, close=False, busy=False)
        await measure(rows, journal, 64, count, close=True, busy=False)
        await measure(rows, journal, 64, count // 4, close=True, busy=True)
        await rows.close()
        await journal.close()


if __name__ == "__main__":
    uvloop.run(main())
