"""`keys`: the callback keys of accounts, and how to change them without losing a message."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from assistant import plugin, tls
from assistant.cli import rotation
from assistant.cli.addresses import reachable
from assistant.cli.config import setting_option
from assistant.cli.configuration import Configuration, channel_manifest
from assistant.cli.keyring import Key, Keyring
from assistant.cli.output import json_option, ourselves, print_json, print_table
from assistant.cli.plan import addresses
from assistant.cli.rotation import Rotation, material_fields
from assistant.cli.services import service
from assistant.cli.simulation import with_simulation
from assistant.errors import InvalidRequest, UnknownAccount, UnknownKey
from assistant.settings import DEFAULT_ACCOUNT

_OLD_DAYS = 90
"""As the alert KeyOld."""
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

_account_option = click.option(
    "--account", default=DEFAULT_ACCOUNT, show_default=True, help="The account of the channel."
)

_key_id_option = click.option("--key-id", help="A name for the key; by default the day.")


class _Duration(click.ParamType[float]):
    """Seconds, or a number with a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+)([smhd]?)", str(value))
        if not found:
            self.fail(f"{value!r} is no duration: give seconds, or 10m, 24h, 7d", param, ctx)
        return float(int(found[1]) * _UNITS_S[found[2]])


class _Channels(click.Group):
    """A command for each channel, since the keys of each have parts of their own."""

    def __init__(self, make: Callable[[str, plugin.Channel], click.Command], **about: Any) -> None:
        super().__init__(**about, subcommand_metavar="CHANNEL [OPTIONS]")
        self._make = make

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(plugin.channels())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        manifest = plugin.channels().get(cmd_name)
        return None if manifest is None else self._make(cmd_name, manifest)


@click.group()
def keys() -> None:
    """Look at the callback keys of accounts, and change them without losing a message: docs/rotation.md.

    All replicas of crypto_svc are asked, and told.
    """


@keys.command("list")
@click.argument("channel", required=False)
@click.option("--account", help="Only this account of the channel.")
@json_option
def list_(channel: str | None, account: str | None, as_json: bool) -> None:
    """List keys, newest first, without their material: their age, and when each last opened a callback."""
    accounts = with_simulation(Configuration.load()).accounts()
    if channel:
        channel_manifest(channel)
        accounts = {channel: [account] if account else accounts.get(channel, [DEFAULT_ACCOUNT])}
    elif account:
        raise click.UsageError("--account is of a channel: name it")
    rows, warnings = [], []
    for name, its_accounts in accounts.items():
        for one in its_accounts:
            found = _keyring(name, one).known()
            rows += [_row(name, one, key) for key in found]
            warnings += _warnings(name, one, found)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("account", "key_id", "state", "configured", "age_days", "added_at", "last_used_at"))
    for warning in warnings:
        click.echo(warning, err=True)


@keys.command("retire")
@click.argument("channel")
@click.argument("key_id")
@_account_option
@click.option("--yes", is_flag=True, help="Do not ask, even if the platform seems to use it still.")
@json_option
def retire(channel: str, key_id: str, account: str, yes: bool, as_json: bool) -> None:
    """Stop taking a key, on every replica. The last one stays. Its material is removed; its name is not used again."""
    channel_manifest(channel)
    keyring = _keyring(channel, account)
    found = keyring.known()
    key = next((key for key in found if key.key_id == key_id), None)
    if key is None:
        raise UnknownKey(f"{channel}/{account} has no key {key_id!r}: {ourselves()} keys list {channel}")
    if key.live and _in_use(key, found) and not yes:
        question = f"{key_id} opened the last callback: the platform seems to use it still. Retire it"
        if not sys.stdin.isatty():
            raise InvalidRequest(f"{question}? Then say --yes")
        click.confirm(f"{question}?", abort=True)
    count = rotation.retire(keyring, f"{channel}/{account}", key_id)
    if as_json:
        print_json({"account": f"{channel}/{account}", "key_id": key_id, "replicas": count})
    else:
        click.echo(f"{key_id} is retired, on every replica of crypto_svc ({count}).")


def _add_command(channel: str, manifest: plugin.Channel) -> click.Command:
    @_key_id_option
    @_account_option
    @json_option
    def add(account: str, key_id: str | None, as_json: bool, **given: str | None) -> None:
        material = _material(manifest, given)
        if not material:
            names = " ".join(f"--{name}" for name in material_fields(manifest))
            raise click.UsageError(f"give the key: {names}; or let `keys rotate {channel}` make one")
        keyring = _keyring(channel, account)
        key_id = key_id or rotation.new_key_id(keyring.known())
        count = rotation.add(keyring, f"{channel}/{account}", key_id, material)
        if as_json:
            print_json({"account": f"{channel}/{account}", "key_id": key_id, "replicas": count})
        else:
            click.echo(f"{key_id} is live, on every replica of crypto_svc ({count}).")

    return _command(channel, manifest, add, f"Add a key of {manifest.title['en']} ({manifest.title['zh-CN']}).")


