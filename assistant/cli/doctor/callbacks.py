"""Whether a platform's callback reaches every service and is answered: from here, and from where the world calls."""

import asyncio
import datetime
import http.client
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any
from urllib.parse import SplitResult, urlsplit

from assistant import plugin
from assistant.cli.configuration import account_section, callback_path
from assistant.cli.doctor.certified import days_left
from assistant.cli.doctor.facts import Facts, in_thread
from assistant.cli.probe import Conversation
from assistant.errors import AssistantError
from assistant.findings import NOTHING, Finding, Remedy, Severity, Text, ok, problem, same, skipped, warning

PATIENCE_S = 8.0
"""An engine may think for some seconds before the callback is acknowledged without an answer."""
_CONNECT_S = 5.0
_MESSAGE = "ping"
_NOT_ANSWERED = Text("Messages from members get no answer.", "成员发来的消息得不到答复。")
_UNREACHABLE = Text(
    "The platform cannot call us: no message arrives, and its console cannot save the URL.",
    "平台无法访问该地址：收不到消息，管理后台也无法保存 URL。",
)
_LOGS = "ai-assistant-cli logs envoy gateway crypto_svc --lines 50"


async def through_the_mesh(facts: Facts) -> AsyncIterator[Finding]:
    """A callback sealed as the platform would, through Envoy and every service."""
    if facts.running is None or not facts.up:
        yield skipped(
            "callback.answered",
            Text("No callback was tried: the mesh is down", "未测试回调：服务未运行"),
        )
        return
    tried = (
        in_thread(partial(_tried, facts, channel, account, None), 2 * PATIENCE_S)
        for channel, account in facts.accounts()
    )
    for finding in await asyncio.gather(*tried):
        yield finding


def _tried(facts: Facts, channel: str, account: str, url: SplitResult | None) -> Finding:
    """Send one message and look at what comes back. With a `url`, to there."""
    check = "callback.answered" if url is None else "url.answered"
    subject = account_section(channel, account)
    assert facts.running is not None  # noqa: S101 - for the type checker: asked only while the mesh runs
    try:
        conversation = Conversation(channel, account, facts.running)
        began = time.monotonic()
        status, body = conversation.send(_MESSAGE, PATIENCE_S, _connection(url) if url else None)
        took_s = time.monotonic() - began
    except AssistantError as error:
        return skipped(check, Text(f"No callback was tried: {error.message}", f"未测试回调：{error.message}"), subject)
    except (OSError, http.client.HTTPException) as error:
        title = Text(f"A callback to {subject} gets no answer", f"发往 {subject} 的回调没有应答")
        return problem(check, title, Remedy(_NOT_ANSWERED, command=_LOGS), subject, same(str(error)))
    if status == http.client.FORBIDDEN and facts.running.account(channel, account)["callback_sources"]:
        title = Text(
            f"No callback was tried: callback_sources of {subject} does not take this machine's",
            f"未测试回调：{subject} 的 callback_sources 不接受来自本机的回调",
        )
        return skipped(check, title, subject)
    if status != http.client.OK:
        return _refused(check, subject, status, body, url)
    try:
        content = conversation.read(body)
    except AssistantError as error:
        title = Text(f"The answer of {subject} is not what the platform takes", f"{subject} 的应答不符合平台要求")
        return problem(check, title, Remedy(_NOT_ANSWERED, command=_LOGS), subject, same(error.message))
    return _in_time(check, channel, subject, took_s, answered=content is not None)


def _in_time(check: str, channel: str, subject: str, took_s: float, *, answered: bool) -> Finding:
    took = f"{took_s * 1000:.0f} ms"
    if answered:
        title = Text(f"A callback to {subject} is answered in {took}", f"发往 {subject} 的回调在 {took} 内得到答复")
    else:
        title = Text(
            f"A callback to {subject} is acknowledged in {took}; its answer follows later",
            f"发往 {subject} 的回调在 {took} 内得到确认，答复随后发送",
        )
    limit_s = plugin.load("channels", channel, "codec").reply_limit_s
    if took_s <= limit_s:
        return ok(check, title, subject)
    why = Text(
        f"The platform waits for {limit_s:.0f} s, then breaks off and repeats it: answers come late, by its API.",
        f"平台只等待 {limit_s:.0f} 秒，随后断开并重试：答复会延迟，并改由接口发送。",
    )
    mend = Text("Look where the time goes: docs/observability.md", "参见 docs/observability.md，查看时间花在哪里")
    return problem(check, title, Remedy(why, mend), subject)


