"""Whether the configuration fits, who may read it, and what hides it."""

import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from assistant import plugin
from assistant.cli.configuration import account_fields, account_section, channel_manifest, sections
from assistant.cli.doctor.facts import Facts, visible
from assistant.errors import AssistantError
from assistant.findings import Finding, Remedy, Severity, Text, ok, problem, same, warning, worst
from assistant.settings import DEFAULT_ACCOUNT, fields

_NO_START = Text("The mesh does not start with it.", "服务无法以此配置启动。")
_PUBLIC_BITS = stat.S_IRWXG | stat.S_IRWXO


async def sections_fit(facts: Facts) -> AsyncIterator[Finding]:
    """Every section, and the file itself."""
    file = facts.given.file
    if facts.unreadable:
        title = Text(f"{file} cannot be read", f"无法读取 {file}")
        mend = Text(
            "Mend the line that is named; if permission is denied, be the user that runs the mesh",
            "请修正所指出的行；若提示无权限，请以运行服务的用户执行",
        )
        yield problem("settings.file", title, Remedy(_NO_START, mend), str(file), same(facts.unreadable))
        return
    wrong = facts.given.section_problems()
    for text in wrong:
        yield _invalid(text)
    if not wrong:
        title = Text(f"{file}: every section fits", f"{file}：各项设置均有效")
        nothing = Text("Nothing is configured: defaults, and a simulated platform", "尚未配置：使用默认值与模拟平台")
        yield ok("settings.sections", title if visible(file) else nothing)


def _invalid(text: str) -> Finding:
    name = text.split(" ", 1)[0].rstrip(":")
    remedy = _set_right(name, text, f"ai-assistant-cli config set {name} <value>")
    return problem("settings.sections", Text(f"{name} is wrong", f"{name} 不正确"), remedy, name, same(text))


def _set_right(name: str, text: str, command: str) -> Remedy:
    """What mends a setting, of which `text` says what is wrong; by default it is `command`."""
    _, _, named = text.partition("Set it with: ")
    if named:
        return Remedy(_NO_START, command=named)
    if name in os.environ:
        return Remedy(_NO_START, command=f"unset {name}")
    if "is not a" in text:  # setting or section: there is nothing to set
        return Remedy(_NO_START, Text(f"Remove or rename {name} there", f"请在其中删除或改名 {name}"))
    return Remedy(_NO_START, command=command)


async def accounts_fit(facts: Facts) -> AsyncIterator[Finding]:
    """Every account, as its channel's doctor sees it."""
    try:
        configured = facts.given.accounts()
    except AssistantError as error:
        yield _invalid(error.message)
        return
    for channel, accounts in configured.items():
        for account in accounts:
            for finding in _account(facts, channel, account):
                yield finding


def _account(facts: Facts, channel: str, account: str) -> Iterator[Finding]:
    section = account_section(channel, account)
    doctor = plugin.doctor(channel, account)
    try:
        found = list(doctor.examine(facts.given.given_account(channel, account)))
        refused = facts.given.account_problems(channel, account)
    except AssistantError as error:  # such as a mounted secret that cannot be read
        found, refused = [], error.message.splitlines()
    for finding in found:
        yield Finding(finding.check, finding.severity, finding.title, section, finding.detail, finding.remedy)
    if worst(found) != Severity.PROBLEM:
        for text in refused:
            name = text.split(" ", 1)[0].rstrip(":")
            remedy = _set_right(name, text, f"{doctor.set_command} --help")
            yield problem("settings.account", Text(f"{name} is wrong", f"{name} 不正确"), remedy, section, same(text))
        if not refused and not found:
            title = Text(f"{section}: every setting has the form it must have", f"{section}：各项设置格式正确")
            yield ok("settings.account", title, section)


async def permissions(facts: Facts) -> AsyncIterator[Finding]:
    """Whether others can read secrets."""
    file = facts.given.file
    if not visible(file):
        return
    mode = stat.S_IMODE(file.stat().st_mode)
    holds_secrets = "channels" in facts.given.tables
    if mode & _PUBLIC_BITS and holds_secrets:
        yield problem(
            "settings.permissions",
            Text(f"Others may read {file} (mode {mode:04o})", f"其他用户可以读取 {file}（权限 {mode:04o}）"),
            Remedy(
                Text(
                    "It holds secrets: whoever has them can speak in your name.",
                    "其中含有密钥：任何持有者都能冒充你的应用。",
                ),
                command=f"chmod 600 {file}",
            ),
        )
    else:
        title = Text(f"Only its owner may read {file}", f"{file} 仅所有者可读")
        yield ok("settings.permissions", title)


async def hidden(facts: Facts) -> AsyncIterator[Finding]:
    """Variables of the environment that win over another value in the file."""
    for section, name, value in _in_file(facts):
        variable = facts.given.source.origin(section, name)
        if variable in ("", str(facts.given.file)) or _same(variable, value):
            continue
        yield warning(
            "settings.hidden",
            Text(
                f"{variable} in the environment wins over {section}.{name} in the file, and differs",
                f"环境变量 {variable} 覆盖了文件中的 {section}.{name}，且两者不同",
            ),
            Remedy(
                Text(
                    "A change of the file has no effect while the variable is set.",
                    "只要该环境变量存在，修改文件就不会生效。",
                ),
                command=f"unset {variable}",
            ),
            f"{section}.{name}",
        )


def _same(variable: str, value: Any) -> bool:
    """Whether a variable, or the file that it names, says what our file says."""
    given = os.environ.get(variable, "")
    if variable.endswith("_FILE"):
        given = Path(given).read_text("utf-8").strip()
    return given == (str(value).lower() if isinstance(value, bool) else str(value))


def _in_file(facts: Facts) -> Iterator[tuple[str, str, Any]]:
    """Every setting that stands in the file: section, name, value."""
    tables = facts.given.tables
    for section, cls in sections().items():
        table: Any = tables
        for part in section.split("."):
            table = table.get(part, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict):
            yield from ((section, name, table[name]) for name in fields(cls) if name in table)
    channels = tables.get("channels", {})
    for channel in plugin.channels():
        table = channels.get(channel, {}) if isinstance(channels, dict) else {}
        if isinstance(table, dict):
            section = account_section(channel, DEFAULT_ACCOUNT)
            described = account_fields(channel_manifest(channel))
            yield from ((section, name, table[name]) for name in described if name in table)
