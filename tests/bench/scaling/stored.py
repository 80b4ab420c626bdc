"""What stored messages cost, and what it costs to forget them meanwhile."""

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import load, measure
from tests.bench.scaling.growth import Growth
from tests.bench.sections import Run, Sample, Stage, median, sample
from tests.bench.systems import Mesh
from tests.bench.table import number, table

_CONNECTIONS = 64
_MEMBERS = 2_000
_AGE_S = 200_000.0
"""More than a day, after which they are forgotten."""
_FORGETTING_WITHIN_S = 90.0
"""The clean-up begins a minute after the start."""


@dataclass
class _Measured:
    """One mesh in one phase."""

    samples: list[Sample] = field(default_factory=list)
    forgotten: int = 0
    """Old messages that went while it was measured."""
    stored: int = 0
    memory_mb: float = 0.0

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per message."""
        return median(self.samples, lambda s: s.total_us)

    @property
    def forgotten_per_s(self) -> float:
        return self.forgotten / sum(one.load.seconds for one in self.samples)

    def cells(self) -> list[str]:
        """What a row says of it."""
        figures = (
            median(self.samples, lambda s: s.load.rate),
            median(self.samples, lambda s: s.load.p50_ms),
            median(self.samples, lambda s: s.load.p99_ms),
            self.cpu_us,
        )
        return [*map(number, figures), f"{self.memory_mb:.0f}", number(self.stored), number(self.forgotten)]


def stored(run: Run) -> list[Growth]:
    """Two meshes, measured in turn: one keeps nothing else, one as many messages of as many conversations.

    What is sent comes from more members than are remembered: most histories are read from the file.
    """
    copies = (200_000 if run.quick else 1_000_000) // _MEMBERS
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        meshes = [
            stage.start(run.mesh(name, place, f"http://{platform.address}", gateway={"keep_days": 1}))
            for place, name in enumerate(("empty", "full"))
        ]
        for mesh in meshes:
            load.send(mesh.url, run.callbacks(_MEMBERS + 2 * _CONNECTIONS, _MEMBERS), _CONNECTIONS, 30)
            mesh.stop()
        file = meshes[1].inbox
        size_bytes = file.stat().st_size
        older = _fill(file, copies)
        each_bytes = (file.stat().st_size - size_bytes) / older
        ready_s = [mesh.start() for mesh in meshes]
        empty, full = _measured(run, meshes)
        _wait_for_clean_up(file, older)
        empty_again, forgetting = _measured(run, meshes)
    old = number(older)
    rows = [
        ["nothing older stored", *empty.cells()],
        [f"{old} older messages", *full.cells()],
        ["nothing older stored, again", *empty_again.cells()],
        ["while they are forgotten", *forgetting.cells()],
    ]
    header = ["", "messages/s", "p50 ms", "p99 ms", "CPU µs", "gateway MB", "stored then", "forgotten meanwhile"]
    per_s = number(forgetting.forgotten_per_s)
    run.say(
        f"**Stored messages**: what {old} of as many conversations cost. {_CONNECTIONS} connections; "
        f"{each_bytes:.0f} bytes of file for each; ready {ready_s[1]:.1f} s after the start, without them "
        f"{ready_s[0]:.1f} s; {per_s} a second are forgotten\n\n" + table(header, rows)
    )
    return [
        Growth(
            cause="messages stored",
            least="0",
            most=old,
            figure="CPU per message",
            unit="µs",
            before=empty.cpu_us,
            after=full.cpu_us,
        ),
        Growth(
            cause="messages stored",
            least="0",
            most=old,
            figure="size of the inbox's file",
            unit="MB",
            before=size_bytes / 2**20,
            after=(size_bytes + each_bytes * older) / 2**20,
            each=each_bytes / 1024,
        ),
        Growth(
            cause="messages stored, and forgotten meanwhile",
            least="0/s",
            most=f"{per_s}/s",
            figure="CPU per message",
            unit="µs",
            before=empty_again.cpu_us,
            after=forgetting.cpu_us,
        ),
    ]


def _measured(run: Run, meshes: Sequence[Mesh]) -> list[_Measured]:
    found = [_Measured() for _ in meshes]
    for round_ in range(run.rounds):
        many = 6_000 * run.seconds
        callbacks = run.callbacks(many, 1_000_000, first=round_ * many)
        for mesh, one in zip(meshes, found, strict=True):
            before = _old(mesh.inbox)
            one.samples.append(sample(mesh, callbacks, _CONNECTIONS, run.seconds))
            one.forgotten += before - _old(mesh.inbox)
    for mesh, one in zip(meshes, found, strict=True):
        one.memory_mb = measure.memory_mb(mesh.processes())["gateway"]
        one.stored = _count(mesh.inbox, "seq > ?", 0)
    return found


def _fill(file: Path, copies: int) -> int:
    """Copy what is stored of each member so many times, as messages of other members, two days ago; how many it are."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        kept = [name for _, name, *_ in database.execute("PRAGMA table_info(inbox)")]
        changed = {
            "key": "key || '-' || :copy",
            "lane": f"substr(lane, 1, length(lane) - 6) || printf('%06d', substr(lane, -6) + :copy * {_MEMBERS})",
            "created_at": f"created_at - {_AGE_S}",
            "updated_at": f"updated_at - {_AGE_S}",
        }
        columns = [name for name in kept if name != "seq"]
        values = ", ".join(changed.get(name, name) for name in columns)
        database.execute("PRAGMA synchronous = OFF")
        insert = f"INSERT INTO inbox ({', '.join(columns)}) SELECT {values} FROM inbox"
        first = f"WHERE seq <= {_MEMBERS} AND state >= 2"
        stored = sum(database.execute(f"{insert} {first}", {"copy": copy}).rowcount for copy in range(1, copies + 1))
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return stored


def _wait_for_clean_up(file: Path, old: int) -> None:
    """Until the first was forgotten. Raises SystemExit."""
    deadline = time.monotonic() + _FORGETTING_WITHIN_S
    while _old(file) == old:
        if time.monotonic() > deadline:
            raise SystemExit("nothing was forgotten: the clean-up does not run")
        time.sleep(0.5)


def _old(file: Path) -> int:
    """How many messages are stored that are to be forgotten."""
    return _count(file, "state >= 2 AND updated_at < ?", time.time() - _AGE_S / 2)


def _count(file: Path, condition: str, value: float) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        (found,) = database.execute(f"SELECT count(*) FROM inbox WHERE {condition}", (value,)).fetchone()
    return int(found)