def _refused(check: str, subject: str, status: int, body: bytes, url: SplitResult | None) -> Finding:
    title = Text(f"A callback to {subject} is refused with {status}", f"发往 {subject} 的回调被拒绝：{status}")
    said = same(body.decode(errors="replace").strip()[:200])
    mend, command = NOTHING, _LOGS
    if status in (http.client.UNAUTHORIZED, http.client.NOT_FOUND) and url is None:
        mend = Text(
            "The mesh runs with other keys or accounts than are configured: bring it in line",
            "服务正在使用与当前配置不同的密钥或账号：请使其一致",
        )
        command = "ai-assistant-cli up"
    elif url is not None:
        mend = Text(
            "Envoy here takes it or not, see above: what stands before it must pass path, query and body on unchanged",
            "此处的 Envoy 是否接受见上文；其前方的代理必须原样转发路径、查询参数与正文",
        )
    return problem(check, title, Remedy(_NOT_ANSWERED, mend, command), subject, said)


async def from_outside(facts: Facts) -> AsyncIterator[Finding]:
    """The public URL, step by step; the first step that fails ends it."""
    accounts = facts.accounts()
    paths = {callback_path(*account): account for account in accounts}
    if facts.public_url:
        urls = [facts.public_url]
    elif facts.edge.public_url:
        urls = [facts.edge.public_url + path for path in paths]
    else:
        yield skipped(
            "url.path",
            Text(
                "The public URL is not known: give it with --url, or set edge.public_url",
                "未知公网 URL：请用 --url 给出，或设置 edge.public_url",
            ),
        )
        return
    for text in urls:
        url = urlsplit(text)
        if wrong := _wrong_path(url, list(paths)):
            yield wrong
            continue
        account = paths[url.path]
        yield ok("url.path", Text(f"{text} has the path of {account_section(*account)}", f"{text} 的路径正确"), text)
        for finding in await in_thread(partial(_steps, facts, url, account), 3 * PATIENCE_S):
            yield finding


def _wrong_path(url: SplitResult, paths: list[str]) -> Finding | None:
    if url.scheme in ("http", "https") and url.hostname and url.path in paths:
        return None
    base = f"https://{url.netloc}" if url.netloc else "https://<your domain>"
    right = ", ".join(base + path for path in paths) or f"{base}/<channel>"
    return problem(
        "url.path",
        Text(
            f"{url.geturl()} is not the address of an account: its path must be {' or '.join(paths) or '/<channel>'}",
            f"{url.geturl()} 不是任何账号的地址：路径应为 {' 或 '.join(paths) or '/<channel>'}",
        ),
        Remedy(_UNREACHABLE, Text(f"Put into the platform's console: {right}", f"在平台管理后台填写：{right}")),
        url.geturl(),
    )


def _steps(facts: Facts, url: SplitResult, account: tuple[str, str]) -> list[Finding]:
    return list(_looked_at(facts, url, account))


