"""Real containers, where a container engine answers. All but the first steps are slow: `make e2e-docker`."""

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from assistant import tls

ROOT = Path(__file__).parents[2]
GRPCURL = Path(sys.executable).parent / "grpcurl"
PATIENCE_S = 240.0


BASE_IMAGE = os.environ.get("PYTHON_IMAGE", "python:3.12-slim-bookworm")
"""What deploy/Dockerfile begins with."""
FIRST_STEPS = Path(__file__).with_name("test_first_steps.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot be run here, or takes longer than `make test` may."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    wanted = bool(os.environ.get("AI_ASSISTANT_TEST_CONTAINERS"))
    missing = _missing(wanted) if here else ""
    for item in here:
        if not wanted and item.path != FIRST_STEPS:
            item.add_marker(pytest.mark.skip(reason="containers are tested by `make e2e-docker`"))
        elif missing:
            item.add_marker(pytest.mark.skip(reason=missing))


def _missing(wanted: bool) -> str:
    """What is missing to run containers. Empty: nothing."""
    if not shutil.which("docker"):
        return "docker is not installed"
    for question in (["docker", "info"], ["docker", "compose", "version"]):
        asked = subprocess.run(question, capture_output=True, text=True, timeout=60, check=False)
        if asked.returncode:
            return f"no containers here: `{' '.join(question)}` says {asked.stderr.strip()[-200:]}"
    # Not every engine may or can fetch it: without being asked to, we do not make one try.
    known = subprocess.run(["docker", "image", "inspect", BASE_IMAGE], capture_output=True, timeout=60, check=False)
    if known.returncode and not wanted:
        return f"the engine has no image {BASE_IMAGE}: `make e2e-docker` fetches it, and tests containers"
    return ""


def run(*command: str, check: bool = True, **environment: str) -> str:
    """The output of a command, which must succeed unless told otherwise."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Mesh:
    """A mesh in containers, reached from outside."""

    http: int = field(default_factory=free_port)
    https: int = field(default_factory=free_port)

    def health(self, scheme: str = "http") -> tuple[int, Any]:
        """Status and JSON of /health; (0, None) if nobody answers yet. The certificate is a development one."""
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        port = {"http": self.http, "https": self.https}[scheme]
        try:
            with urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/health", timeout=5, context=trusting) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            is_ours = error.headers.get_content_type() == "application/json"  # or else Envoy's, without a gateway
            return error.code, json.load(error) if is_ours else None
        except OSError:
            return 0, None

    def callback(self) -> int:
        """The status of the answer to a callback that is none."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/wecom?nonce=1", data=b"<xml/>")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def until(self, question: Callable[[], Any]) -> Any:
        """The first answer that is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not (answer := question()):
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s"
            time.sleep(0.5)
        return answer


@dataclass
class Stack(Mesh):
    """One container per process: a compose project of its own name, on ports of its own."""

    files: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    project: str = field(default_factory=lambda: f"ai-assistant-test-{uuid.uuid4().hex[:8]}")
    simulator: int = field(default_factory=free_port)
    mesh: int = field(default_factory=free_port)

    def compose(self, *arguments: str, check: bool = True) -> str:
        """The output of `docker compose …`."""
        files = [argument for name in self.files for argument in ("--file", name)]
        ours = {
            "HTTP_PORT": str(self.http),
            "HTTPS_PORT": str(self.https),
            "SIMULATOR_PORT": str(self.simulator),
            "MESH_PORT": str(self.mesh),
            **self.environment,
        }
        command = ["docker", "compose", "--project-name", self.project, "--env-file", "/dev/null", *files, *arguments]
        return run(*command, check=check, **ours)

    def up(self, *arguments: str) -> None:
        """As a user does it; returns when every container is healthy and all is connected."""
        self.compose("up", "--detach", "--build", *arguments)
        try:
            self.until(lambda: self.well() and self.serving())
        except AssertionError:
            checks = {name: one["State"] for name, one in self.containers().items()}
            pytest.fail(f"not healthy: {json.dumps(checks, indent=1)}\n{self.compose('logs', '--tail', '20')}")

    def well(self) -> bool:
        """Whether every container that says how it is says that it is well."""
        states = [one["State"]["Health"]["Status"] for one in self.containers().values() if "Health" in one["State"]]
        return bool(states) and set(states) == {"healthy"}

    def serving(self) -> bool:
        """Whether the gateway reaches every service; the platform may be away."""
        services = (self.health()[1] or {}).get("services", {})
        return bool(services) and all(state == "serving" for state in services.values())

    def cli(self, *arguments: str) -> str:
        """`ai-assistant-cli`, as an operator runs it here."""
        return self.compose("run", "--rm", "--no-TTY", "cli", *arguments)

    def ask(self, text: str) -> str:
        """What a member who writes this is answered."""
        return str(json.loads(self.cli("test", "wecom", "--message", text))["content"])

    def simulated(self, method: str, path: str, body: Any = None) -> Any:
        """What the simulated platform answers to JSON on its own API."""
        url = f"http://127.0.0.1:{self.simulator}/simulator{path}"
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, content, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def inside(self, service: str, *command: str) -> str:
        """The output of a command within a service's (first) container."""
        return self.compose("exec", "--no-TTY", service, *command)

    def certificates(self, name: str, folder: Path) -> Path:
        """Copy the certificate of a process out of the containers, as an operator does with their own; the folder."""
        if not (folder / name).exists():
            self.compose("cp", f"renewal:/certificates/{name}", str(folder / name))
        return folder / name

    def address(self, container: str, network: str) -> str:
        """Where a container is reached from the engine's own machine."""
        networks = self.containers()[container]["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_{network}"]["IPAddress"])

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine knows of every container, by its name within the project, such as gateway-1."""
        ids = self.compose("ps", "--all", "--quiet").split()
        inspected: list[dict[str, Any]] = json.loads(run("docker", "inspect", *ids)) if ids else []
        return {one["Name"].removeprefix(f"/{self.project}-"): one for one in inspected}

    @contextlib.contextmanager
    def without(self, name: str) -> Iterator[None]:
        """A container is dead meanwhile; afterwards it is healthy again."""
        run("docker", "kill", f"{self.project}-{name}")
        yield
        run("docker", "start", f"{self.project}-{name}")
        self.until_healthy(name)

    def kill(self, name: str) -> None:
        """A container is killed and started again at once; returns when it is healthy."""
        with self.without(name):
            pass

    def crash(self, name: str) -> None:
        """All processes of a container end at once; returns when the engine has brought it back, healthy."""
        before = self.containers()[name]["RestartCount"]
        run("docker", "exec", f"{self.project}-{name}", "sh", "-c", "kill -9 -1", check=False)
        self.until(lambda: self.containers()[name]["RestartCount"] > before)
        self.until_healthy(name)

    def restart(self, name: str) -> None:
        """A container ends in good order and is started again; returns when it is healthy."""
        run("docker", "restart", "--time", "30", f"{self.project}-{name}")
        self.until_healthy(name)

    def until_healthy(self, name: str) -> None:
        """Wait for a container."""
        self.until(lambda: self.containers()[name]["State"]["Health"]["Status"] == "healthy")


def grpcurl(
    *words: str, identity: Path | None, authorities: Path, address: str, authority: str
) -> "subprocess.CompletedProcess[str]":
    """Run grpcurl with the certificate in a folder, or with none. `words`: a request, and what follows the address."""
    command = [GRPCURL, "-cacert", authorities, "-connect-timeout", "5", "-authority", authority]
    if identity is not None:
        command += ["-cert", identity / tls.CERTIFICATE, "-key", identity / tls.KEY]
    request = [word for word in words if word.startswith("{")]
    command += [*(("-d", *request) if request else ()), address, *(word for word in words if word not in request)]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)


@dataclass
class Box(Mesh):
    """The whole mesh in one container, with its state on a volume."""

    name: str = field(default_factory=lambda: f"ai-assistant-test-{uuid.uuid4().hex[:8]}")

    def start(self) -> None:
        """As a user does it, with a read-only root and no privilege at all besides; returns when it is healthy."""
        run("docker", "build", "--quiet", "--tag", "ai-assistant", "--file", "deploy/Dockerfile", ".")
        run(
            *("docker", "run", "--detach", "--name", self.name, "--volume", f"{self.name}:/var/lib/ai-assistant"),
            *("--publish", f"127.0.0.1:{self.http}:8080", "--publish", f"127.0.0.1:{self.https}:8443"),
            *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"),
            "ai-assistant",
        )
        self.until(lambda: self.health()[0] == 200)

    def docker(self, command: str, *arguments: str) -> str:
        """`docker COMMAND … <this container>`."""
        return run("docker", command, *arguments, self.name)

    def inside(self, *command: str) -> str:
        """The output of a command within the container."""
        return run("docker", "exec", self.name, *command)

    def ask(self, text: str) -> str:
        """What a member who writes this is answered."""
        return str(json.loads(self.inside("ai-assistant-cli", "test", "wecom", "--message", text))["content"])

    def state(self) -> dict[str, Any]:
        """What the engine knows of the container's state."""
        inspected: dict[str, Any] = json.loads(self.docker("inspect"))[0]["State"]
        return inspected


@pytest.fixture(scope="session")
def make_stack() -> Callable[..., contextlib.AbstractContextManager[Stack]]:
    """`with make_stack("docker-compose.yml", VARIABLE="value") as stack:` gone afterwards, with its volumes."""

    @contextlib.contextmanager
    def make(*files: str, **environment: str) -> Iterator[Stack]:
        stack = Stack(files=files, environment=environment)
        try:
            yield stack
        finally:
            stack.compose("--profile", "*", "down", "--volumes", "--remove-orphans")

    return make


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """The whole mesh in one container, healthy."""
    box = Box()
    try:
        box.start()
        yield box
    finally:
        run("docker", "rm", "--force", "--volumes", box.name, check=False)
        run("docker", "volume", "rm", "--force", box.name, check=False)
