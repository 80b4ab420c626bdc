"""Messages and answers that wait, or were given up."""

from collections import Counter
from collections.abc import AsyncIterator, Sized

from assistant import plugin
from assistant.api.inbox.v1.inbox_pb2 import MESSAGE_STATE_DEAD, ListMessagesRequest
from assistant.api.inbox.v1.inbox_pb2_grpc import InboxServiceStub
from assistant.api.reply.v1.reply_pb2 import DELIVERY_STATE_DEAD, ListDeliveriesRequest
from assistant.cli.configuration import account_section
from assistant.cli.doctor.facts import PATIENCE_S, Facts
from assistant.cli.doctor.platforms import ask
from assistant.errors import AssistantError
from assistant.findings import Finding, Remedy, Text, ok, problem, same, skipped, warning

_LOOKED_AT = 1000
_INBOX_WAITS_S = 60.0
_OUTBOX_WAITS_S = 300.0
"""As the alerts MessagesWait and DeliveriesWait do."""


async def inbox(facts: Facts) -> AsyncIterator[Finding]:
    """Messages that got no answer."""
    gateway = next(iter(facts.answering("gateway")), None)
    if gateway is None:
        if facts.up:
            title = Text(
                "The inbox was not looked at: the gateway cannot be reached from here",
                "未检查收件箱：从此处无法访问网关",
            )
            yield skipped("messages.inbox", title)
        return
    try:
        async with facts.connect(gateway.grpc, "gateway") as channel:
            request = ListMessagesRequest(state=MESSAGE_STATE_DEAD, page_size=_LOOKED_AT)
            answer = await InboxServiceStub(channel).ListMessages(request, timeout=PATIENCE_S)
    except AssistantError as error:
        title = Text(f"The inbox was not looked at: {error.message}", f"未检查收件箱：{error.message}")
        yield skipped("messages.inbox", title)
        return
    dead = list(answer.messages)
    waits_s = _oldest_s(facts, "gateway", "assistant_inbox_oldest_seconds")
    if dead:
        reasons = Counter(message.error for message in dead)
        yield warning(
            "messages.inbox",
            Text(f"{_count(dead)} messages were given up", f"有 {_count(dead)} 条消息被放弃处理"),
            Remedy(
                Text("Their members got an apology, or nothing.", "相应成员只收到致歉，或没有收到答复。"),
                Text("When the cause is mended, try each again", "原因解决后，逐条重试"),
                f"ai-assistant-cli inbox retry {dead[0].key}",
            ),
            detail=same("; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))),
        )
    if waits_s > _INBOX_WAITS_S:
        yield problem(
            "messages.inbox",
            Text(f"A message has waited for its answer for {waits_s:.0f} s", f"有消息已等待答复 {waits_s:.0f} 秒"),
            Remedy(
                Text("Members wait.", "成员正在等待。"),
                Text("The list shows who waits; the log of the gateway why", "列表显示哪些消息在等待，原因见网关日志"),
                "ai-assistant-cli inbox list",
            ),
        )
    if not dead and waits_s <= _INBOX_WAITS_S:
        yield ok("messages.inbox", Text("Every message is answered", "所有消息均已答复"))


async def outbox(facts: Facts) -> AsyncIterator[Finding]:
    """Answers that did not reach their members, by what the platform said."""
    if not facts.up:
        return
    try:
        request = ListDeliveriesRequest(state=DELIVERY_STATE_DEAD, page_size=_LOOKED_AT)
        answer = await ask(facts, lambda stub: stub.ListDeliveries(request, timeout=PATIENCE_S))
    except AssistantError as error:
        title = Text(f"The outbox was not looked at: {error.message}", f"未检查发件箱：{error.message}")
        yield skipped("messages.outbox", title)
        return
    dead = list(answer.deliveries)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for delivery in dead:
        account = (delivery.account.channel, delivery.account.name or "default")
        groups.setdefault((*account, delivery.last_error), []).append(delivery.delivery_id)
    for (channel, name, said), ids in sorted(groups.items(), key=lambda group: -len(group[1]))[:5]:
        yield _given_up(channel, name, said, ids)
    waits_s = _oldest_s(facts, "reply_svc", "assistant_outbox_oldest_seconds")
    if waits_s > _OUTBOX_WAITS_S:
        yield problem(
            "messages.outbox",
            Text(f"An answer has waited to be delivered for {waits_s:.0f} s", f"有答复已等待发送 {waits_s:.0f} 秒"),
            Remedy(
                Text("Members wait.", "成员正在等待。"),
                Text("The list shows the last error of each", "列表显示每条的最后一次错误"),
                "ai-assistant-cli deliveries list --state pending",
            ),
        )
    if not dead and waits_s <= _OUTBOX_WAITS_S:
        yield ok("messages.outbox", Text("Every answer was delivered", "所有答复均已送达"))


def _given_up(channel: str, name: str, said: str, ids: list[str]) -> Finding:
    section = account_section(channel, name)
    detail, remedy = same(said), Remedy(Text("Their members got no answer.", "相应成员没有收到答复。"))
    if channel in plugin.channels():
        detail, remedy = plugin.doctor(channel, name).explain("", said)
    again = f"ai-assistant-cli deliveries retry {ids[0]}"
    return warning(
        "messages.outbox",
        Text(f"{_count(ids)} answers of {section} were given up", f"{section} 有 {_count(ids)} 条答复被放弃发送"),
        Remedy(remedy.why, remedy.mend, f"{remedy.command} && {again}" if remedy.command else again),
        section,
        detail,
    )


def _count(found: Sized) -> str:
    return f"{len(found)}" if len(found) < _LOOKED_AT else f"{_LOOKED_AT}+"


def _oldest_s(facts: Facts, service: str, metric: str) -> float:
    """What the replica measured that sees the oldest."""
    measured = [replica.metrics.value(metric) for replica in facts.answering(service) if replica.metrics]
    return max((value for value in measured if value is not None), default=0.0)
