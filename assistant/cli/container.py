"""`container`: what `up` does by itself, for those who run every process in a container of its own."""

import os
import shlex

import click
import tomlkit

from assistant.cli import plan
from assistant.cli.configuration import Configuration
from assistant.cli.simulation import simulated_channel, with_simulation


@click.group()
def container() -> None:
    """What containers of one process each need; `up` does it by itself."""


@container.command("envoy")
@click.option("--prepare", is_flag=True, help="Write its configuration and print the command that starts it.")
def envoy(prepare: bool) -> None:
    """Become Envoy, configured as `up` would configure it."""
    program = plan.envoy(Configuration.load()).program
    if prepare:
        click.echo(shlex.join(program.command))
        return
    os.execve(program.command[0], program.command, program.environment)  # noqa: S606 - our own Envoy


@container.command("account")
def account() -> None:
    """Print, as TOML, the account that is simulated while none is configured. Nothing if one is."""
    configuration = Configuration.load()
    if simulated_channel(configuration):
        click.echo(tomlkit.dumps({"channels": with_simulation(configuration).tables["channels"]}))
