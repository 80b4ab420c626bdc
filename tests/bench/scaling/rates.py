"""What a message costs when few or many come at once."""

from tests.bench import load
from tests.bench.scaling.growth import Growth
from tests.bench.sections import Run, Stage, median, sample
from tests.bench.table import number, table

_CONNECTIONS = (1, 8, 32, 128, 512)
_MOST_PER_S = {1: 1_500, 8: 4_000}
"""Callbacks made for each second, where fewer than usual will do."""


def rates(run: Run) -> list[Growth]:
    """Closed loop: each connection sends its next message when the last was answered."""
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        mesh = stage.start(run.mesh("rates", 0, f"http://{platform.address}"))
        load.send(mesh.url, run.callbacks(10_000, 2_000), 64, 2)
        found = {
            many: [
                sample(mesh, run.callbacks(_MOST_PER_S.get(many, 7_000) * run.seconds, 2_000), many, run.seconds)
                for _ in range(run.rounds)
            ]
            for many in _CONNECTIONS
        }
    per_s = {many: median(samples, lambda s: s.load.rate) for many, samples in found.items()}
    cpu_us = {many: median(samples, lambda s: s.total_us) for many, samples in found.items()}
    rows = []
    for many, samples in found.items():
        figures = (
            per_s[many],
            median(samples, lambda s: s.load.p50_ms),
            median(samples, lambda s: s.load.p99_ms),
            median(samples, lambda s: s.cpu_us["gateway"]),
            median(samples, lambda s: s.cpu_us["envoy"]),
            cpu_us[many],
        )
        rows.append([str(many), *map(number, figures)])
    header = ["connections", "messages/s", "p50 ms", "p99 ms", "gateway µs", "Envoy µs", "all µs"]
    run.say(
        "**Rates**: what a message costs when more come at once. Latency, CPU per message\n\n" + table(header, rows)
    )
    least, most = _CONNECTIONS[0], _CONNECTIONS[-1]
    return [
        Growth(
            cause="messages per second",
            least=number(per_s[least]),
            most=number(per_s[most]),
            figure="CPU per message",
            unit="µs",
            before=cpu_us[least],
            after=cpu_us[most],
        )
    ]
