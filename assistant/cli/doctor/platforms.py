"""What the platforms say of every account, why they do not understand us, and whether our clock is theirs."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from assistant import plugin
from assistant.api.inbox.v1.inbox_pb2 import ListMessagesRequest
from assistant.api.inbox.v1.inbox_pb2_grpc import InboxServiceStub
from assistant.api.message.v1.message_pb2 import Account
from assistant.api.reply.v1.reply_pb2 import CheckAccountRequest
from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceStub
from assistant.cli.configuration import account_section
from assistant.cli.doctor.facts import Facts
from assistant.errors import AssistantError, ServiceUnavailable
from assistant.findings import Finding, Remedy, Text, ok, problem, skipped, warning
from assistant.settings import DEFAULT_ACCOUNT, Settings

if TYPE_CHECKING:
    from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceAsyncStub

PATIENCE_S = 6.0
"""reply_svc itself gives a platform 4 s."""
_CLOCK_WARNED_S = 30.0
"""As the alert ClockSkew does."""
_NEWEST = 200
_FEW = 3
"""So many refused callbacks may come from strangers who try."""
_REFUSALS = ("STALE_CALLBACK", "SIGNATURE_MISMATCH", "UNDECRYPTABLE", "RECEIVER_MISMATCH", "MALFORMED_ENVELOPE")


class _MaxAge(Settings, frozen=True, kw_only=True):
    """The part of section `crypto` that says what a wrong clock costs."""

    max_age_s: float = 300.0


async def accounts(facts: Facts) -> AsyncIterator[Finding]:
    """Whether each platform accepts us, as reply_svc says, or else the gateway."""
    if not facts.up:
        yield skipped(
            "platform.account", Text("The platform was not asked: the mesh is down", "未询问平台：服务未运行")
        )
        return
    known = facts.accounts()
    if not known:
        title = Text("No channel is configured", "尚未配置任何平台")
        why = Text("There is nobody to answer.", "没有可以答复的对象。")
        yield problem("platform.account", title, Remedy(why, command="ai-assistant-cli config set --help"))
    for finding in await asyncio.gather(*(_account(facts, channel, name) for channel, name in known)):
        yield finding


async def _account(facts: Facts, channel: str, name: str) -> Finding:
    section, title = account_section(channel, name), plugin.channels()[channel].title
    try:
        request = CheckAccountRequest(account=Account(channel=channel, name=name))
        answer = await ask(facts, lambda stub: stub.CheckAccount(request, timeout=PATIENCE_S))
        connected, code, said = answer.connected, answer.error_code, answer.advice
    except AssistantError as error:
        if facts.health is None:
            return _not_asked(error.message, section)
        problems = facts.health.get("problems", {})
        told = str(problems.get(f"{channel}.{name}", ""))
        if told.startswith("reply_svc:"):  # it is not the platform that failed
            return _not_asked(told, section)
        code, _, said = told.partition(" ")
        if not code.lstrip("-").isdigit():
            code, said = "", told
        connected = not told
    if connected:
        return ok(
            "platform.account", Text(f"{title['en']} accepts {section}", f"{title['zh-CN']}接受 {section}"), section
        )
    detail, remedy = plugin.doctor(channel, name).explain(code, said)
    numbered = f": {code}" if code else ""
    return problem(
        "platform.account",
        Text(f"{title['en']} does not accept {section}{numbered}", f"{title['zh-CN']}不接受 {section}{numbered}"),
        remedy,
        section,
        detail,
    )


def _not_asked(why: str, section: str) -> Finding:
    return skipped("platform.account", Text(f"The platform was not asked: {why}", f"未询问平台：{why}"), section)


async def ask(facts: Facts, question: "Callable[[ReplyServiceAsyncStub], Awaitable[Any]]") -> Any:
    """Ask a reply_svc that answers. Raises ServiceUnavailable at once if none does, and what it answers."""
    replica = next(iter(facts.answering("reply_svc")), None) or next(iter(facts.replicas["reply_svc"]))
    if facts.here and not replica.answers:
        raise ServiceUnavailable(f"reply_svc: {replica.failure}")
    async with facts.connect(replica.grpc, "reply_svc") as channel:
        return await question(ReplyServiceStub(channel))


async def refused_callbacks(facts: Facts) -> AsyncIterator[Finding]:
    """Whether what the platform sends can be opened: it cannot if the console has other keys than we."""
    measured = [replica.metrics for replica in facts.answering("crypto_svc") if replica.metrics]
    if not measured:
        if facts.up:
            title = Text(
                "Whether callbacks are refused is not known: crypto_svc cannot be reached from here",
                "无法得知回调是否被拒绝：从此处无法访问 crypto_svc",
            )
            yield skipped("callback.opened", title)
        return
    since = min(metrics.value("process_start_time_seconds") or 0.0 for metrics in measured)
    try:
        taken = await _taken(facts, since)
    except AssistantError as error:
        title = Text(
            f"Whether callbacks are refused is not known: {error.message}", f"无法得知回调是否被拒绝：{error.message}"
        )
        yield skipped("callback.opened", title)
        return
    for channel in sorted({channel for channel, _ in facts.accounts()}):
        counts = {
            outcome: int(
                sum(
                    metrics.value("assistant_callbacks_opened_total", channel=channel, outcome=outcome) or 0
                    for metrics in measured
                )
            )
            for outcome in _REFUSALS
        }
        yield _told_apart(channel, counts, taken[channel])


async def _taken(facts: Facts, since: float) -> "Counter[str]":
    """How many messages of members each channel brought, ours left out; of the newest, so that it costs little.

    Raises what the gateway answers.
    """
    gateway = next(iter(facts.answering("gateway")), None)
    if gateway is None:
        return Counter()
    async with facts.connect(gateway.grpc, "gateway") as channel:
        request = ListMessagesRequest(page_size=_NEWEST)
        newest = await InboxServiceStub(channel).ListMessages(request, timeout=PATIENCE_S)
    return Counter(
        message.account.channel
        for message in newest.messages
        if message.sender.id != plugin.SELF_TEST_MEMBER and message.received_at.ToNanoseconds() / 1e9 >= since
    )


def _told_apart(channel: str, counts: Mapping[str, int], taken: int) -> Finding:
    """Keys that differ refuse everybody; strangers who try are refused beside members who are not."""
    worst = max(counts, key=lambda outcome: counts[outcome])
    refused = counts[worst]
    so_many = f"{taken}{'+' if taken == _NEWEST else ''}"
    if refused <= _FEW:
        nobody = Text(
            f"No member has written through {channel} since the start", f"自启动以来，尚无成员通过 {channel} 发来消息"
        )
        some = Text(
            f"{so_many} messages have come through {channel} since the start",
            f"自启动以来，{channel} 收到 {so_many} 条消息",
        )
        return ok("callback.opened", some if taken else nobody, channel)
    detail, remedy = plugin.doctor(channel, DEFAULT_ACCOUNT).explain(worst, "")
    title = Text(
        f"{refused} callbacks of {channel} were refused ({worst}) since the start, and {so_many} messages taken",
        f"自启动以来，{channel} 有 {refused} 个回调被拒绝（{worst}），收到 {so_many} 条消息",
    )
    return (warning if taken else problem)("callback.opened", title, remedy, channel, detail)


async def clock(facts: Facts) -> AsyncIterator[Finding]:
    """Our clock beside the date of the platform's last answer, which reply_svc compares."""
    offsets = [
        offset
        for replica in facts.answering("reply_svc")
        if replica.metrics and (offset := replica.metrics.value("assistant_clock_offset_seconds"))
    ]
    if not offsets:  # exactly 0 is what is measured before the first answer: dates have whole seconds
        title = Text(
            "The clock was not compared: the platform has not answered yet, or reply_svc cannot be reached from here",
            "未比较时钟：平台尚未应答，或从此处无法访问 reply_svc",
        )
        yield skipped("platform.clock", title)
        return
    offset = max(offsets, key=abs)
    max_age_s = facts.settings(_MaxAge, "crypto").max_age_s
    ahead = offset > 0
    title = Text(
        f"Our clock is {abs(offset):.0f} s {'ahead of' if ahead else 'behind'} the platform's",
        f"本机时钟比平台{'快' if ahead else '慢'} {abs(offset):.0f} 秒",
    )
    if abs(offset) <= _CLOCK_WARNED_S:
        yield ok("platform.clock", title)
        return
    remedy = Remedy(
        Text(
            f"Callbacks that seem older than {max_age_s:.0f} s are refused as replays, and no message is answered.",
            f"看似超过 {max_age_s:.0f} 秒的回调会被当作重放而拒绝，消息得不到答复。",
        ),
        Text("Start time synchronisation on the machine, not in the container", "请在宿主机（而非容器内）启用时间同步"),
        "timedatectl set-ntp true",
    )
    yield (problem if abs(offset) >= max_age_s else warning)("platform.clock", title, remedy)