def _rotate_command(channel: str, manifest: plugin.Channel) -> click.Command:
    @_key_id_option
    @_account_option
    @click.option(
        "--timeout",
        type=_Duration(),
        default="1h",
        show_default=True,
        help="How long to wait for a callback with the new key.",
    )
    @click.option(
        "--retire-after",
        type=_Duration(),
        help="Retire the old keys, without asking, when none was used for so long, such as 10m or 24h.",
    )
    @json_option
    def rotate(
        account: str,
        key_id: str | None,
        timeout: float,
        retire_after: float | None,
        as_json: bool,
        **given: str | None,
    ) -> None:
        def tell(line: str) -> None:
            click.echo(line, err=as_json)

        material = _material(manifest, given)
        rotating = Rotation(_keyring(channel, account), manifest, account, tell)
        try:
            rotating.begin(key_id, material)
            rotating.show_steps(_language())
            rotating.wait_for_proof(timeout)
            if retire_after is not None:
                rotating.wait_until_quiet(retire_after)
            elif not _agreed(rotating):
                click.echo(f"All keys stay live. Finish it later: {rotating.command}", err=as_json)
                return
            retired, configuration = rotating.finish()
        except KeyboardInterrupt:
            tell(f"\nInterrupted. All keys that are live stay live. Go on: {rotating.command}")
            sys.exit(130)
        if as_json:
            print_json(
                {
                    "account": rotating.name,
                    "key_id": rotating.key_id,
                    "retired": retired,
                    "configuration": configuration,
                }
            )
        else:
            tell(f"Done: {rotating.name} uses {rotating.key_id}.")

    summary = f"Change the key of {manifest.title['en']} ({manifest.title['zh-CN']}) without losing a message."
    return _command(
        channel,
        manifest,
        rotate,
        f"{summary}\n\nAdds a new key beside the old one, says what to do in the platform's console, waits until the "
        "platform uses it, and retires the old one. Without a key of yours it makes one. Run it again to go on where "
        "it was interrupted.",
    )


keys.add_command(_Channels(_add_command, name="add", help="Add a key beside those that are live, on every replica."))
keys.add_command(
    _Channels(_rotate_command, name="rotate", help="Change the key of an account, step by step, losing no message.")
)


def _command(channel: str, manifest: plugin.Channel, function: Callable[..., None], text: str) -> click.Command:
    command = click.command(channel, help=text)(function)
    command.params = [
        *(setting_option(name, field) for name, field in material_fields(manifest).items()),
        *command.params,
    ]
    return command


def _material(manifest: plugin.Channel, given: Mapping[str, str | None]) -> dict[str, str]:
    """The key that was given; empty if none was. Raises UsageError if a part is missing."""
    material = {name: value for name, value in given.items() if value is not None}
    missing = material_fields(manifest).keys() - material.keys()
    if material and missing:
        raise click.UsageError(
            f"a key has {len(given)} parts: give {' and '.join(f'--{name}' for name in missing)} too"
        )
    return material


def _keyring(channel: str, account: str) -> Keyring:
    """Raises UnknownAccount."""
    configuration = with_simulation(Configuration.load())
    if account not in configuration.accounts().get(channel, []):
        raise UnknownAccount(f"{channel}/{account} is not configured: {ourselves()} config list")
    target = reachable(addresses(service("crypto_svc"), configuration).grpc)
    return Keyring(target, tls.identity(configuration.source, "operator"), channel, account)


def _agreed(rotating: Rotation) -> bool:
    old = rotating.old_keys()
    if not old:
        return True
    if not sys.stdin.isatty():
        raise InvalidRequest(
            f"{', '.join(old)} can be retired now: say --retire-after, such as --retire-after 10m, or run this in a "
            "terminal to be asked"
        )
    return click.confirm(f"Retire {', '.join(old)}?")


def _in_use(key: Key, others: list[Key]) -> bool:
    """Whether it opened a callback after all other live keys."""
    if key.last_used_at is None:
        return False
    used = [other.last_used_at for other in others if other.live and other.last_used_at]
    return key.last_used_at >= max(used)


def _row(channel: str, account: str, key: Key) -> dict[str, Any]:
    return {
        "account": f"{channel}/{account}",
        "key_id": key.key_id,
        "state": key.state,
        "configured": "yes" if key.configured else "",
        "age_days": key.age_days if key.live else None,
        "added_at": key.added_at and key.added_at.isoformat(timespec="seconds"),
        "last_used_at": key.last_used_at and key.last_used_at.isoformat(timespec="seconds"),
        "retired_at": key.retired_at and key.retired_at.isoformat(timespec="seconds"),
        "replicas": key.replicas,
    }


def _warnings(channel: str, account: str, found: list[Key]) -> list[str]:
    which = channel if account == DEFAULT_ACCOUNT else f"{channel} --account {account}"
    said = []
    for key in found:
        if key.live and key.age_days is not None and key.age_days >= _OLD_DAYS:
            said.append(
                f"{channel}/{account}: the key {key.key_id} is {key.age_days} days old. Change it: "
                f"{ourselves()} keys rotate {which}"
            )
        if key.live and not key.live_everywhere:
            said.append(
                f"{channel}/{account}: the key {key.key_id} is {key.state} replicas. Do they share a keys file? "
                "docs/rotation.md"
            )
        if key.configured and not key.live:
            said.append(
                f"{channel}/{account}: crypto_svc was started with the key {key.key_id}, which is retired, and goes by "
                "its keys file. See that the configuration has the new one, and start crypto_svc anew"
            )
    return said


def _language() -> str:
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG", "")
    return "zh-CN" if locale.startswith("zh") else "en"
