"""How cost grows: with the length of conversations, with what is stored, with what is cleaned up meanwhile."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from tests.bench import load, measure
from tests.bench.sections import Run, Stage, sample
from tests.bench.systems import Mesh
from tests.bench.table import number, table

_ROWS = 200_000
_CONNECTIONS = 64


def scaling(run: Run) -> None:
    """Measured on one mesh at a time, at 64 connections."""
    _conversations(run)
    _stored(run)


def _conversations(run: Run) -> None:
    """What history costs, and what a conversation costs in memory."""
    rows = []
    for turns in (0, 10, 50):
        with Stage() as stage:
            platform = stage.start(run.helper("platform", 0))
            options = {"gateway": {"history_turns": turns}}
            mesh = stage.start(run.mesh(f"history-{turns}", 0, f"http://{platform.address}", **options))
            load.send(mesh.url, run.callbacks(100 * (turns + 10), 100), _CONNECTIONS, 30)  # fills the histories
            found = sample(mesh, run.callbacks(20_000, 100), _CONNECTIONS, run.seconds)
            before = measure.memory_mb(mesh.processes())["gateway"]
            many = 5_000 if run.quick else 10_000
            load.send(mesh.url, run.callbacks(many, many), _CONNECTIONS, 60)
            grown = measure.memory_mb(mesh.processes())["gateway"] - before
        parts = (found.cpu_us["gateway"], found.cpu_us["nlp_svc"], found.total_us)
        rows.append([str(turns), *(f"{part:.0f}" for part in parts), f"{grown * 1024 / many:.1f}"])
    header = ["turns of history", "gateway µs", "nlp_svc µs", "all µs", "KB per conversation of one turn"]
    run.say("What the length of conversations costs: CPU per message, memory of the gateway\n\n" + table(header, rows))


def _stored(run: Run) -> None:
    """Messages kept, and a clean-up that runs while others arrive."""
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        mesh = stage.start(run.mesh("stored", 0, f"http://{platform.address}", gateway={"keep_days": 1}))
        load.send(mesh.url, run.callbacks(2_000, 500), _CONNECTIONS, 10)
        rows = [_stored_row(run, mesh, "nothing else stored")]
        mesh.stop()
        size_bytes = _multiply(mesh.inbox, _ROWS)
        mesh.start()
        time.sleep(2)
        rows.append(_stored_row(run, mesh, f"{number(_ROWS)} older messages"))
        mesh.stop()
        _age(mesh.inbox)
        mesh.start()
        time.sleep(62)  # the clean-up begins a minute after the start
        rows.append(_stored_row(run, mesh, "while they are forgotten"))
    run.say(
        f"What stored messages cost, {_CONNECTIONS} connections; {size_bytes / _ROWS:.0f} bytes of file for each\n\n"
        + table(["", "messages/s", "p50 ms", "p99 ms", "CPU µs per message", "stored then"], rows)
    )


def _stored_row(run: Run, mesh: Mesh, title: str) -> list[str]:
    found = sample(mesh, run.callbacks(20_000, 500), _CONNECTIONS, run.seconds)
    figures = (found.load.rate, found.load.p50_ms, found.load.p99_ms, found.total_us)
    with closing(sqlite3.connect(f"file:{mesh.inbox}?mode=ro", uri=True)) as database:
        (stored,) = database.execute("SELECT count(*) FROM inbox").fetchone()
    return [title, *map(number, figures), number(stored)]


def _multiply(file: Path, rows: int) -> float:
    """Copy what is stored until there are so many more; the file's size."""
    with closing(sqlite3.connect(file)) as database, database:
        columns = [name for _, name, *_ in database.execute("PRAGMA table_info(inbox)") if name not in ("seq", "key")]
        (stored,) = database.execute("SELECT count(*) FROM inbox WHERE state >= 2").fetchone()
        copied = ", ".join(columns)
        for time_ in range(rows // stored + 1):
            database.execute(
                f"INSERT INTO inbox (key, {copied}) SELECT key || ?, {copied} FROM inbox WHERE state >= 2 LIMIT ?",
                (f"-{time_}", min(stored, rows - time_ * stored)),
            )
    return file.stat().st_size


def _age(file: Path) -> None:
    """Let all of it be older than it is kept."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE inbox SET updated_at = updated_at - 200000 WHERE state >= 2")
