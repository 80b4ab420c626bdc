"""The simulated platform that a mesh talks to while no channel is configured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tomlkit
from msgspec import Meta

from assistant import plugin, ports
from assistant.cli.configuration import Configuration, channel_manifest
from assistant.cli.files import write_private
from assistant.errors import InvalidSetting
from assistant.settings import Address, Settings, home, load_tables


class SimulatorSettings(Settings, frozen=True, kw_only=True):
    """Section `simulator`."""

    channel: Annotated[
        str | None,
        Meta(description="channel whose platform is simulated while none is configured; empty: no simulation"),
    ] = None
    listen: Annotated[Address, Meta(description="where the simulated platform and its chat page are served")] = (
        msgspec.field(default_factory=lambda: Address(f"127.0.0.1:{ports.moved(ports.SIMULATOR)}"))
    )


def simulated_channel(configuration: Configuration) -> str:
    """The channel to simulate. Empty: none, since one is configured or the setting says so."""
    if configuration.accounts():
        return ""
    chosen = configuration.source.read(SimulatorSettings, "simulator").channel
    if chosen is None:
        return next((name for name, manifest in plugin.channels().items() if manifest.tried_first), "")
    return chosen


def with_simulation(configuration: Configuration) -> Configuration:
    """The configuration that the mesh runs with: where nothing is configured, an account of the simulated platform.

    Its policy is the one that was set.
    Raises InvalidSetting.
    """
    channel = simulated_channel(configuration)
    if not channel:
        return configuration
    settings = configuration.source.read(SimulatorSettings, "simulator")
    policy = configuration.tables.get("channels", {}).get(channel, {})
    account = {**policy, **_credentials(channel), "api_base": f"http://{settings.listen}"}
    return Configuration({**configuration.tables, "channels": {channel: account}}, configuration.file)


def keep_simulated(channel: str, changed: Mapping[str, str]) -> Path:
    """Change settings of the simulated account, and say in which file they are."""
    file = home() / "simulator.toml"
    kept = load_tables(file)
    kept[channel] = {**_credentials(channel), **changed}
    write_private(file, tomlkit.dumps(kept))
    return file


def _credentials(channel: str) -> dict[str, Any]:
    """Those of the simulated account: made once, then kept, so that a restart changes nothing."""
    file = home() / "simulator.toml"
    kept = load_tables(file)
    if channel not in kept:
        if "api_base" not in channel_manifest(channel).settings():
            raise InvalidSetting(
                f"simulator.channel is {channel!r}, whose platform's address cannot be set: choose another channel"
            )
        kept[channel] = plugin.load("channels", channel, "simulator").credentials()
        write_private(file, tomlkit.dumps(kept))
    credentials: dict[str, Any] = kept[channel]
    return credentials
