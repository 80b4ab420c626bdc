"""`config`: what can be set, what is set, and whether it fits."""

import contextlib
import sys
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import click
import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError

from assistant import plugin
from assistant.cli import control
from assistant.cli.audit import recorded
from assistant.cli.configuration import (
    Configuration,
    Field,
    Setting,
    account_fields,
    account_section,
    channel_manifest,
    default,
    section_fields,
    sections,
)
from assistant.cli.files import write_private
from assistant.cli.output import json_option, ourselves, print_json, print_table
from assistant.cli.reference import reference_page
from assistant.errors import InvalidSetting, StorageUnavailable
from assistant.settings import DEFAULT_ACCOUNT, config_file, fields, is_secret, meaning, set_command

_PROMPT = "Give it without a value to be asked for it, unseen"


@click.group()
def config() -> None:
    """Look at the configuration and change it.

    Variables of the environment win over the file: AI_ASSISTANT_<SECTION>_<KEY>, or <CHANNEL>_<KEY> for a
    channel. A variable that ends with _FILE names a file which holds the value.
    """


class _Settable(click.Group):
    """Every setting is a command, made from its declaration."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        known = sections()
        keys = [f"{section}.{key}" for section, settings in known.items() for key in fields(settings)]
        return [*(f"channels.{name}" for name in plugin.channels()), *known, *keys]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name.startswith("channels."):
            return _account_command(cmd_name.removeprefix("channels."))
        known = sections()
        if cmd_name in known:
            return _section_command(cmd_name, fields(known[cmd_name]))
        section, _, key = cmd_name.rpartition(".")
        return _setting_command(section, key, _field(cmd_name))


@config.command("set", cls=_Settable, subcommand_metavar="SETTING VALUE")
def set_() -> None:
    """Set a channel's account, one setting, or several settings of a section at once.

    \b
    config set nlp.provider embedded
    config set channels.wecom --corpid … --secret … --token … --aeskey … --agentid …
    config set edge --certificate … --private-key …
    """


@config.command("unset")
@click.argument("name")
def unset(name: str) -> None:
    """Take one setting, such as nlp.provider, out of the file: its default counts again."""
    section, _, key = name.rpartition(".")
    field, file = _field(name), config_file()
    document = _document(file)
    before = Configuration(document.unwrap(), file).problems()
    if _take_out(document, *section.split("."), key):
        _save(document, file, "config.unset", [name])
        click.echo(f"Unset {name} in {file}.")
        _tell_of_mesh()
    else:
        click.echo(f"{name} is not set in {file}: nothing was changed.")
    now = Configuration(document.unwrap(), file)
    if origin := now.source.origin(section, key):
        click.echo(f"It is set by {origin}.")
    elif field.required:
        click.echo(f"It has no default. Set it with: {set_command(section, key)}")
    else:
        value = default(field)
        click.echo("It has no value by default." if value in (None, "") else f"It is {value} by default.")
    for problem in now.problems():
        if problem not in before and not problem.startswith(f"{name} "):
            click.echo(problem, err=True)


@config.command("get")
@click.argument("name")
@json_option
def get(name: str, as_json: bool) -> None:
    """Print the value of one setting, such as nlp.provider. Secrets are masked."""
    for setting in Configuration.load().settings():
        if setting.name == name:
            if as_json:
                print_json(_row(setting))
            else:
                click.echo("" if setting.value is None else setting.value)
            return
    _field(name)
    raise InvalidSetting(f"{name} is not set: {name.rpartition('.')[0]} is not configured")


@config.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all settings: value, where it comes from, meaning. Secrets are masked."""
    rows = [_row(setting) for setting in Configuration.load().settings()]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("name", "value", "origin", "meaning"))


@config.command("validate")
@json_option
def validate(as_json: bool) -> None:
    """Check everything, and name every problem with its fix. Exit code 1 if there is one."""
    configuration = Configuration.load()
    problems = configuration.problems()
    if as_json:
        print_json({"file": str(configuration.file), "problems": problems})
    else:
        for problem in problems:
            click.echo(problem, err=True)
        if not problems:
            click.echo(f"{configuration.file} is fine." if configuration.file.exists() else "All defaults: fine.")
    if problems:
        sys.exit(1)


@config.command("reference")
def reference_() -> None:
    """Print all settings as Markdown: docs/configuration.md is made by this."""
    click.echo(reference_page(), nl=False)


