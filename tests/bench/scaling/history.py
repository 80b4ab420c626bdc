"""What the length of a conversation costs."""

from tests.bench import load
from tests.bench.scaling.growth import Growth
from tests.bench.sections import Run, Sample, Stage, median, sample
from tests.bench.table import number, table

_TURNS = (0, 10, 50)
_CONNECTIONS = 64
_MEMBERS = 100


def history(run: Run) -> list[Growth]:
    """Members who wrote before, more often than the engine is shown. One mesh for each length, measured in turn."""
    found: dict[int, list[Sample]] = {turns: [] for turns in _TURNS}
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        meshes = {}
        for place, turns in enumerate(_TURNS):
            options = {"gateway": {"history_turns": turns}}
            mesh = stage.start(run.mesh(f"history-{turns}", place, f"http://{platform.address}", **options))
            load.send(mesh.url, run.callbacks(_MEMBERS * (turns + 10), _MEMBERS), _CONNECTIONS, 30)
            meshes[turns] = mesh
        for _ in range(run.rounds):
            for turns, mesh in meshes.items():
                callbacks = run.callbacks(6_000 * run.seconds, _MEMBERS)
                found[turns].append(sample(mesh, callbacks, _CONNECTIONS, run.seconds))
    cpu_us = {turns: median(samples, lambda s: s.total_us) for turns, samples in found.items()}
    rows = []
    for turns, samples in found.items():
        parts = (median(samples, lambda s: s.cpu_us["gateway"]), median(samples, lambda s: s.cpu_us["nlp_svc"]))
        rows.append([str(turns), *map(number, (*parts, cpu_us[turns]))])
    header = ["turns of history", "gateway µs", "nlp_svc µs", "all µs"]
    run.say(
        f"**Length**: what the length of conversations costs. CPU per message, {_CONNECTIONS} connections\n\n"
        + table(header, rows)
    )
    least, most = _TURNS[0], _TURNS[-1]
    return [
        Growth(
            cause="length of a conversation",
            least=f"{least} turns",
            most=f"{most} turns",
            figure="CPU per message",
            unit="µs",
            before=cpu_us[least],
            after=cpu_us[most],
        )
    ]
