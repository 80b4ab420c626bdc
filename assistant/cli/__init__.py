"""`ai-assistant-cli`: everything an operator does, one module per group of commands."""

import importlib
import os

import click

ACTOR_VARIABLE = "AI_ASSISTANT_ACTOR"
"""Names who uses the command line, besides the machine's user."""

_COMMANDS = {
    "up": "mesh:up",
    "down": "mesh:down",
    "status": "mesh:status",
    "logs": "mesh:logs",
    "health": "mesh:health",
    "doctor": "doctor:doctor",
    "config": "config:config",
    "test": "probe:test",
    "simulate": "simulate:simulate",
    "inbox": "inbox:inbox",
    "deliveries": "deliveries:deliveries",
    "keys": "keys:keys",
    "certificates": "certificates:certificates",
    "audit": "audit:audit",
    "plugins": "plugins:plugins",
    "container": "container:container",
}
"""Command -> where it is. A module is imported when one of its commands is used: some import much."""


class _Commands(click.Group):
    """Finds commands in their modules, and tells errors in our words."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        from assistant.errors import AssistantError

        try:
            return super().invoke(ctx)
        except AssistantError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ai-assistant")
@click.option(
    "--as",
    "name",
    metavar="NAME",
    envvar=ACTOR_VARIABLE,
    help="Who you are, for the audit log, where the machine's user does not tell.",
    show_envvar=True,
)
def main(name: str | None) -> None:
    """Runs an AI assistant for WeCom, DingTalk and Feishu.

    Start with `up`, try `test wecom --message ping`, then give it your own account with
    `config set channels.wecom --help`.
    """
    if name:
        os.environ[ACTOR_VARIABLE] = name
