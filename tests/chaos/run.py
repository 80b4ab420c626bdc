"""One run: a mesh under load, one fault after the other, and the books closed at the end."""

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic

from assistant import plugin
from tests.chaos.books import PATIENCE_S, Message, Way
from tests.chaos.faults import FAULTS, Kill
from tests.chaos.mesh import Mesh
from tests.chaos.platform import Platform
from tests.chaos.report import Report, Struck

_PROBE_EVERY_S = 0.1
_RECOVERED_WITHIN_S = 90.0
"""Longer than the minute for which WeCom's limits make us wait."""
_CALM_S = 2.0


@dataclass(frozen=True)
class Plan:
    """What to do to a mesh."""

    kills: int
    longest_pause_s: float
    faults: list[str]
    rate: float
    members: int
    seed: int
    offset: int


async def run(plan: Plan, home: Path, databases: Mapping[str, str]) -> Report:
    """Carry out the plan in a folder of its own. SIGTERM ends it, and everything that it started."""
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    credentials = plugin.load("channels", "wecom", "simulator").credentials()
    mesh = Mesh(
        home,
        plan.offset,
        databases,
        replicas=2 if databases else 1,
        cuttable="stream-cut" in plan.faults,
        jumping="clock-jumps" in plan.faults,
    )
    platform = Platform(credentials, mesh.callback_url, plan.seed)
    async with platform.desk.open() as api:
        await mesh.prepare({**credentials, "api_base": api})
        try:
            await asyncio.to_thread(mesh.start)
            return await _strike(plan, mesh, platform)
        finally:
            await asyncio.to_thread(mesh.stop)
            await mesh.close()


async def _strike(plan: Plan, mesh: Mesh, platform: Platform) -> Report:
    report = Report()
    async with platform.writing(plan.members, plan.rate):
        await asyncio.sleep(_CALM_S)
        await _kill(plan, mesh, platform, report)
        for name in plan.faults:
            fault = FAULTS[name](mesh, platform)
            if why := fault.impossible():
                report.skip(fault.name, why)
                continue
            began, sent = monotonic(), len(platform.books.messages)
            await fault.strike()
            ended = monotonic()
            recovery_s = await _recovery_s(platform)
            before = platform.books.messages[sent:]
            await _answered(before, fault.settle_s)
            report.add(Struck(fault.name, began, ended - began, recovery_s, sum(m.answered_at is None for m in before)))
        platform.stop_writing()
        await platform.settled(PATIENCE_S)
        report.verdict = platform.books.close()
        report.restarts = await asyncio.to_thread(mesh.restarts)
        report.messages = platform.books.messages
        report.strange = platform.books.strange
    return report


async def _kill(plan: Plan, mesh: Mesh, platform: Platform, report: Report) -> None:
    kill, random = Kill(mesh, plan.seed), Random(plan.seed)
    for _ in range(plan.kills):
        await asyncio.sleep(random.uniform(0, plan.longest_pause_s))
        name = await kill.strike()
        report.add(Struck(f"kill {name}", monotonic(), 0.0, await _recovery_s(platform)))
        # One thing breaks at a time. A platform tries three times: three faults in a row can take all of them.
        await asyncio.to_thread(mesh.await_ready, name.removesuffix(" worker"))


async def _recovery_s(platform: Platform) -> float:
    """Seconds until two messages that are sent from now on are answered: one passively, one by the API."""
    began = monotonic()
    probes: dict[Way, list[Message]] = {"passive": [], "active": []}
    while monotonic() < began + _RECOVERED_WITHIN_S:
        for way, sent in probes.items():
            sent.append(platform.probe(way))
        next_at = monotonic() + max(_PROBE_EVERY_S, (monotonic() - began) / 10)
        while monotonic() < next_at:
            first = [min((m.answered_at for m in sent if m.answered_at), default=None) for sent in probes.values()]
            if None not in first:
                return max(at for at in first if at is not None) - began
            await asyncio.sleep(0.005)
    return float("inf")


async def _answered(messages: list[Message], limit_s: float) -> None:
    deadline = monotonic() + limit_s
    while any(message.answered_at is None for message in messages) and monotonic() < deadline:
        await asyncio.sleep(0.1)
