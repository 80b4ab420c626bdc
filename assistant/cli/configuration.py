"""The configuration as an operator sees it: every section, where each value comes from, what is wrong with it."""

import contextlib
import difflib
import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import NODEFAULT

from assistant import plugin, tracing
from assistant.errors import AssistantError, UnknownAccount, UnknownChannel
from assistant.settings import (
    DEFAULT_ACCOUNT,
    Settings,
    Source,
    config_file,
    fields,
    is_secret,
    load_tables,
    meaning,
)

_SECTIONS = {
    "tls": "assistant.tls:TlsSettings",
    "edge": "assistant.cli.envoy:EdgeSettings",
    "gateway": "gateway.settings:GatewaySettings",
    "crypto": "crypto_svc.settings:CryptoSettings",
    "nlp": "nlp_svc.settings:NlpSettings",
    "skills": "gateway.settings:SkillsSettings",
    "reply": "reply_svc.settings:ReplySettings",
    "simulator": "assistant.cli.simulation:SimulatorSettings",
}
"""Section -> where its settings are declared. Sections of plugins are found with the plugins."""

MASK = "******"

Field = msgspec.structs.FieldInfo


def sections() -> dict[str, type[Settings]]:
    """The settings of every section but the channels', by its name."""
    declared = {name: _declared(where) for name, where in _SECTIONS.items()}
    for name, manifest in plugin.installed("engines").items():
        declared[f"engines.{name}"] = getattr(manifest, "engine", Settings)
    for name, manifest in plugin.installed("skills").items():
        declared[f"skills.{name}"] = getattr(manifest, "skill", Settings)
    return {name: settings for name, settings in declared.items() if fields(settings)}


def account_fields(manifest: plugin.Channel) -> dict[str, Field]:
    """All settings of an account of a channel, by name."""
    merged: dict[str, Field] = {}
    for facet in facets(manifest):
        merged |= fields(facet)
    return merged


def section_fields(section: str) -> dict[str, Field]:
    """All settings of a section of the file, by name; none if there is no such section."""
    known = sections()
    if section in known:
        return fields(known[section])
    match section.split("."):
        case ["channels", channel] | ["channels", channel, "accounts", _] if channel in plugin.channels():
            return account_fields(plugin.channels()[channel])
    return {}


def default(field: Field) -> Any:
    """What a setting is worth that nobody gave. Only of one that is not required."""
    return field.default if field.default is not NODEFAULT else field.default_factory()


def account_section(channel: str, account: str) -> str:
    """Where an account stands in the file."""
    return f"channels.{channel}" + ("" if account == DEFAULT_ACCOUNT else f".accounts.{account}")


def callback_path(channel: str, account: str) -> str:
    """Where the platform of an account calls: below the edge's address."""
    return f"/{channel}" + ("" if account == DEFAULT_ACCOUNT else f"/{account}")


@dataclass(frozen=True)
class Setting:
    """One setting as it is in force."""

    name: str
    value: Any
    """Masked if it is a secret. None: not set."""
    origin: str
    """The variable or the file that it comes from; empty for a default."""
    meaning: str


