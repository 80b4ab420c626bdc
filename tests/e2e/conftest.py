"""A whole mesh for the tests: whatever `ai-assistant-cli up` starts, on ports and in a folder of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from assistant import ports

_PATIENCE_S = 60.0


@dataclass
class Mesh:
    """A mesh and how to speak with it. Nothing of this machine's own configuration reaches it."""

    home: Path
    offset: int
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of its own, besides where it lives."""

    @property
    def edge(self) -> str:
        """The URL of Envoy, without a slash at the end."""
        return f"http://127.0.0.1:{self.offset + ports.EDGE_HTTP}"

    @property
    def simulator(self) -> str:
        """The URL of the simulated platform, without a slash at the end."""
        return f"http://127.0.0.1:{self.offset + ports.SIMULATOR}"

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `ai-assistant-cli`; unless told otherwise, it must succeed."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "AI_ASSISTANT_HOME": str(self.home),
            "AI_ASSISTANT_PORT_OFFSET": str(self.offset),
            **self.environment,
        }
        done = subprocess.run(
            [sys.executable, "-m", "assistant.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=2 * _PATIENCE_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done

    def status(self) -> dict[str, dict[str, Any]]:
        """How every process stands, by its name."""
        return {row["name"]: row for row in json.loads(self.cli("status", "--json", check=False).stdout)}

    def pids(self) -> dict[str, int | None]:
        """The process of every name, asked of the supervisor: quicker than `status`."""
        with socket.socket(socket.AF_UNIX) as supervisor:
            supervisor.connect(str(self.home / "run" / "supervisor.sock"))
            supervisor.sendall(b'{"command":"status"}\n')
            return {row["name"]: row["pid"] for row in json.load(supervisor.makefile("rb"))}

    def pid(self, name: str) -> int:
        """The process that runs under this name, once it runs."""
        return int(self.until(lambda: self.pids()[name]))

    def kill(self, name: str) -> None:
        """End a process as the kernel does when memory is short."""
        os.kill(self.pid(name), signal.SIGKILL)

    def until(self, question: Callable[[], Any]) -> Any:
        """The first answer that is true, asked for again and again."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (answer := question()):
            assert time.monotonic() < deadline, f"not in {_PATIENCE_S} s: {self.status()}"
            time.sleep(0.05)
        return answer

    def is_healthy(self) -> bool:
        """Whether `/health` says so."""
        try:
            with urllib.request.urlopen(f"{self.edge}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def processes(self) -> list[int]:
        """Every process of this mesh that is alive, however it came to be."""
        marks = (f"AI_ASSISTANT_HOME={self.home}\0".encode(), str(self.home / "run").encode() + b"\0")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
                if any(mark in told for mark in marks):
                    found.append(int(process.name))
        return found


MakeMesh = Callable[..., contextlib.AbstractContextManager[Mesh]]


@pytest.fixture(scope="session")
def make_mesh(
    reserve_ports: Callable[[], contextlib.AbstractContextManager[int]], tmp_path_factory: pytest.TempPathFactory
) -> MakeMesh:
    """`with make_mesh(VARIABLE="value") as mesh:` a mesh that is not up yet, and is down afterwards."""

    @contextlib.contextmanager
    def make(**environment: str) -> Iterator[Mesh]:
        with reserve_ports() as offset:
            mesh = Mesh(tmp_path_factory.mktemp("mesh"), offset, environment)
            try:
                yield mesh
            finally:
                mesh.cli("down", check=False)
                for process in mesh.processes():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)

    return make


@pytest.fixture(scope="session")
def mesh(make_mesh: MakeMesh) -> Iterator[Mesh]:
    """A mesh that is up, with a simulated platform. Shared: leave it as you found it."""
    with make_mesh() as made:
        made.cli("up")
        yield made


@pytest.fixture
def healthy_mesh(mesh: Mesh) -> Mesh:
    """The shared mesh, once it has got over what the last test did to it."""
    mesh.until(mesh.is_healthy)
    return mesh