def _field(name: str) -> Field:
    """The declaration of a setting. Raises UsageError if there is none of this name."""
    section, _, key = name.rpartition(".")
    field = section_fields(section).get(key)
    if field is None:
        raise click.UsageError(f"{name} is not a setting: `{ourselves()} config list` names all")
    return field


def _setting_command(section: str, key: str, field: Field) -> click.Command:
    def set_one(value: str) -> None:
        write(section, {key: _typed(value, field)})

    argument = click.Argument(["value"])
    return click.Command(f"{section}.{key}", callback=set_one, params=[argument], help=_sentence(meaning(field)))


def _section_command(section: str, described: Mapping[str, Field]) -> click.Command:
    def set_given(**given: str | None) -> None:
        _write_given(section, described, given)

    options = [setting_option(name, field) for name, field in described.items()]
    return click.Command(section, callback=set_given, params=[*options], help="Set several settings at once.")


def _account_command(channel: str) -> click.Command:
    manifest = channel_manifest(channel)
    described = account_fields(manifest)

    def set_account(account: str, **given: str | None) -> None:
        _write_given(account_section(channel, account), described, given)

    options = [setting_option(name, field) for name, field in described.items()]
    account = click.Option(["--account"], default=DEFAULT_ACCOUNT, show_default=True, help="Name of the account.")
    summary = f"Set an account of {manifest.title['en']} ({manifest.title['zh-CN']})."
    return click.Command(f"channels.{channel}", callback=set_account, params=[*options, account], help=summary)


def _write_given(section: str, described: Mapping[str, Field], given: Mapping[str, str | None]) -> None:
    values = {name: _typed(value, described[name]) for name, value in given.items() if value is not None}
    if not values:
        raise click.UsageError("nothing to set: --help names what there is")
    write(section, values)


def setting_option(name: str, field: Field) -> click.Option:
    """The option that gives a setting. That of a secret asks for it when it has no value."""
    text = _sentence(meaning(field))
    if not is_secret(field):
        return click.Option([f"--{name.replace('_', '-')}", name], help=text)
    return click.Option(
        [f"--{name.replace('_', '-')}", name],
        help=f"{text} {_PROMPT}.",
        prompt=name,
        prompt_required=False,
        hide_input=True,
    )


def _typed(value: str, field: Field) -> bool | int | float | str:
    """A number or a truth value where the setting is one, so that the file is written as a person would."""
    for kind in (bool, int, float):
        with contextlib.suppress(msgspec.ValidationError):
            typed: bool | int | float = msgspec.convert(value, kind, strict=False)
            msgspec.convert(typed, field.type)
            return typed
    return value


def write(section: str, values: Mapping[str, Any], tell: Callable[[str], None] = click.echo) -> None:
    """Change the file, and record it, unless the section would then have a problem.

    Raises InvalidSetting, AuditBroken or StorageUnavailable: then nothing is changed.
    """
    file = config_file()
    document = _document(file)
    table: Any = document
    for name in section.split("."):
        table = table.setdefault(name, tomlkit.table(is_super_table=False))
    table.update(values)
    problems = [text for text in Configuration(document.unwrap(), file).problems() if section in text]
    if problems:
        raise InvalidSetting("\n".join(problems) + "\nNothing was changed")
    names = [f"{section}.{name}" for name in values]
    _save(document, file, "config.set", names)
    tell(f"Set {', '.join(names)} in {file}.")
    _tell_of_mesh(tell)


def _document(file: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(file.read_text("utf-8") if file.exists() else "")
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"{file} cannot be read as TOML: {error}. Mend it first") from error


def _take_out(table: Any, name: str, *inner: str) -> bool:
    """Take out what this path names; False if it is not there.

    A table goes with the last of its settings, unless a comment is left in it: that may belong to what follows.
    """
    if not isinstance(table, MutableMapping) or name not in table:
        return False
    if inner:
        if not _take_out(table[name], *inner):
            return False
        if table[name] or "#" in tomlkit.dumps(table[name]):
            return True
    del table[name]
    return True


def _save(document: tomlkit.TOMLDocument, file: Path, action: str, names: list[str]) -> None:
    with recorded(action, settings=names, file=str(file)):
        try:
            write_private(file, tomlkit.dumps(document))
        except OSError as error:
            raise StorageUnavailable(f"{file} cannot be written: {error.strerror}. Nothing was changed") from None


def _tell_of_mesh(tell: Callable[[str], None] = click.echo) -> None:
    if control.standing():
        tell(f"The mesh runs with the old values until: {ourselves()} up")


def _row(setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "value": setting.value,
        "origin": setting.origin or "default",
        "meaning": setting.meaning,
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""
