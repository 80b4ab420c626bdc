"""What is asked of the mesh once, for all checks: who runs, who answers, what their metrics say.

Everything here ends within a few seconds, whatever hangs: a service that is stopped, a name that nobody resolves.
"""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from assistant import ports
from assistant.cli import control, plan
from assistant.cli.addresses import reachable
from assistant.cli.configuration import Configuration
from assistant.cli.envoy import EdgeSettings
from assistant.cli.services import SERVICES, Service
from assistant.cli.simulation import simulated_channel, with_simulation
from assistant.cli.supervisor import Standing
from assistant.client import Channel, connect
from assistant.errors import AssistantError, InvalidSetting
from assistant.settings import Address, Settings, config_file, home
from assistant.tls import Identity, TlsSettings

T = TypeVar("T")
S = TypeVar("S", bound=Settings)

PATIENCE_S = 2.0
"""How long one question may take."""
_SILENT = f"no answer within {PATIENCE_S:.0f} s"
_HEALTH_PATIENCE_S = 6.0  # the gateway asks others before it answers
_HERE = {"0.0.0.0", "127.0.0.1", "localhost", "::", "::1"}  # noqa: S104 - compared, not listened on

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Metrics:
    """What one process measured."""

    samples: Mapping[str, Sequence[tuple[Labels, float]]]

    @classmethod
    def parse(cls, text: str) -> "Metrics":
        """Read Prometheus's text. Raises ValueError."""
        from prometheus_client.parser import text_string_to_metric_families

        samples: dict[str, list[tuple[Labels, float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        return cls(samples)

    def value(self, name: str, **labels: str) -> float | None:
        """The first value whose labels are these. None: it was not measured."""
        wanted = labels.items()
        return next((value for given, value in self.samples.get(name, ()) if wanted <= given.items()), None)


@dataclass(frozen=True)
class Replica:
    """One process of a service, at one address."""

    service: Service
    grpc: Address
    admin: Address
    healthy: bool
    """Whether it says that it is, on its address for operators."""
    failure: str = ""
    """Why it does not answer there at all. Empty: it answers."""
    metrics: Metrics | None = None

    @property
    def answers(self) -> bool:
        """Whether anything is there."""
        return not self.failure


@dataclass
class Facts:
    """The mesh as it stands."""

    given: Configuration
    """What is configured."""
    unreadable: str = ""
    """Why the configuration cannot be read. Then `given` is empty."""
    public_url: str = ""
    """The address that the platform's console has, as the operator gave it."""
    running: Configuration | None = None
    """What the mesh runs with: `given`, and the simulated account if there is none. None: that is not known."""
    edge: EdgeSettings = field(default_factory=EdgeSettings)
    identity: Identity | None = None
    """Our own certificate. None: plaintext is spoken, or we have none."""
    uncertified: str = ""
    """Why we have no certificate though one is needed: then no service takes our calls."""
    standing: Sequence[Standing] | None = None
    """What the supervisor says. None: none runs here."""
    supervisor_silent: bool = False
    """It is there, and does not answer."""
    health: Mapping[str, Any] | None = None
    """What `/health` says through Envoy. None: nobody answered."""
    replicas: Mapping[str, Sequence[Replica]] = field(default_factory=dict)
    """By the name of the service."""

    @property
    def here(self) -> bool:
        """Whether this is the machine, or the container, that the whole mesh runs on."""
        return self.edge.http.host in _HERE

    @property
    def up(self) -> bool:
        """Whether anything of the mesh runs."""
        answers = any(replica.answers for replicas in self.replicas.values() for replica in replicas)
        return bool(self.standing or self.supervisor_silent or self.health or answers)

    def serving(self, name: str) -> str:
        """What the gateway says of a service: "serving", or what is wrong. Empty: it says nothing."""
        services = (self.health or {}).get("services", {})
        return str(services.get(name, "")) if isinstance(services, Mapping) else ""

    def answering(self, name: str) -> list[Replica]:
        """The processes of a service that answer here."""
        return [replica for replica in self.replicas.get(name, ()) if replica.answers]

    def accounts(self) -> list[tuple[str, str]]:
        """Channel and name of every account that the mesh runs with. Raises InvalidSetting."""
        configuration = self.running or self.given
        return [(channel, name) for channel, names in configuration.accounts().items() for name in names]

    def connect(self, target: str, server: str) -> Channel:
        """A channel to the service named `server`. Raises InvalidSetting if it would not take our calls."""
        if self.uncertified:
            raise InvalidSetting(self.uncertified)
        return connect(target, multiplex=False, identity=self.identity, server=server)

    def settings(self, cls: type[S], section: str) -> S:
        """A section; its defaults where it is wrong, since that is told elsewhere."""
        try:
            return self.given.source.read(cls, section, exact=False)
        except InvalidSetting:
            return cls()


async def gather(public_url: str) -> Facts:
    """Ask everybody, all at once."""
    facts = Facts(*_configuration(), public_url=public_url)
    facts.edge = facts.settings(EdgeSettings, "edge")
    if folder := facts.settings(TlsSettings, "tls").certificates:
        try:
            facts.identity = Identity(folder / "operator")
        except InvalidSetting as error:
            facts.uncertified = error.message
    _, facts.health, *found = await asyncio.gather(
        _ask_supervisor(facts),
        _ask_health(reachable(facts.edge.http)),
        *(_replicas(facts, service) for service in SERVICES),
    )
    facts.replicas = {service.name: replicas for service, replicas in zip(SERVICES, found, strict=True)}
    facts.running = _running(facts)
    return facts


def visible(path: Path) -> bool:
    """Whether something is there that we may look at."""
    try:
        return path.exists()
    except OSError:  # a folder on the way to it is closed to us
        return False


async def in_thread(work: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Do what blocks in a thread that nobody waits for at the end. Raises TimeoutError, and what `work` raises."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any longer
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    async with asyncio.timeout(patience_s):
        return await done


def fetch(address: Address, path: str, patience_s: float = PATIENCE_S) -> tuple[int, bytes]:
    """Status and body of an HTTP answer. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=patience_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _configuration() -> tuple[Configuration, str]:
    try:
        return Configuration.load(), ""
    except InvalidSetting as error:
        return Configuration({}, config_file()), error.message


def _running(facts: Facts) -> Configuration | None:
    """Looking must not make anything: neither while no mesh runs, nor where the simulated account was never made."""
    try:
        if not simulated_channel(facts.given):
            return facts.given
        if facts.up and visible(home() / "simulator.toml"):
            return with_simulation(facts.given)
    except AssistantError:
        pass  # told where settings are looked at
    return None


async def _ask_supervisor(facts: Facts) -> None:
    if not facts.here:
        return
    try:
        facts.standing = await in_thread(control.standing)
    except (TimeoutError, AssistantError):
        facts.supervisor_silent = True


async def _ask_health(edge: Address) -> Mapping[str, Any] | None:
    try:
        _, body = await in_thread(lambda: fetch(edge, "/health", _HEALTH_PATIENCE_S), _HEALTH_PATIENCE_S)
        report = json.loads(body)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    return report if isinstance(report, Mapping) and "services" in report else None


async def _replicas(facts: Facts, service: Service) -> list[Replica]:
    """Every address that the service's name stands for."""
    try:
        listening = plan.addresses(service, facts.given)
        grpc, admin = reachable(listening.grpc), reachable(listening.admin)
    except InvalidSetting as error:  # told where settings are looked at
        nowhere = Address(f"127.0.0.1:{ports.moved(service.port)}")
        return [Replica(service, nowhere, nowhere, healthy=False, failure=error.message)]
    try:
        hosts = await in_thread(lambda: _resolve(admin.host))
    except (OSError, TimeoutError):
        return [Replica(service, grpc, admin, healthy=False, failure=f"{admin.host} is not a known name")]
    together = admin.host == grpc.host
    found = await asyncio.gather(
        *(_replica(service, _at(host, grpc) if together else grpc, _at(host, admin)) for host in hosts)
    )
    return _distinct(found)


def _distinct(found: Sequence[Replica]) -> list[Replica]:
    """Each process once, though a name may stand for one address in each of several networks or families.

    Where one answers, an address that refuses is nobody's.
    """
    answering = {
        replica.metrics.value("process_start_time_seconds") if replica.metrics else replica.admin: replica
        for replica in found
        if replica.answers
    }
    silent = [replica for replica in found if replica.failure == _SILENT]
    return [*answering.values(), *silent] or list(found[:1])


async def _replica(service: Service, grpc: Address, admin: Address) -> Replica:
    try:
        health, metrics = await asyncio.gather(
            in_thread(lambda: fetch(admin, "/healthz")), in_thread(lambda: fetch(admin, "/metrics"))
        )
        measured = Metrics.parse(metrics[1].decode())
    except TimeoutError:
        return Replica(service, grpc, admin, healthy=False, failure=_SILENT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Replica(service, grpc, admin, healthy=False, failure=reason)
    return Replica(service, grpc, admin, healthy=health[0] == http.client.OK, metrics=measured)


def _resolve(host: str) -> list[str]:
    """The addresses of a name, IPv4 first, each once."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in sorted(found, key=lambda info: info[0])))


def _at(host: str, address: Address) -> Address:
    return Address(f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}")