def _looked_at(facts: Facts, url: SplitResult, account: tuple[str, str]) -> Iterator[Finding]:
    """Each step needs the one before."""
    subject = url.geturl()
    addresses = _addresses(url)
    if not addresses:
        title = Text(f"{url.hostname} is not a known name", f"域名 {url.hostname} 无法解析")
        mend = Text(f"Make a DNS record for {url.hostname}", f"为 {url.hostname} 添加 DNS 解析")
        yield problem("url.dns", title, Remedy(_UNREACHABLE, mend), subject)
        return
    yield _seen(url, addresses, subject)
    if url.scheme == "https":
        certificate = _certificate(url, subject)
        yield certificate
        if certificate.severity is Severity.PROBLEM:
            return
    else:
        why = Text("Everybody on the way reads along, except what is sealed.", "途中任何人都能看到未加密的部分。")
        title = Text("The URL is HTTP, not HTTPS", "URL 使用 HTTP 而不是 HTTPS")
        yield warning("url.https", title, Remedy(why, same("docs/tls.md")), subject)
    health = _health(url, subject)
    yield health
    if health.severity is Severity.OK and facts.running is not None:
        yield _tried(facts, *account, url)


def _addresses(url: SplitResult) -> list[str]:
    try:
        found = socket.getaddrinfo(url.hostname, url.port or 443, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def _seen(url: SplitResult, addresses: list[str], subject: str) -> Finding:
    if any(ipaddress.ip_address(address).is_global for address in addresses):
        return ok(
            "url.dns",
            Text(f"{url.hostname} is {', '.join(addresses)}", f"{url.hostname} 解析为 {', '.join(addresses)}"),
            subject,
        )
    return warning(
        "url.dns",
        Text(
            f"{url.hostname} is {', '.join(addresses)} here: not an address of the internet",
            f"{url.hostname} 在此处解析为 {', '.join(addresses)}，不是公网地址",
        ),
        Remedy(
            Text(
                "A platform on the internet cannot call it, unless its name means another address there.",
                "除非在公网上解析为其他地址，否则平台无法访问。",
            ),
            Text("Compare with what a resolver outside says", "请与公网 DNS 的解析结果比较"),
            f"dig +short {url.hostname} @223.5.5.5",
        ),
        subject,
    )


def _certificate(url: SplitResult, subject: str) -> Finding:
    """The one that is shown there, as strictly as a platform looks at it."""
    context = ssl.create_default_context()
    try:
        with (
            socket.create_connection((url.hostname or "", url.port or 443), timeout=_CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=url.hostname) as connection,
        ):
            shown: Any = connection.getpeercert()
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        return problem(
            "url.certificate",
            Text(
                f"The certificate of {url.hostname} is not accepted: {reason}",
                f"{url.hostname} 的证书不被接受：{reason}",
            ),
            Remedy(
                _UNREACHABLE,
                Text(
                    "Give Envoy a certificate of a public authority for this name, with its chain",
                    "请为 Envoy 配置由公共机构签发、含完整证书链的证书",
                ),
                "ai-assistant-cli config set edge --certificate <fullchain.pem> --private-key <key.pem>",
            ),
            subject,
        )
    except OSError as error:
        title = Text(f"Nothing answers at {url.netloc}: {error}", f"{url.netloc} 无应答：{error}")
        mend = Text("Open the port in the firewall, and lead it to Envoy", "请在防火墙放行该端口，并转发到 Envoy")
        return problem("url.certificate", title, Remedy(_UNREACHABLE, mend), subject)
    ends_at = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), datetime.UTC)
    return days_left("url.certificate", subject, ends_at, Remedy(_UNREACHABLE, same("deploy/README.md")))


def _health(url: SplitResult, subject: str) -> Finding:
    connection = _connection(url)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        report = json.loads(answer.read())
        if "services" in report:
            return ok("url.reaches", Text(f"{url.netloc} leads to this mesh", f"{url.netloc} 可到达本服务"), subject)
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        pass
    finally:
        connection.close()
    return problem(
        "url.reaches",
        Text(
            f"{url.netloc} does not lead to a mesh: /health is not answered by one",
            f"{url.netloc} 未转发到本服务：/health 的应答不符",
        ),
        Remedy(
            _UNREACHABLE,
            Text(
                "Lead the proxy or load balancer to Envoy, with /health and every path of a channel",
                "请将代理或负载均衡转发到 Envoy，包括 /health 与各平台路径",
            ),
        ),
        subject,
    )


def _connection(url: SplitResult) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "", url.port, timeout=PATIENCE_S)