class Configuration:
    """What is given in the file and in the environment."""

    def __init__(self, tables: Mapping[str, Any], file: Path) -> None:
        self.tables = tables
        self.file = file
        self.source = Source(tables, os.environ, str(file))

    @classmethod
    def load(cls) -> "Configuration":
        """Raises InvalidSetting if the file cannot be read."""
        file = config_file()
        return cls(load_tables(file), file)

    def accounts(self) -> dict[str, list[str]]:
        """The names of the configured accounts of each channel that has any.

        Nothing but a policy is no account: it is for the simulated one.
        """
        found = {
            name: [
                account
                for account in self.source.given_accounts(name, manifest.settings())
                if not self._is_policy_alone(name, account)
            ]
            for name, manifest in plugin.channels().items()
        }
        return {name: accounts for name, accounts in found.items() if accounts}

    def _given(self, channel: str, part: type[Settings]) -> dict[str, Settings]:
        """A part of all accounts of which anything is given. Raises InvalidSetting."""
        return self.source.accounts(part, channel, channel_manifest(channel).settings())

    def _is_policy_alone(self, channel: str, account: str) -> bool:
        manifest = channel_manifest(channel)
        others = manifest.settings() - fields(manifest.policy).keys()
        section = account_section(channel, account)
        return account == DEFAULT_ACCOUNT and not any(self.source.origin(section, name) for name in others)

    def account(self, channel: str, account: str) -> dict[str, Any]:
        """All settings of one account, by name. Raises InvalidSetting, UnknownChannel or UnknownAccount."""
        values: dict[str, Any] = {}
        for facet in facets(channel_manifest(channel)):
            values |= msgspec.structs.asdict(self._facet(channel, account, facet))
        return values

    def settings(self) -> Iterator[Setting]:
        """Every setting as it is in force, channels last. Raises InvalidSetting."""
        for section, cls in sections().items():
            yield from self._shown(section, fields(cls), msgspec.structs.asdict(self._read(section, cls)))
        configured = self.accounts()
        for channel, manifest in plugin.channels().items():
            for account, policy in self._given(channel, manifest.policy).items():
                section = account_section(channel, account)
                if account in configured.get(channel, ()):
                    yield from self._shown(section, account_fields(manifest), self.account(channel, account))
                else:
                    yield from self._shown(section, fields(manifest.policy), msgspec.structs.asdict(policy))

    def problems(self) -> list[str]:
        """Everything that is wrong, each with its fix."""
        found = self.section_problems()
        for channel, accounts in self.accounts().items():
            for account in accounts:
                found += self.account_problems(channel, account)
        return list(dict.fromkeys(found))

    def section_problems(self) -> list[str]:
        """What is wrong outside of accounts."""
        found: list[str] = []
        known = sections()
        with _collecting(found):
            tracing.check()
        for name, cls in known.items():
            with _collecting(found):
                self._read(name, cls)
        for channel in self._table("channels"):
            with _collecting(found):
                channel_manifest(channel)
        configured = self.accounts()
        for channel, manifest in plugin.channels().items():
            if channel not in configured:
                with _collecting(found):
                    self._given(channel, manifest.policy)
        return list(dict.fromkeys(found + self._unknown(known)))

    def account_problems(self, channel: str, account: str) -> list[str]:
        """What is wrong with one account."""
        found: list[str] = []
        for facet in facets(channel_manifest(channel)):
            with _collecting(found):
                self._facet(channel, account, facet)
        return list(dict.fromkeys(found))

    def given_account(self, channel: str, account: str) -> dict[str, Any]:
        """The settings of an account as they were given, whatever they are worth. None: not given."""
        given = self.source.given_accounts(channel, channel_manifest(channel).settings())
        return {name: given.get(account, {}).get(name) for name in account_fields(channel_manifest(channel))}

    def _read(self, section: str, cls: type[Settings]) -> Settings:
        has_sections_inside = any(name.startswith(f"{section}.") for name in sections())
        return self.source.read(cls, section, exact=not has_sections_inside)

    def _facet(self, channel: str, account: str, facet: type[Settings]) -> Settings:
        accounts = self._given(channel, facet)
        if account not in accounts:
            raise UnknownAccount(_no_account(channel, account))
        return accounts[account]

    def _shown(self, section: str, described: Mapping[str, Field], values: Mapping[str, Any]) -> Iterator[Setting]:
        for name, field in described.items():
            value = values[field.name]
            shown = MASK if value and is_secret(field) else value
            yield Setting(f"{section}.{name}", shown, self.source.origin(section, name), meaning(field))

    def _table(self, section: str) -> Mapping[str, Any]:
        table = self.tables.get(section, {})
        return table if isinstance(table, Mapping) else {}

    def _unknown(self, known: Mapping[str, type[Settings]]) -> list[str]:
        """Tables that nobody reads."""
        outer = {name.partition(".")[0] for name in known} | {"channels", "engines", "skills"}
        given = [name for name in self.tables if name not in outer]
        for kind in ("engines", "skills"):
            ours = {name.partition(".")[2] for name in known if name.startswith(f"{kind}.")}
            ours |= fields(known[kind]).keys() if kind in known else set()
            given += [f"{kind}.{name}" for name in self._table(kind) if name not in ours]
        return [f"{name} in {self.file} is not a section{_hint(name, known)}" for name in given]


def channel_manifest(channel: str) -> plugin.Channel:
    """Raises UnknownChannel."""
    channels = plugin.channels()
    if channel not in channels:
        raise UnknownChannel(f"no channel {channel!r} is installed: there are {', '.join(channels) or 'none'}")
    return channels[channel]


def facets(manifest: plugin.Channel) -> tuple[type[Settings], ...]:
    """The parts of an account's settings."""
    return manifest.codec, manifest.crypto, manifest.sender, manifest.policy


@contextlib.contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except AssistantError as error:
        problems += error.message.splitlines()


def _declared(where: str) -> type[Settings]:
    module, _, name = where.partition(":")
    settings: type[Settings] = getattr(importlib.import_module(module), name)
    return settings


def _no_account(channel: str, account: str) -> str:
    return f"{account_section(channel, account)} is not configured. Set it with: ai-assistant-cli config set " + (
        f"channels.{channel} …" if account == DEFAULT_ACCOUNT else f"channels.{channel} --account {account} …"
    )


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f": there are {', '.join(sorted(known))}, channels.<name>"
