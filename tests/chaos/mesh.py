"""The mesh of a chaos run: the product's own plan and supervisor, with one or two of every service."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import msgspec
import tomlkit

from assistant import ports
from assistant.cli import control
from assistant.cli.addresses import is_free
from assistant.cli.configuration import Configuration
from assistant.cli.files import write_private
from assistant.cli.plan import Part, parts
from assistant.cli.readiness import is_ready
from assistant.cli.supervisor import Program
from tests.chaos.proxy import Proxy

REPOSITORY = Path(__file__).resolve().parents[2]
REPLICA_STEP = 500
"""Between the port offsets of two replicas: no two ports of a mesh lie a multiple of this apart."""
_READY_WITHIN_S = 60.0
_CALLED = {"crypto_svc": ports.CRYPTO, "nlp_svc": ports.NLP, "reply_svc": ports.REPLY}


class Mesh:
    """Two replicas share databases, and each other's callers; there is one Envoy."""

    def __init__(
        self,
        home: Path,
        offset: int,
        databases: Mapping[str, str],
        *,
        replicas: int = 1,
        cuttable: bool = False,
        jumping: bool = False,
    ) -> None:
        """`databases`: URLs for the sections gateway, nlp and reply; none: SQLite, which serves one replica.

        `cuttable`: calls of the gateway go through `proxies`, where they can be cut. `jumping`: its
        processes read the time through libfaketime, if that is installed; `clock` says by how much it is wrong.
        """
        self.home = home
        self.callback_url = f"http://127.0.0.1:{ports.EDGE_HTTP + offset}/wecom"
        self._databases = databases
        self._offsets = [offset + number * REPLICA_STEP for number in range(replicas)]
        self.proxies = (
            [Proxy(port + offset) for port in _CALLED.values() for offset in self._offsets] if cuttable else []
        )
        self.clock = home / "clock" if jumping and _libfaketime() else None
        self._parts: dict[str, Part] = {}

    async def prepare(self, account: Mapping[str, Any]) -> None:
        """Open the ways between the processes and write down who knows what."""
        moved = {f"127.0.0.1:{proxy.upstream}": await proxy.open() for proxy in self.proxies}
        direct = {name: [f"127.0.0.1:{port + offset}" for offset in self._offsets] for name, port in _CALLED.items()}
        targets = {name: ",".join(moved.get(one, one) for one in addresses) for name, addresses in direct.items()}
        tables: dict[str, dict[str, Any]] = {
            "gateway": {"crypto_target": targets["crypto_svc"], "reply_target": targets["reply_svc"]},
            "nlp": {"target": targets["nlp_svc"], "provider": "scripted"},
            "skills": {"target": targets["nlp_svc"]},
            "reply": {},
            "channels": {"wecom": dict(account)},
        }
        for section, url in self._databases.items():
            tables[section]["database"] = url
        install_engine(self.home / "installed")
        engine = {"PYTHONPATH": f"{self.home / 'installed'}{os.pathsep}{REPOSITORY}"}
        for number, offset in enumerate(self._offsets):
            with _living_at(self.home / f"replica{number}", offset):
                write_private(self.home / f"replica{number}" / "config.toml", tomlkit.dumps(tables))
                for part in parts(Configuration.load()):
                    self._add(part, number, engine)
        if len(self._offsets) > 1:
            self._balance()

    def _add(self, part: Part, number: int, engine: Mapping[str, str]) -> None:
        name, program = part.program.name, part.program
        if number and name == "envoy":
            return
        environment = {**program.environment, **(engine if name == "nlp_svc" else {}), **self._clock_of(name)}
        program = msgspec.structs.replace(program, environment=environment)
        if number:
            name = f"{name}-{number + 1}"
            program = msgspec.structs.replace(program, name=name)
        self._parts[name] = Part(program, part.addresses, part.ready)

    def _clock_of(self, name: str) -> dict[str, str]:
        """Not the gateway's: gunicorn sleeps by a system call that libfaketime breaks."""
        if self.clock is None or name.partition("-")[0] not in _CALLED:
            return {}
        self.clock.write_text("+0\n")
        return {
            "LD_PRELOAD": str(_libfaketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def _balance(self) -> None:
        """Give Envoy an endpoint for each gateway: a load balancer's business, of which the product has one."""
        file = self.home / "replica0" / "run" / "envoy.yaml"
        text = file.read_text()
        first = re.search(r"^ +- endpoint:\n(?: +\w.*\n){2}", text, re.MULTILINE)
        assert first, "Envoy's template has changed"
        second = first[0]
        for port in (ports.GATEWAY, ports.GATEWAY + ports.ADMIN_OFFSET):
            second = second.replace(str(port + self._offsets[0]), str(port + self._offsets[1]))
        assert second != first[0]
        write_private(file, text.replace(first[0], first[0] + second))

    def start(self) -> None:
        """Start everything; returns when all are ready. Raises AssertionError if it cannot be."""
        busy = [address for part in self._parts.values() for address in part.addresses.values() if not is_free(address)]
        assert not busy, f"somebody else has {', '.join(busy)}: choose another --offset"
        with _living_at(self.home, self._offsets[0]):
            control.apply(self._programs())
        for name in self._parts:
            self.await_ready(name)

    def await_ready(self, name: str) -> None:
        """Return when a process is ready for work. Raises AssertionError if it never is."""
        deadline = monotonic() + _READY_WITHIN_S
        while not is_ready(self._parts[name].ready):
            assert monotonic() < deadline, f"{name} is not ready: see {self.home}/logs"
            sleep(0.05)

    def stop(self) -> None:
        """Stop everything."""
        with _living_at(self.home, self._offsets[0]):
            control.stop()

    def _programs(self) -> list[Program]:
        return [part.program for part in self._parts.values()]

    @property
    def shared(self) -> bool:
        """Whether its processes share databases."""
        return bool(self._databases)

    @property
    def names(self) -> list[str]:
        """All processes."""
        return list(self._parts)

    def replicas(self, service: str) -> list[str]:
        """The processes of one service."""
        return [name for name in self._parts if name.partition("-")[0] == service]

    def pid(self, name: str) -> int | None:
        """The process that runs under this name now."""
        with _living_at(self.home, self._offsets[0]):
            standing = control.standing() or []
        return next(process.pid for process in standing if process.name == name)

    def restarts(self) -> int:
        """How often processes were started again."""
        with _living_at(self.home, self._offsets[0]):
            return sum(process.restarts for process in control.standing() or [])

    async def close(self) -> None:
        """Close the ways between the processes."""
        for proxy in self.proxies:
            await proxy.close()


def install_engine(folder: Path) -> None:
    """Make a folder that, in PYTHONPATH, lets nlp_svc find the scripted engine as it finds any installed plugin."""
    distribution = folder / "scripted_engine-1.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted-engine\nVersion: 1\n")
    (distribution / "entry_points.txt").write_text("[ai_assistant.engines]\nscripted = tests.chaos.scripted\n")


@contextlib.contextmanager
def _living_at(home: Path, offset: int) -> Iterator[None]:
    """Where the product's own code finds its mesh."""
    ours = {"AI_ASSISTANT_HOME": str(home), ports.OFFSET_VARIABLE: str(offset)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _libfaketime() -> Path | None:
    """The library that makes a process see another time, where it is installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
