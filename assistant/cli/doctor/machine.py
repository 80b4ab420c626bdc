"""What the machine gives the mesh: disk, memory, open files; and how old its keys are."""

import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from assistant.api.crypto.v1.crypto_pb2 import ListKeysRequest
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.api.message.v1.message_pb2 import Account
from assistant.cli import control
from assistant.cli.certificates import OPERATOR
from assistant.cli.configuration import account_section, sections
from assistant.cli.doctor.databases import sqlite_file
from assistant.cli.doctor.facts import PATIENCE_S, Facts, in_thread, visible
from assistant.cli.output import ourselves
from assistant.cli.services import SERVICES
from assistant.errors import AssistantError
from assistant.findings import NOTHING, Finding, Remedy, Severity, Text, ok, problem, same, skipped, warning
from assistant.settings import DEFAULT_ACCOUNT, home

_FULL_BYTES, _NEARLY_FULL_BYTES = 100e6, 1e9
_FEW_FILES = 4096
"""Below this the gateway cannot hold the callbacks that it holds by default, with some room."""
_FILES_USED = 0.8
_MEMORY_USED = 0.8
"""As the alert MemoryHigh does."""
_KEY_DAYS = 90
"""As the alert KeyOld does."""


async def disk(facts: Facts) -> AsyncIterator[Finding]:
    """Room where the state, the logs and the databases are, once for each file system."""
    folders = [home(), control.log_folder(), control.run_folder()]
    for service in SERVICES:
        url = str(getattr(facts.settings(sections()[service.section], service.section), "database", ""))
        if url.startswith("sqlite://"):
            folders.append(sqlite_file(url).parent)
    there = [folder for folder in folders if visible(folder)]
    if not facts.here or not there:
        yield skipped(
            "machine.disk", Text("The mesh keeps nothing that can be seen from here", "从此处看不到服务的数据目录")
        )
        return
    for folder in {(await in_thread(folder.stat)).st_dev: folder for folder in reversed(there)}.values():
        yield await in_thread(lambda: _room(folder))  # noqa: B023 - awaited here


def _room(folder: Path) -> Finding:
    free, files = shutil.disk_usage(folder).free, os.statvfs(folder)
    no_files_left = files.f_files > 0 and files.f_favail < 1000
    free_mb = f"{free / 1e6:,.0f} MB"
    title = Text(f"{free_mb} are free at {folder}", f"{folder} 剩余 {free_mb}")
    if no_files_left:
        title = Text(f"{files.f_favail} files can be made at {folder}", f"{folder} 仅可再创建 {files.f_favail} 个文件")
    elif free >= _NEARLY_FULL_BYTES:
        return ok("machine.disk", title, str(folder))
    remedy = Remedy(
        Text("On a full disk no message can be kept, so none is taken.", "磁盘写满后无法保存消息，也就不再接收消息。"),
        Text(
            "Free some, or keep messages for fewer days: gateway.keep_days, reply.keep_days",
            "清理磁盘，或缩短消息保留天数：gateway.keep_days、reply.keep_days",
        ),
        f"du -xh --max-depth=2 {folder} | sort -h | tail",
    )
    full = no_files_left or free < _FULL_BYTES
    return (problem if full else warning)("machine.disk", title, remedy, str(folder))


async def memory(facts: Facts) -> AsyncIterator[Finding]:
    """What each process uses of what it may."""
    highest, seen = 0.0, 0
    for replica in (replica for name in facts.replicas for replica in facts.answering(name)):
        used = replica.metrics.value("assistant_memory_bytes") if replica.metrics else None
        limit = replica.metrics.value("assistant_memory_limit_bytes") if replica.metrics else None
        if used is None or not limit:
            continue
        seen, highest = seen + 1, max(highest, used / limit)
        if used / limit > _MEMORY_USED:
            name = replica.service.name
            title = Text(
                f"{name} uses {used / limit:.0%} of its memory ({used / 1e6:.0f} of {limit / 1e6:.0f} MB)",
                f"{name} 已使用 {used / limit:.0%} 的内存（{used / 1e6:.0f} / {limit / 1e6:.0f} MB）",
            )
            why = Text(
                "Above its limit the kernel kills it. Messages survive that, answers are late.",
                "超过限制会被内核终止；消息不会丢失，但答复会延迟。",
            )
            mend = Text(
                "Raise its limit, or look where it goes: docs/observability.md",
                "提高内存限制，或参见 docs/observability.md 分析用途",
            )
            yield warning("machine.memory", title, Remedy(why, mend), name)
    if seen and highest <= _MEMORY_USED:
        title = Text(
            f"No process uses over {max(highest, 0.01):.0%} of its memory",
            f"所有进程的内存占用均不超过 {max(highest, 0.01):.0%}",
        )
        yield ok("machine.memory", title)


