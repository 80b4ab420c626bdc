"""Whether the mesh runs, every process of it, and with what is configured."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

import assistant
from assistant.cli import control, plan
from assistant.cli.addresses import is_free, occupant, reachable
from assistant.cli.doctor.facts import PATIENCE_S, Facts, Replica, in_thread, visible
from assistant.cli.services import SERVICES, Service
from assistant.cli.supervisor import PLAN, Standing
from assistant.errors import AssistantError
from assistant.findings import Finding, Remedy, Text, ok, problem, skipped, warning
from assistant.settings import Address

_LOOKING_AROUND_S = 10.0
"""Who has a port is found by looking at every process of the machine."""
_RECENT_S = 3600.0
"""A process that was started again longer ago than this has settled."""
_STARTED = "process_start_time_seconds"
_INSTALLED = Path(assistant.__file__).parents[1]
"""Where the packages are."""
_NOT_TAKEN = Text(
    "Messages are not taken. A platform repeats a callback for some seconds only: what comes meanwhile is lost.",
    "无法接收消息。平台只会在几秒内重试回调，期间的消息会丢失。",
)
_PART_FAILS = Text(
    "Messages are taken and kept, and not answered until it serves.", "消息会被接收并保存，但在恢复之前不会得到答复。"
)


async def running(facts: Facts) -> AsyncIterator[Finding]:
    """Whether there is a mesh at all."""
    if facts.supervisor_silent:
        yield problem(
            "mesh.running",
            Text("The supervisor does not answer", "守护进程没有响应"),
            Remedy(
                Text("Whatever ends now is not started again.", "进程退出后不会被重新拉起。"),
                Text(
                    "End the process `assistant.cli.supervisor`: the mesh ends with it. Then start it again",
                    "结束 `assistant.cli.supervisor` 进程（整个服务会随之停止），然后重新启动",
                ),
                "ai-assistant-cli up",
            ),
        )
    elif facts.up:
        where = f"{len(facts.standing)}" if facts.standing else ""
        by_us = Text(f"The mesh is up: {where} processes", f"服务正在运行：{where} 个进程")
        elsewhere = Text(f"The mesh is up at {facts.edge.http}", f"服务正在运行：{facts.edge.http}")
        yield ok("mesh.running", by_us if where else elsewhere)
        if not facts.here:
            yield skipped(
                "mesh.elsewhere",
                Text(
                    "It runs elsewhere: change settings where it gets them, such as .env, start it again and read its "
                    "logs there (docker compose up -d, docker compose logs)",
                    "服务运行在别处：请在其配置来源（如 .env）修改设置，"
                    "并在那里重启与查看日志（docker compose up -d、docker compose logs）",
                ),
            )
    elif facts.here:
        title = Text("The mesh is down: nothing runs here", "服务未运行")
        yield problem("mesh.running", title, Remedy(_NOT_TAKEN, command="ai-assistant-cli up"))
    else:
        title = Text(f"The mesh is down: nothing answers at {facts.edge.http}", f"服务未运行：{facts.edge.http} 无响应")
        mend = Text(
            "Start it where it runs, such as: docker compose up -d --wait",
            "在其运行处启动，例如：docker compose up -d --wait",
        )
        yield problem("mesh.running", title, Remedy(_NOT_TAKEN, mend))


async def ports(facts: Facts) -> AsyncIterator[Finding]:
    """While it is down: whether its ports are free."""
    if facts.up or not facts.here:
        return
    for finding in await in_thread(lambda: list(_taken(facts)), _LOOKING_AROUND_S):
        yield finding


def _taken(facts: Facts) -> Iterator[Finding]:
    wanted = {"edge.http": facts.edge.http, "edge.https": facts.edge.https, "edge.admin": facts.edge.admin}
    for service in SERVICES:
        wanted |= plan.addresses(service, facts.given).by_setting(service.section)
    busy = {name: address for name, address in wanted.items() if not is_free(address)}
    for name, address in busy.items():
        who = occupant(address.port)
        yield problem(
            "mesh.ports",
            Text(
                f"Port {address.port} ({name}) is taken" + (f" by {who}" if who else ""),
                f"端口 {address.port}（{name}）已被占用" + (f"：{who}" if who else ""),
            ),
            Remedy(
                Text("The mesh cannot start.", "服务无法启动。"),
                Text(
                    "Stop what is there, or move all ports, or this one",
                    "停止占用该端口的程序，或整体平移端口，或单独修改此端口",
                ),
                f"ai-assistant-cli config set {name} {address.host}:<port>",
            ),
            name,
        )
    if not busy:
        yield ok("mesh.ports", Text(f"All {len(wanted)} ports are free", f"{len(wanted)} 个端口均可用"))


async def applied(facts: Facts) -> AsyncIterator[Finding]:
    """Whether the mesh runs with what the file says now."""
    plan_file = control.run_folder() / PLAN
    file = facts.given.file
    if not (facts.standing and visible(file) and visible(plan_file)):
        return
    if file.stat().st_mtime > plan_file.stat().st_mtime:
        why = Text("The mesh runs with the old values.", "服务仍在使用旧的配置。")
        title = Text(f"{file} was changed after the mesh was started", f"{file} 在服务启动之后被修改过")
        yield warning("mesh.applied", title, Remedy(why, command="ai-assistant-cli up"))


async def code(facts: Facts) -> AsyncIterator[Finding]:
    """Whether each process runs the code that is installed: a start after an update would bring another one."""
    if not facts.here:
        return
    started = {
        name: min(replica.metrics.value(_STARTED) or 0.0 for replica in reached if replica.metrics)
        for name in facts.replicas
        if (reached := facts.answering(name))
    }
    changed = await in_thread(lambda: {name: code_changed_at(_INSTALLED, name) for name in started}, _LOOKING_AROUND_S)
    old = sorted(name for name, at in started.items() if at < changed[name])
    if old:
        names = ", ".join(old)
        why = Text(
            "Whichever of them ends is started again with the new code, beside others with the old.",
            "其中任何一个退出后会以新代码重启，与仍运行旧代码的进程并存。",
        )
        title = Text(f"The code was updated after the start of {names}", f"{names} 启动之后代码已更新")
        command = "ai-assistant-cli down && ai-assistant-cli up"
        yield warning("mesh.code", title, Remedy(why, command=command), names)
    elif started:
        yield ok("mesh.code", Text("Every service runs the code that is installed", "各服务运行的均为已安装的代码"))


def code_changed_at(root: Path, service: str) -> float:
    """When what a service runs was written last, in seconds since 1970."""
    folders = (root / name for name in ("assistant", "plugins", service))
    times = [file.stat().st_mtime for folder in folders for file in folder.rglob("*.py")]
    return max(times, default=0.0)


async def processes(facts: Facts) -> AsyncIterator[Finding]:
    """Whether each keeps running."""
    for process in facts.standing or ():
        if process.state != "running" or (process.restarts and process.up_s < _RECENT_S):
            yield _ends(process)


def _ends(process: Standing) -> Finding:
    keeps_ending = process.state != "running"
    how = f"{process.restarts}, {process.last_exit}"
    title = Text(
        f"{process.name} {'keeps ending' if keeps_ending else 'was started again'} (starts: {how})",
        f"{process.name} {'反复退出' if keeps_ending else '曾被重新拉起'}（重启次数与原因：{how}）",
    )
    why = (
        _PART_FAILS if keeps_ending else Text("Something ended it: the log says what.", "进程曾异常退出：请查看日志。")
    )
    remedy = Remedy(why, command=f"ai-assistant-cli logs {process.name} --lines 50")
    return (problem if keeps_ending else warning)("mesh.process", title, remedy, process.name)


async def services(facts: Facts) -> AsyncIterator[Finding]:
    """Whether each serves: what it says itself, what callers find, what the gateway says."""
    if not facts.up:
        return
    for findings in await asyncio.gather(*(_service(facts, service) for service in SERVICES)):
        for finding in findings:
            yield finding


async def _service(facts: Facts, service: Service) -> list[Finding]:
    replicas = facts.replicas.get(service.name, ())
    reached = [replica for replica in replicas if replica.answers]
    if not reached:
        return [_unreached(facts, service, replica) for replica in replicas]
    wrong = [_unreached(facts, service, replica) for replica in replicas if not replica.answers]
    for replica in reached:
        if not replica.healthy:
            wrong.append(_fails(service, Text("says that it cannot serve", "自报无法提供服务"), replica.admin))
        elif said := await _calls(facts, replica):
            wrong.append(_fails(service, Text(f"takes no calls: {said}", f"无法调用：{said}"), replica.grpc))
    if wrong:
        return wrong
    count = len(reached)
    title = Text(
        f"{service.name} serves" + (f": {count} replicas" if count > 1 else ""),
        f"{service.name} 正常" + (f"：{count} 个副本" if count > 1 else ""),
    )
    return [ok("mesh.service", title, service.name)]


async def _calls(facts: Facts, replica: Replica) -> str:
    """Why a call of it fails, over gRPC as its callers speak it. Empty: it does not."""
    if facts.uncertified:  # told where certificates are looked at
        return ""
    async with facts.connect(replica.grpc, replica.service.name) as channel:
        try:
            stub: HealthStub = HealthStub(channel)
            answer: HealthCheckResponse = await stub.Check(HealthCheckRequest(), timeout=PATIENCE_S)  # type: ignore[attr-defined]
        except AssistantError as error:
            return error.message
    return "" if answer.status == HealthCheckResponse.SERVING else "NOT_SERVING"


def _unreached(facts: Facts, service: Service, replica: Replica) -> Finding:
    said = facts.serving(service.name)
    if said == "serving" and not facts.here:
        return skipped(
            "mesh.service",
            Text(
                f"{service.name} serves, as the gateway says; it cannot be reached from here ({replica.admin})",
                f"{service.name} 正常（网关所述）；从此处无法直接访问（{replica.admin}）",
            ),
            service.name,
        )
    if said and said != "serving":
        return _fails(service, Text(f"does not serve, the gateway says: {said}", f"不可用，网关报告：{said}"))
    return _fails(service, Text(f"does not answer: {replica.failure}", f"没有响应：{replica.failure}"), replica.admin)


def _fails(service: Service, how: Text, where: Address | None = None) -> Finding:
    return problem(
        "mesh.service",
        Text(
            f"{service.name} {how.en}" + (f" ({where})" if where else ""),
            f"{service.name} {how.zh}" + (f"（{where}）" if where else ""),
        ),
        Remedy(
            _NOT_TAKEN if service.name == "gateway" else _PART_FAILS,
            Text("Its log says why", "原因见其日志"),
            f"ai-assistant-cli logs {service.name} --lines 50",
        ),
        service.name,
    )


async def edge(facts: Facts) -> AsyncIterator[Finding]:
    """Whether Envoy leads to the gateway."""
    if not facts.up:
        return
    where = reachable(facts.edge.http)
    if facts.health is None:
        yield problem(
            "mesh.edge",
            Text(
                f"Envoy does not lead to the gateway: no report at http://{where}/health",
                f"Envoy 未能转发到网关：http://{where}/health 无应答",
            ),
            Remedy(_NOT_TAKEN, command="ai-assistant-cli logs envoy gateway --lines 50"),
        )
    else:
        yield ok("mesh.edge", Text(f"Envoy leads to the gateway ({where})", f"Envoy 可转发到网关（{where}）"))
