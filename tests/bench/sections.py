"""The parts of a run. Each starts what it needs, measures in turn, takes the medians, and stops everything."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from assistant import plugin
from tests.bench import load, measure
from tests.bench.exactness import count
from tests.bench.load import Load
from tests.bench.systems import Helper, Mesh, Monolith, System
from tests.bench.table import Goal, number, table

_WARM_UP_S = 2
_MOST_PER_S = 6_000
"""Callbacks made for each second of a closed-loop run: more than any system here answers."""


class _Stoppable(Protocol):
    def stop(self) -> None: ...


T = TypeVar("T", bound=_Stoppable)


@dataclass
class Run:
    """One run of the benchmark: where it works, how long it takes, and what it found."""

    folder: Path
    offset: int
    quick: bool
    goals: list[Goal] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    credentials: dict[str, Any] = field(
        default_factory=lambda: plugin.load("channels", "wecom", "simulator").credentials()
    )

    @property
    def rounds(self) -> int:
        """How often everything is measured; medians are shown."""
        return 1 if self.quick else 3

    @property
    def seconds(self) -> int:
        """Of one measurement."""
        return 2 if self.quick else 4

    def callbacks(self, count: int, members: int, path: str = load.PATH, text: str = "ping", first: int = 0) -> Path:
        """New callbacks, sealed now."""
        return load.write_callbacks(self.folder / "callbacks", self.credentials, count, members, path, text, first)

    def mesh(self, name: str, place: int, api: str, **options: Any) -> Mesh:
        """A mesh of ours, `place` setting its ports apart from others."""
        return Mesh(name, self.folder, self.offset + 10 * place, self.credentials, api, **options)

    def helper(self, module: str, place: int, *arguments: object) -> Helper:
        """A process beside the systems."""
        return Helper(module, 7900 + self.offset + place, *arguments)

    def say(self, text: str) -> None:
        """Show and keep a part of the result."""
        print(f"\n{text}", flush=True)
        self.texts.append(text)


@dataclass(frozen=True)
class Sample:
    """One measurement of one system."""

    load: Load
    cpu_us: dict[str, float]

    @property
    def total_us(self) -> float:
        """CPU microseconds per message, all processes of the system."""
        return sum(self.cpu_us.values())


def sample(system: System, callbacks: Path, connections: int, seconds: int, think_ms: int = 0) -> Sample:
    """Measure one system once."""
    processes = system.processes()
    before = measure.cpu_s(processes)
    result = load.send(system.url, callbacks, connections, seconds, think_ms)
    return Sample(result, measure.cpu_us_per_message(before, measure.cpu_s(processes), result.requests))


def median(samples: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    """The median of a figure."""
    return statistics.median(map(of, samples))


class Stage(contextlib.ExitStack):
    """What is started on it is stopped in the end, the last one first."""

    def start(self, thing: T) -> T:
        """Have it stopped in the end."""
        self.callback(thing.stop)
        return thing


# --- Messages per second, in turn -------------------------------------------------------------------------


def throughput(run: Run) -> None:
    """As fast as it goes: our mesh, two monoliths, and our mesh without multiplexing."""
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        ours = stage.start(run.mesh("mesh", 0, f"http://{platform.address}"))
        plain = stage.start(run.mesh("unary", 1, f"http://{platform.address}", gateway={"multiplex": False}))
        monolith = stage.start(Monolith("monolith", run.folder, run.offset + 20, run.credentials, durable=False))
        durable = stage.start(Monolith("durable", run.folder, run.offset + 30, run.credentials, durable=True))
        systems: list[System] = [ours, monolith, durable, plain]
        warm_up = run.callbacks(int(_MOST_PER_S * _WARM_UP_S), 2_000)
        for system in systems:
            load.send(system.url, warm_up, 64, _WARM_UP_S)
        found: dict[tuple[str, int], list[Sample]] = {}
        connections = (32, 256) if run.quick else (1, 32, 256, 512)
        for _ in range(run.rounds):
            for many in connections:
                callbacks = run.callbacks(int(_MOST_PER_S * run.seconds), 2_000)
                for system in systems:
                    measured = sample(system, callbacks, many, run.seconds)
                    found.setdefault((system.name, many), []).append(measured)
        _throughput_goals(run, found)
        _throughput_tables(run, found, [system.name for system in systems], connections)
        _sessions(run, ours, monolith)
        _memory(run, ours, monolith)


def _throughput_goals(run: Run, found: dict[tuple[str, int], list[Sample]]) -> None:
    limits = {
        ("monolith", "monolith", 32): (1.2, 1.4),
        ("monolith", "monolith", 256): (1.45, 1.75),
        ("durable", "monolith with a durable inbox", 32): (2.5, 3.0),
        ("durable", "monolith with a durable inbox", 256): (3.1, 4.0),
        ("unary", "our mesh without multiplexing", 32): (4.0, 7.0),
        ("unary", "our mesh without multiplexing", 256): (5.0, 8.0),
    }
    for (name, title, connections), (must, aim) in limits.items():
        ours, theirs = found["mesh", connections], found[name, connections]
        ratio = statistics.median(a.load.rate / b.load.rate for a, b in zip(ours, theirs, strict=True))
        rate, their_rate = (f"{number(median(one, lambda s: s.load.rate))}/s" for one in (ours, theirs))
        measure_ = f"messages/s against {title}, {connections} connections"
        run.goals.append(Goal(measure_, rate, their_rate, ratio, must, aim, "×", more_is_better=True))
    cpu = median(found["mesh", 256], lambda s: s.total_us)
    theirs_us = median(found["monolith", 256], lambda s: s.total_us)
    run.goals.append(
        Goal(
            "CPU per message, all processes, 256 connections",
            f"{cpu:.0f} µs",
            f"{theirs_us:.0f} µs (monolith)",
            figure=cpu,
            must=450,
            aim=320,
            unit=" µs",
        )
    )


def _throughput_tables(
    run: Run, found: dict[tuple[str, int], list[Sample]], names: Sequence[str], connections: Sequence[int]
) -> None:
    rows = []
    for name in names:
        cells = [name]
        for many in connections:
            samples = found[name, many]
            rate, p50, p99 = (
                median(samples, of) for of in (lambda s: s.load.rate, lambda s: s.load.p50_ms, lambda s: s.load.p99_ms)
            )
            failed = sum(one.load.failed for one in samples)
            cells.append(f"{number(rate)}/s, {p50:.1f}/{p99:.1f}" + (f", {failed} failed" if failed else ""))
        rows.append(cells)
    run.say("Messages per second, p50/p99 in ms, by connections\n\n" + table(["", *map(str, connections)], rows))
    for name in ("mesh", "unary"):
        parts = list(found[name, connections[0]][0].cpu_us)
        lines = [[part, *(f"{median(found[name, many], _part(part)):.0f}" for many in connections)] for part in parts]
        sums = ["**sum**", *(f"{median(found[name, many], lambda s: s.total_us):.0f}" for many in connections)]
        run.say(
            f"CPU µs per message and process ({name}), by connections\n\n"
            + table(["", *map(str, connections)], [*lines, sums])
        )


def _part(name: str) -> Callable[[Sample], float]:
    return lambda one: one.cpu_us[name]


def _sessions(run: Run, ours: Mesh, monolith: Monolith) -> None:
    """500 conversations that pause between their messages."""
    seconds, think_ms = (5, 400) if run.quick else (10, 400)
    samples: dict[str, list[Sample]] = {"mesh": [], "monolith": []}
    for _ in range(run.rounds):
        callbacks = run.callbacks(int(2_000 * seconds), 500)
        for system in (ours, monolith):
            samples[system.name].append(sample(system, callbacks, 500, seconds, think_ms))
    p99, theirs = (median(samples[name], lambda s: s.load.p99_ms) for name in ("mesh", "monolith"))
    rate = median(samples["mesh"], lambda s: s.load.rate)
    run.goals.append(
        Goal(
            f"P99 at 500 conversations, {number(rate)} messages/s",
            f"{p99:.1f} ms",
            f"{theirs:.1f} ms (monolith)",
            figure=p99,
            must=30,
            aim=18,
            unit=" ms",
        )
    )


def _memory(run: Run, ours: Mesh, monolith: Monolith) -> None:
    """Of all processes after 512 conversations at once."""
    callbacks = run.callbacks(int(_MOST_PER_S * 2), 512)
    found = {}
    for system in (ours, monolith):
        load.send(system.url, callbacks, 512, 2)
        found[system.name] = measure.memory_mb(system.processes())
    total, theirs = (sum(found[name].values()) for name in ("mesh", "monolith"))
    run.goals.append(
        Goal(
            "memory of all processes, 512 conversations (PSS)",
            f"{total:.0f} MB",
            f"{theirs:.0f} MB (monolith)",
            figure=total,
            must=300,
            aim=230,
            unit=" MB",
        )
    )
    rows = [[name, f"{size:.0f}"] for name, size in found["mesh"].items()]
    run.say("Memory by process, MB (PSS), after 512 conversations at once\n\n" + table(["", "MB"], rows))


# --- Answers by the platform's API ------------------------------------------------------------------------


def active(run: Run) -> None:
    """Every callback acknowledged at once, every answer delivered by the API: two durable writes and a request."""
    rows = []
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        ours = stage.start(run.mesh("active", 0, f"http://{platform.address}", gateway={"held_callbacks": 0}))
        load.send(ours.url, run.callbacks(4_000, 1_000), 32, 1)
        for many in (32, 256):
            samples, rates, left = [], [], 0
            for _ in range(run.rounds):
                # No member may be sent more than 30 answers a minute.
                callbacks = run.callbacks(int(5_000 * run.seconds), 10_000)
                before, began = _delivered(platform), time.monotonic()
                samples.append(sample(ours, callbacks, many, run.seconds))
                rates.append((_delivered(platform) - before) / (time.monotonic() - began))
                left += _drained(platform, ours)
            acks = median(samples, lambda s: s.load.rate)
            p99 = median(samples, lambda s: s.load.p99_ms)
            delivered = statistics.median(rates)
            total = median(samples, lambda s: s.total_us)
            rows.append([str(many), *(number(x) for x in (acks, p99, delivered, total)), str(left)])
    header = ["connections", "acks/s", "ack p99 ms", "delivered/s", "CPU µs per message", "not delivered"]
    run.say("Answers by the platform's API\n\n" + table(header, rows))


def _delivered(platform: Helper) -> int:
    found: int = platform.get("/delivered/count")["count"]
    return found


def _drained(platform: Helper, mesh: Mesh) -> int:
    """How many answers were still owed when no more came."""
    before = -1
    while (now := _delivered(platform)) > before:
        before = now
        time.sleep(1.0)
    return int(mesh.metric("assistant_turn_seconds_count", path="active")) - now


# --- A slow engine ----------------------------------------------------------------------------------------


def slow(run: Run) -> None:
    """2,000 conversations and an engine that takes 2 s."""
    seconds = 6 if run.quick else 12
    found = {}
    for name, held in (("acknowledged", 0), ("held", 2_000)):
        with Stage() as stage:
            platform = stage.start(run.helper("platform", 0))
            engine = stage.start(run.helper("engine", 1, 2, 2))
            options = {"gateway": {"held_callbacks": held}, "nlp": {"target": engine.address}}
            mesh = stage.start(run.mesh(f"slow-{name}", 0, f"http://{platform.address}", **options))
            load.send(mesh.url, run.callbacks(200, 200), 20, 1, 200)
            callbacks = run.callbacks(int(1_500 * seconds), 2_000)
            found[name] = sample(mesh, callbacks, 2_000, seconds, 2_000)
            left = _drained(platform, mesh)
        rest = f", {left} not delivered" if held == 0 else ""
        run.say(
            f"2,000 conversations, an engine of 2 s, {name}: {number(found[name].load.rate)} messages/s, "
            f"p50/p99 {found[name].load.p50_ms:.0f}/{found[name].load.p99_ms:.0f} ms, "
            f"{found[name].load.failed} failed{rest}"
        )
    p99 = found["acknowledged"].load.p99_ms
    title = "P99 of acknowledgements, a 2 s engine, 2,000 conversations"
    run.goals.append(Goal(title, f"{p99:.0f} ms", "–", p99, 200, 100, " ms"))


# --- Start and exactness ----------------------------------------------------------------------------------


def start(run: Run) -> None:
    """From the first process until every service is ready."""
    seconds = []
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        for _ in range(run.rounds):
            mesh = run.mesh("start", 0, f"http://{platform.address}")
            seconds.append(mesh.ready_s)
            mesh.stop()
    ready = statistics.median(seconds)
    run.goals.append(Goal("all services ready after start", f"{ready:.2f} s", "–", ready, 1.5, 0.8, " s"))


def exactness(run: Run) -> None:
    """Members who write faster than they are answered, callbacks that come twice, answers by both ways."""
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        engine = stage.start(run.helper("engine", 1, 0.0, 0.4))
        options = {"gateway": {"held_callbacks": 50}, "nlp": {"target": engine.address}}
        mesh = stage.start(run.mesh("exact", 0, f"http://{platform.address}", **options))
        members = 100 if run.quick else 200
        found = asyncio.run(count(mesh.url, run.credentials, platform, mesh.inbox, members, 20))
    wrong = found.lost + found.doubled + found.reordered
    said = f"{found.lost}/{found.doubled}/{found.reordered} of {number(found.messages)}"
    run.goals.append(Goal("lost/doubled/reordered", said, "–", wrong, 0, 0, ""))
    run.say(
        f"Counted: {number(found.messages)} messages, {number(found.passive)} answered in the callback, "
        f"{number(found.active)} by the API; lost {found.lost}, doubled {found.doubled}, reordered {found.reordered}"
    )
