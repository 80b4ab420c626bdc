"""What a callback occupies in memory while it is held.

Memory is the growth of the proportional set size. Before it is measured, so many messages have gone through the
processes that nothing else grows any more: the allocator's pools, caches, what is remembered of the members.
"""

import time
from concurrent.futures import ThreadPoolExecutor

from tests.bench import load, measure
from tests.bench.scaling.growth import Growth
from tests.bench.sections import Run, Stage
from tests.bench.systems import Mesh
from tests.bench.table import number, table

_CONNECTIONS = 64
_HELD = 1_500
_ENGINE_S = 3.0
"""Less than a callback is held."""


def held(run: Run) -> list[Growth]:
    """So many callbacks at once, which all wait for an engine: each has a connection to Envoy, and one behind it."""
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        engine = run.helper("engine", 1, 0, 0)
        options = {"nlp": {"target": engine.address}}
        mesh = stage.start(run.mesh("held", 0, f"http://{platform.address}", **options))
        load.send(mesh.url, run.callbacks(20_000, _HELD), _CONNECTIONS, 10)
        engine.stop()
        stage.start(run.helper("engine", 1, _ENGINE_S, _ENGINE_S))
        load.send(mesh.url, run.callbacks(2 * _CONNECTIONS, _HELD), _CONNECTIONS, 4)  # until it is connected again
        _wait_for_held(mesh, 0)
        before = measure.memory_mb(mesh.processes())
        with ThreadPoolExecutor(1) as aside:
            sending = aside.submit(load.send, mesh.url, run.callbacks(2 * _HELD, _HELD), _HELD, 5)
            many = _wait_for_held(mesh, _HELD)
            during = measure.memory_mb(mesh.processes())
            sending.result()
    each_kb = {name: max(0.0, during[name] - before[name]) * 1024 / many for name in before}
    rows = [[name, f"{before[name]:.1f}", f"{during[name]:.1f}", f"{kb:.1f}"] for name, kb in each_kb.items()]
    header = ["", "none held, MB", f"{number(many)} held, MB", "KB for each held"]
    run.say(f"**Held callbacks**: what each occupies. Memory (PSS) while {number(many)} wait\n\n" + table(header, rows))
    return [
        Growth(
            cause="callbacks held at once",
            least="0",
            most=number(many),
            figure="memory of the mesh",
            unit="MB",
            before=sum(before.values()),
            after=sum(during.values()),
            each=sum(each_kb.values()),
        )
    ]


def _wait_for_held(mesh: Mesh, many: int) -> int:
    """Wait until so many callbacks are held; how many it are. Raises SystemExit."""
    deadline = time.monotonic() + 15
    most = 0
    while time.monotonic() < deadline:
        now = int(mesh.metric("assistant_held_callbacks"))
        most = max(most, now)
        if now == many:
            return now
        time.sleep(0.05)
    raise SystemExit(f"{mesh.name}: never were {many} callbacks held at once, at most {most}")
