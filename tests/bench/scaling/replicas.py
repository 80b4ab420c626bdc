"""What replicas cost: one and two of every service on PostgreSQL, in turn."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assistant import ports
from tests.bench.load import send
from tests.bench.measure import Processes
from tests.bench.scaling.growth import Growth
from tests.bench.sections import Run, Sample, Stage, median, sample
from tests.bench.table import number, table
from tests.chaos import mesh as chaos
from tests.postgres import create_database, postgres

_REPLICAS = (1, 2)
_CONNECTIONS = (64, 256)
_MEMBERS = 2_000
_TEXT = "0 0 0"
"""For the scripted engine: number, seconds to think, words to say."""


class ReplicatedMesh:
    """Some of every service behind one Envoy, as chaos runs them, and the PostgreSQL that they share."""

    def __init__(
        self, folder: Path, offset: int, replicas: int, server: str, account: Mapping[str, Any], database_pid: int
    ) -> None:
        self.name = f"{replicas} of each"
        self.url = f"http://127.0.0.1:{ports.EDGE_HTTP + offset}"
        self._database_pid = database_pid
        databases = {name: create_database(server, f"{name}_{replicas}") for name in ("gateway", "nlp", "reply")}
        self._mesh = chaos.Mesh(folder / f"replicas-{replicas}", offset, databases, replicas=replicas)
        asyncio.run(self._mesh.prepare(account))
        try:
            self._mesh.start()
        except AssertionError as error:
            self.stop()
            raise SystemExit(f"{self.name}: {error}") from error

    def processes(self) -> Processes:
        """Every process of the mesh, and PostgreSQL's first, the others being its children."""
        ours = {name: pid for name in self._mesh.names if (pid := self._mesh.pid(name)) is not None}
        return {**ours, "postgresql": self._database_pid}

    def stop(self) -> None:
        """End it."""
        self._mesh.stop()


def replicas(run: Run) -> list[Growth]:
    """Both meshes stand all the time, and one of them is measured."""
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        folder = run.folder / "postgres"
        server = stage.enter_context(postgres(folder))
        pid = int((folder / "postmaster.pid").read_text().splitlines()[0])
        account = {**run.credentials, "api_base": f"http://{platform.address}"}
        meshes = [
            stage.start(ReplicatedMesh(run.folder, run.offset + 20 * many, many, server, account, pid))
            for many in _REPLICAS
        ]
        for mesh in meshes:
            send(mesh.url, run.callbacks(6_000, _MEMBERS, text=_TEXT), _CONNECTIONS[0], 2)
        found: dict[tuple[int, str], list[Sample]] = {}
        for _ in range(run.rounds):
            for connections in _CONNECTIONS:
                for mesh in meshes:
                    callbacks = run.callbacks(5_000 * run.seconds, _MEMBERS, text=_TEXT)
                    found.setdefault((connections, mesh.name), []).append(
                        sample(mesh, callbacks, connections, run.seconds)
                    )
    rows = [[str(connections), name, *_cells(samples)] for (connections, name), samples in found.items()]
    header = ["connections", "replicas", "messages/s", "p50 ms", "p99 ms", *_PARTS, "all µs", "cores busy"]
    run.say("**Replicas**: what they cost, on PostgreSQL. CPU per message\n\n" + table(header, rows))
    before, after = (median(found[_CONNECTIONS[-1], mesh.name], lambda s: s.total_us) for mesh in meshes)
    return [
        Growth(
            cause="replicas, on PostgreSQL",
            least=meshes[0].name,
            most=meshes[-1].name,
            figure="CPU per message",
            unit="µs",
            before=before,
            after=after,
        )
    ]


_PARTS = {"gateways µs": "gateway", "PostgreSQL µs": "postgresql"}


def _cells(samples: list[Sample]) -> list[str]:
    figures = (
        median(samples, lambda s: s.load.rate),
        median(samples, lambda s: s.load.p50_ms),
        median(samples, lambda s: s.load.p99_ms),
        *(median(samples, lambda s, part=part: _of(s, part)) for part in _PARTS.values()),
        median(samples, lambda s: s.total_us),
    )
    busy = median(samples, lambda s: s.load.rate * s.total_us / 1e6)
    return [*map(number, figures), f"{busy:.1f}"]


def _of(one: Sample, part: str) -> float:
    """CPU microseconds per message of all replicas of a service."""
    return sum(us for name, us in one.cpu_us.items() if name.partition("-")[0] == part)
