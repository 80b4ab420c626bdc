"""Whether the engine that answers is ready, and how long it took to load."""

from collections.abc import AsyncIterator

from assistant.api.nlp.v1.nlp_pb2 import DescribeModelRequest
from assistant.api.nlp.v1.nlp_pb2_grpc import NlpServiceStub
from assistant.cli import plan
from assistant.cli.addresses import reachable
from assistant.cli.doctor.facts import PATIENCE_S, Facts
from assistant.cli.services import service
from assistant.errors import AssistantError
from assistant.findings import Finding, Remedy, Text, ok, problem, skipped, warning
from assistant.settings import Settings

_LOAD_S = 0.2


class _Target(Settings, frozen=True, kw_only=True):
    """The part of section `nlp` that says where it is reached."""

    target: str | None = None


async def model(facts: Facts) -> AsyncIterator[Finding]:
    """What DescribeModel says, wherever `nlp.target` leads."""
    if not facts.up:
        return
    target = facts.settings(_Target, "nlp").target or reachable(plan.addresses(service("nlp_svc"), facts.given).grpc)
    try:
        async with facts.connect(target, "nlp_svc") as channel:
            described = await NlpServiceStub(channel).DescribeModel(DescribeModelRequest(), timeout=PATIENCE_S)
    except AssistantError as error:
        if facts.here and not facts.uncertified:
            yield problem(
                "engine.ready",
                Text(f"The engine at {target} does not answer", f"{target} 的引擎没有响应"),
                Remedy(
                    Text("Members get an apology for an answer.", "成员只会收到致歉。"),
                    Text(
                        "Its log says why; another one must keep the contract", "原因见其日志；自备引擎须遵守接口约定"
                    ),
                    f"ai-assistant-cli test nlp --target {target}",
                ),
                target,
                Text(error.message, error.message),
            )
        else:
            title = Text(f"The engine cannot be asked from here ({target})", f"从此处无法询问引擎（{target}）")
            yield skipped("engine.ready", title)
        return
    name = " ".join(dict.fromkeys(filter(None, (described.provider, described.model, described.version))))
    if not described.ready:
        yield problem(
            "engine.ready",
            Text(f"The engine is not ready: {name}", f"引擎尚未就绪：{name}"),
            Remedy(
                Text("Members get an apology for an answer.", "成员只会收到致歉。"),
                Text(
                    "Wait while it loads; `engine_not_loaded` in its log says why it cannot",
                    "请等待加载；日志中的 engine_not_loaded 说明失败原因",
                ),
                "ai-assistant-cli logs nlp_svc --lines 50",
            ),
            target,
        )
        return
    load_s = described.load_time.ToNanoseconds() / 1e9
    title = Text(
        f"The engine is ready: {name}, loaded in {load_s * 1000:.0f} ms",
        f"引擎就绪：{name}，加载用时 {load_s * 1000:.0f} 毫秒",
    )
    if load_s < _LOAD_S:
        yield ok("engine.ready", title, target)
        return
    yield warning(
        "engine.ready",
        title,
        Remedy(
            Text(
                f"It should take less than {_LOAD_S * 1000:.0f} ms: after each restart members wait so long.",
                f"应少于 {_LOAD_S * 1000:.0f} 毫秒：每次重启后成员都要等待这么久。",
            ),
            Text(
                "Give nlp_svc more CPU, or a smaller model; a second replica hides it",
                "为 nlp_svc 分配更多 CPU、换用更小的模型，或增加一个副本",
            ),
        ),
        target,
    )