async def open_files(facts: Facts) -> AsyncIterator[Finding]:
    """How many connections each process may have."""
    lowest = None
    for replica in (replica for name in facts.replicas for replica in facts.answering(name)):
        may = replica.metrics.value("process_max_fds") if replica.metrics else None
        has = replica.metrics.value("process_open_fds") if replica.metrics else None
        if may is None or has is None:
            continue
        lowest = min(lowest or may, may)
        name = replica.service.name
        title = Text(
            f"{name} has {has:.0f} of {may:.0f} files open that it may",
            f"{name} 已打开 {has:.0f} 个文件，上限 {may:.0f}",
        )
        remedy = Remedy(
            Text(
                "Every callback that waits for its answer is one: above it callers are refused.",
                "每个等待答复的回调都占用一个；超过上限会拒绝连接。",
            ),
            Text("Raise the limit where the mesh is started", "请在启动服务处提高上限"),
            "ulimit -n 65536 && ai-assistant-cli down && ai-assistant-cli up",
        )
        if has > _FILES_USED * may:
            yield problem("machine.files", title, remedy, name)
        elif may < _FEW_FILES and name == "gateway":
            yield warning("machine.files", title, remedy, name)
    if lowest and lowest >= _FEW_FILES:
        yield ok(
            "machine.files", Text(f"Every process may open {lowest:.0f} files", f"各进程可打开 {lowest:.0f} 个文件")
        )


async def keys(facts: Facts) -> AsyncIterator[Finding]:
    """How long each callback key has been in use."""
    replica = next(iter(facts.answering("crypto_svc")), None)
    if replica is None:
        if facts.up:
            title = Text(
                "The age of keys is not known: crypto_svc cannot be reached from here",
                "无法得知密钥使用时间：从此处无法访问 crypto_svc",
            )
            yield skipped("keys.age", title)
        return
    if facts.uncertified:
        title = Text(
            f"The age of keys is not known: crypto_svc answers this command by the certificate of {OPERATOR} only",
            f"无法得知密钥使用时间：本命令须有 {OPERATOR} 的证书，crypto_svc 才会应答",
        )
        remedy = Remedy(NOTHING, command="ai-assistant-cli certificates make")
        yield Finding("keys.age", Severity.SKIPPED, title, detail=same(facts.uncertified), remedy=remedy)
        return
    async with facts.connect(replica.grpc, "crypto_svc") as channel:
        for name, account in facts.accounts():
            section = account_section(name, account)
            try:
                request = ListKeysRequest(account=Account(channel=name, name=account))
                found = await CryptoServiceStub(channel).ListKeys(request, timeout=PATIENCE_S)
            except AssistantError as error:
                yield skipped(
                    "keys.age",
                    Text(f"Keys of {section}: {error.message}", f"{section} 的密钥：{error.message}"),
                    section,
                )
                continue
            live = [key for key in found.keys if not key.HasField("retired_at") and key.HasField("added_at")]
            for key in live:
                yield _age(name, account, key.key_id, (time.time() - key.added_at.ToMicroseconds() / 1e6) / 86_400)


def _age(channel: str, account: str, key_id: str, days: float) -> Finding:
    section = account_section(channel, account)
    title = Text(f"The callback key {key_id!r} is {days:.0f} days old", f"回调密钥 {key_id!r} 已使用 {days:.0f} 天")
    if days <= _KEY_DAYS:
        return ok("keys.age", title, section)
    why = Text(
        "The longer a key is used, the more people and backups have seen it.", "密钥使用越久，见过它的人和备份就越多。"
    )
    mend = Text("Rotate it; no message is lost: docs/rotation.md", "请轮换密钥（不会丢失消息）：docs/rotation.md")
    command = f"{ourselves()} keys rotate {channel}" + (f" --account {account}" if account != DEFAULT_ACCOUNT else "")
    return warning("keys.age", title, Remedy(why, mend, command), section)
