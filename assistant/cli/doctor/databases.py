"""Whether the databases are there, whole, writable, and of our schema.

Looking takes no lock that a service would wait for.
"""

import importlib
import operator
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from assistant.cli.configuration import sections
from assistant.cli.doctor.facts import Facts, in_thread, visible
from assistant.cli.services import SERVICES, Service
from assistant.errors import AssistantError
from assistant.findings import Finding, Remedy, Text, ok, problem, same, skipped, warning
from assistant.journal.migrations import digests
from assistant.settings import Settings

PATIENCE_S = 12.0
_QUICK_CHECK_S = 5.0
_OLDEST_POSTGRESQL = 14
"""The oldest version that PostgreSQL's makers still mend; ours are tested with 15 and newer."""
_NOTHING_TAKEN = Text(
    "The service takes nothing: callbacks are held, then repeated by the platform, then lost.",
    "服务无法保存数据：回调会被挂起，由平台重试，最终丢失。",
)


def sqlite_file(url: str) -> Path:
    """The file of a `sqlite:///path` URL."""
    return Path("/", url.removeprefix("sqlite://").lstrip("/"))


async def all_of_them(facts: Facts) -> AsyncIterator[Finding]:
    """The database of every service that has one."""
    for service in SERVICES:
        if service.schema:
            url = _url(facts, service)
            for finding in await in_thread(lambda: list(_database(facts, service, url)), PATIENCE_S):  # noqa: B023
                yield finding


def _url(facts: Facts, service: Service) -> str:
    settings: Settings = facts.settings(sections()[service.section], service.section)
    return str(getattr(settings, "database"))  # noqa: B009 - which class it is, the kernel does not know


def _database(facts: Facts, service: Service, url: str) -> Iterator[Finding]:
    if url.startswith("sqlite://"):
        yield from _sqlite(facts, service, sqlite_file(url))
    else:
        yield from _postgresql(service, url)


# --- SQLite -----------------------------------------------------------------------------------------------


def _sqlite(facts: Facts, service: Service, path: Path) -> Iterator[Finding]:
    if not visible(path):
        if facts.here and facts.up:
            title = Text(f"There is no database at {path}", f"{path} 处没有数据库")
            remedy = Remedy(_NOTHING_TAKEN, command=f"ai-assistant-cli logs {service.name} --lines 50")
            yield problem("database.file", title, remedy, service.name)
        else:
            title = Text(
                f"No database of {service.name} can be seen from here ({path})",
                f"从此处看不到 {service.name} 的数据库（{path}）",
            )
            yield skipped("database.file", title, service.name)
        return
    unwritable = next((str(file) for file in (path, path.parent) if not os.access(file, os.W_OK)), None)
    if unwritable:
        title = Text(f"{unwritable} cannot be written", f"{unwritable} 不可写")
        yield problem(
            "database.file", title, Remedy(_NOTHING_TAKEN, command=f"chown -R $(id -u) {path.parent}"), service.name
        )
        return
    try:
        with closing(
            sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0, check_same_thread=False)
        ) as found:
            yield from _whole(found, service, path)
    except sqlite3.Error as error:
        yield _damaged(service, path, str(error))


def _whole(connection: sqlite3.Connection, service: Service, path: Path) -> Iterator[Finding]:
    stop = threading.Timer(_QUICK_CHECK_S, connection.interrupt)
    stop.start()
    try:
        complaint = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        title = Text(
            f"{path} is too large to be looked through in {_QUICK_CHECK_S:.0f} s",
            f"{path} 过大，无法在 {_QUICK_CHECK_S:.0f} 秒内检查完",
        )
        yield skipped("database.whole", title, service.name)
        complaint = "ok"
    finally:
        stop.cancel()
    if complaint != "ok":
        yield _damaged(service, path, complaint)
        return
    known = {str(row[0]) for row in connection.execute("SELECT digest FROM migrations")}
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    yield _schema(service, known, shared=False) or ok(
        "database.whole",
        Text(f"{path} is whole and current ({size})", f"{path} 完整且为最新结构（{size}）"),
        service.name,
    )


