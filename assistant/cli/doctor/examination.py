"""All checks, in the order in which an operator reads them; run side by side, none for long."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from assistant.cli.doctor import (
    callbacks,
    certified,
    configured,
    databases,
    engine,
    machine,
    messages,
    platforms,
    processes,
)
from assistant.cli.doctor.facts import Facts
from assistant.errors import AssistantError
from assistant.findings import Finding, Text, skipped

_LONGEST_S = 30.0
_UNFINISHED = "doctor.unfinished"

Check = Callable[[Facts], AsyncIterator[Finding]]


@dataclass(frozen=True)
class Group:
    """Checks that are read together."""

    name: str
    """For programs."""
    title: Text
    checks: Sequence[Check]


GROUPS = (
    Group(
        "mesh",
        Text("Mesh", "服务进程"),
        (
            processes.running,
            processes.ports,
            processes.processes,
            processes.services,
            processes.edge,
            processes.applied,
            processes.code,
        ),
    ),
    Group(
        "settings",
        Text("Settings", "配置"),
        (configured.sections_fit, configured.accounts_fit, configured.permissions, configured.hidden, machine.keys),
    ),
    Group(
        "callbacks",
        Text("Callbacks", "回调"),
        (callbacks.through_the_mesh, platforms.refused_callbacks, callbacks.from_outside),
    ),
    Group("platform", Text("Platform", "平台"), (platforms.accounts, platforms.clock)),
    Group("messages", Text("Messages", "消息"), (messages.inbox, messages.outbox)),
    Group("engine", Text("Engine", "引擎"), (engine.model,)),
    Group("databases", Text("Databases", "数据库"), (databases.all_of_them,)),
    Group("certificates", Text("Certificates", "证书"), (certified.of_the_edge, certified.of_processes)),
    Group("machine", Text("Machine", "主机"), (machine.disk, machine.memory, machine.open_files)),
)


async def examined(facts: Facts) -> list[tuple[Group, list[Finding]]]:
    """What every check found, in order."""
    checks = [(group, check) for group in GROUPS for check in group.checks]
    found = await asyncio.gather(*(_findings(check, facts) for _, check in checks))
    by_group: dict[str, list[Finding]] = {group.name: [] for group in GROUPS}
    for (group, _), findings in zip(checks, found, strict=True):
        by_group[group.name] += findings
    return [(group, by_group[group.name]) for group in GROUPS]


async def _findings(check: Check, facts: Facts) -> list[Finding]:
    """What one check finds until it ends or its time does. What it cannot look at is not the operator's fault."""
    found: list[Finding] = []
    name = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
    try:
        async with asyncio.timeout(_LONGEST_S):
            async for finding in check(facts):
                found.append(finding)  # noqa: PERF401 - what was found before the time is over counts
    except TimeoutError:
        title = Text(f"{name} was given up: there was no answer in time", f"{name} 未及时得到应答，已放弃")
        found.append(skipped(_UNFINISHED, title, name))
    except AssistantError as error:
        title = Text(f"{name} could not be done: {error.message}", f"{name} 无法进行：{error.message}")
        found.append(skipped(_UNFINISHED, title, name))
    except Exception as error:  # one check that is wrong must not cost all others
        why = type(error).__name__  # its text may hold a secret
        title = Text(f"{name} failed, by an error of this command: {why}", f"{name} 因此命令自身的错误而失败：{why}")
        found.append(skipped(_UNFINISHED, title, name))
    return found
