"""`simulate`: play a platform on this machine."""

import logging

import click

from assistant import plugin
from assistant.cli.addresses import reachable
from assistant.cli.configuration import Configuration, channel_manifest
from assistant.cli.envoy import EdgeSettings
from assistant.cli.simulation import SimulatorSettings, with_simulation
from assistant.errors import InvalidSetting
from assistant.settings import DEFAULT_ACCOUNT, Address


@click.command()
@click.argument("channel")
@click.option("--account", default=DEFAULT_ACCOUNT, show_default=True, help="The account whose platform is played.")
@click.option("--listen", metavar="HOST:PORT", help="Where to serve it, instead of `simulator.listen`.")
@click.option("--callback-url", metavar="URL", help="Where to send callbacks, instead of to this machine's Envoy.")
def simulate(channel: str, account: str, listen: str | None, callback_url: str | None) -> None:
    """Play a channel's platform: its API, its callbacks, and a page to chat as an employee.

    `up` does this by itself while no channel is configured.
    """
    from aiohttp import web

    channel_manifest(channel)
    configuration = with_simulation(Configuration.load())
    simulator = plugin.load("channels", channel, "simulator")(configuration.account(channel, account))
    address = _address(listen) or configuration.source.read(SimulatorSettings, "simulator").listen
    url = callback_url or _callback_url(configuration, channel, account)
    click.echo(f"{channel} is played at http://{address}, calling back to {url}")
    logging.basicConfig(level=logging.WARNING)
    web.run_app(simulator.application(url), host=address.host, port=address.port, print=None, access_log=None)


def _address(given: str | None) -> Address | None:
    try:
        return Address(given) if given else None
    except ValueError as error:
        raise InvalidSetting(f"--listen: {error}") from error


def _callback_url(configuration: Configuration, channel: str, account: str) -> str:
    edge = reachable(configuration.source.read(EdgeSettings, "edge", exact=False).http)
    return f"http://{edge}/{channel}" + ("" if account == DEFAULT_ACCOUNT else f"/{account}")