def _damaged(service: Service, path: Path, complaint: str) -> Finding:
    return problem(
        "database.whole",
        Text(f"{path} is damaged", f"{path} 已损坏"),
        Remedy(
            Text(
                "Messages in it may be lost, and new ones may not be kept.", "其中的消息可能丢失，新消息可能无法保存。"
            ),
            Text(
                "Stop the mesh, keep a copy, and save what can be read into a new file",
                "停止服务，保留副本，并把可读内容恢复到新文件",
            ),
            f"ai-assistant-cli down && mv {path} {path}.damaged && sqlite3 {path}.damaged .recover | sqlite3 {path}",
        ),
        service.name,
        same(complaint),
    )


# --- PostgreSQL -------------------------------------------------------------------------------------------


def _postgresql(service: Service, url: str) -> Iterator[Finding]:
    from assistant.journal.postgres import PostgresDatabase  # a quarter of a second that SQLite need not spend

    try:
        database = PostgresDatabase(url)
        with closing(database.connect(read_only=True)) as connection:
            connection.begin()
            ((number, standby, may_write),) = connection.execute(
                "SELECT CAST(current_setting('server_version_num') AS INTEGER), pg_is_in_recovery(), "
                "has_schema_privilege(current_schema(), 'CREATE')"
            )
            there = connection.execute("SELECT to_regclass('migrations') IS NOT NULL")[0][0]
            known = {str(row[0]) for row in connection.execute("SELECT digest FROM migrations")} if there else set()
    except AssistantError as error:
        title = Text(f"The database of {service.name} cannot be used", f"{service.name} 的数据库不可用")
        mend = Text("Start it, or correct its URL", "请启动数据库，或修正其地址")
        remedy = Remedy(_NOTHING_TAKEN, mend, f"ai-assistant-cli config set {service.section}.database postgresql://…")
        yield problem("database.reached", title, remedy, service.name, same(error.message))
        return
    version = int(number) // 10_000
    if standby or not may_write:
        title = Text(f"The database of {service.name} takes no writes", f"{service.name} 的数据库不可写")
        detail = Text(
            "it is a standby" if standby else "our user may not create tables",
            "该实例为备库" if standby else "当前用户无权建表",
        )
        mend = Text("Use the primary, or the owner of the database", "请使用主库，或数据库的所有者")
        yield problem("database.reached", title, Remedy(_NOTHING_TAKEN, mend), service.name, detail)
    elif version < _OLDEST_POSTGRESQL:
        title = Text(f"PostgreSQL {version} is out of date", f"PostgreSQL {version} 版本过旧")
        why = Text("Its makers mend no errors in it any longer.", "官方已停止维护该版本。")
        yield warning("database.reached", title, Remedy(why, Text("Upgrade it", "请升级")), service.name)
    else:
        yield _schema(service, known, shared=True) or ok(
            "database.reached",
            Text(
                f"The database of {service.name} is current, on PostgreSQL {version}",
                f"{service.name} 的数据库为最新结构（PostgreSQL {version}）",
            ),
            service.name,
        )


# --- Schema -----------------------------------------------------------------------------------------------


def _schema(service: Service, known: set[str], *, shared: bool) -> Finding | None:
    """What differs from the schema that our code needs. None: nothing."""
    missing = [digest for digest in _needed(service, shared=shared) if digest not in known]
    strange = known - {digest for other in SERVICES if other.schema for digest in _needed(other, shared=shared)}
    if missing:
        title = Text(
            f"The schema of {service.name} lacks {len(missing)} steps",
            f"{service.name} 的数据库结构缺少 {len(missing)} 步迁移",
        )
        why = Text(
            "The service that runs is older than this command, or has never run.",
            "正在运行的服务比此命令旧，或从未运行过。",
        )
        mend = Text("Start it again: it brings its schema up to date", "重新启动：会自动升级数据库结构")
        return warning("database.schema", title, Remedy(why, mend, "ai-assistant-cli up"), service.name)
    if strange:
        title = Text(
            f"The database of {service.name} was used by a newer version ({len(strange)} unknown steps)",
            f"{service.name} 的数据库曾被更新的版本使用（{len(strange)} 步未知迁移）",
        )
        why = Text("An older service may not understand what is in it.", "旧版本可能无法理解其中的数据。")
        mend = Text("Go back to the newer version", "请改回较新的版本")
        return warning("database.schema", title, Remedy(why, mend), service.name)
    return None


def _needed(service: Service, *, shared: bool) -> list[str]:
    module, _, name = service.schema.partition(":")
    declared = operator.attrgetter(name)(importlib.import_module(module))
    migrations: Sequence[str] = declared() if callable(declared) else declared
    return digests(migrations, shared=shared)
