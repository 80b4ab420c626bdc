"""What Kubernetes would start, started here: the commands, variables, files and probes of deploy/k8s as it is rendered.

Names of Services become addresses of this machine, ports are moved, and what a pod mounts lies in a folder. Whatever a
pod may not write is a place where nobody can.
"""

import base64
import contextlib
import datetime
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from assistant import tls
from assistant.cli.authority import Authority
from assistant.cli.envoy import development_certificate

ROOT = Path(__file__).parents[2]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
NOWHERE = "/proc/nowhere"
"""Not even root can write there."""
PATIENCE_S = 60.0
ORDER = ("simulator", "crypto-svc", "nlp-svc", "reply-svc", "gateway", "envoy")
DATABASES = ("gateway", "nlp", "reply")
TOKEN, AESKEY = "theTokenOfTheCallback", "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"
NEXT_TOKEN, NEXT_AESKEY = "theNextToken", AESKEY[::-1]
SECRET = "theSecretOfTheApplication"
KEYS = [
    {
        "channel": "wecom",
        "name": "default",
        "keys": [
            {
                "key_id": "configured",
                "fingerprint": sha256(f'{{"aeskey":"{AESKEY}","token":"{TOKEN}"}}'.encode()).hexdigest(),
                "added_at": 1780000000,
            },
            {
                "key_id": "autumn",
                "fingerprint": "",
                "added_at": 1790000000,
                "material": {"token": NEXT_TOKEN, "aeskey": NEXT_AESKEY},
            },
        ],
    }
]
"""crypto-keys.json, as deploy/k8s/README.md says it is to be written."""

Object = dict[str, Any]
Render = Callable[..., list[Object]]
ReservePorts = Callable[[], contextlib.AbstractContextManager[int]]
Secrets = Mapping[str, Mapping[str, str]]


@dataclass
class Node:
    """One pod of every Deployment, as a process of this machine."""

    objects: list[Object]
    secrets: Secrets
    """Name without kustomize's end -> key -> value."""
    folder: Path
    offset: int
    changes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Deployment -> variables that are others here."""
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def of_kind(self, kind: str) -> dict[str, Object]:
        return {one["metadata"]["name"]: one for one in self.objects if one["kind"] == kind}

    def container(self, name: str) -> Object:
        (only,) = self.of_kind("Deployment")[name]["spec"]["template"]["spec"]["containers"]
        return dict(only)

    def root(self, name: str) -> Path:
        return self.folder / name

    def port(self, name: str, port: int | str) -> int:
        """Where a port of a pod, by number or name, is on this machine."""
        named = {one["name"]: one["containerPort"] for one in self.container(name)["ports"]}
        return self.offset + (named[port] if isinstance(port, str) else port)

    def _address(self, found: "re.Match[str]") -> str:
        """An address in a variable as it is here: of a Service, or of all interfaces."""
        before, host, port = found.groups()
        if host == "0.0.0.0":
            return f"{before}127.0.0.1:{self.offset + int(port)}"
        (target,) = (one for one in self.of_kind("Service")[host]["spec"]["ports"] if one["port"] == int(port))
        return f"{before}127.0.0.1:{self.port(host, target['targetPort'])}"

    def environment(self, name: str) -> dict[str, str]:
        """The variables of a pod, and none of ours but the path to programs."""
        given: dict[str, str] = {}
        configuration = self.of_kind("ConfigMap")
        for source in self.container(name).get("envFrom", []):
            given |= configuration[source["configMapRef"]["name"]]["data"]
        for one in self.container(name)["env"]:
            chosen = one.get("valueFrom", {}).get("configMapKeyRef")
            given[one["name"]] = configuration[chosen["name"]]["data"][chosen["key"]] if chosen else one["value"]
        for variable, value in given.items():
            here = re.sub(r"(^|//)([a-z0-9.-]+):(\d+)$", self._address, value)
            given[variable] = f"{self.root(name)}{here}" if here.startswith("/") else here
        mounted = {mount["mountPath"] for mount in self.container(name).get("volumeMounts", [])}
        places = {"AI_ASSISTANT_HOME": "/var/lib/ai-assistant", "TMPDIR": "/tmp"}
        of_image = {
            variable: f"{self.root(name)}{path}" if path in mounted else NOWHERE for variable, path in places.items()
        }
        offset = {"AI_ASSISTANT_PORT_OFFSET": str(self.offset)}
        return {"PATH": PATH} | of_image | offset | given | dict(self.changes.get(name, {}))

    def command(self, arguments: list[str]) -> list[str]:
        """A command of the image as it is here."""
        of_image = ROOT / "deploy" / "container" / arguments[0]
        return [str(of_image) if of_image.exists() else arguments[0], *arguments[1:]]

    def mount(self, name: str) -> None:
        """Lay out what a pod is given."""
        volumes = {one["name"]: one for one in self.of_kind("Deployment")[name]["spec"]["template"]["spec"]["volumes"]}
        for mount in self.container(name)["volumeMounts"]:
            folder = Path(f"{self.root(name)}{mount['mountPath']}")
            folder.mkdir(parents=True)
            if secret := volumes[mount["name"]].get("secret"):
                for key, value in self.secrets[re.sub(r"-[a-z0-9]{10}$", "", secret["secretName"])].items():
                    (folder / key).write_text(value + "\n")

    def start(self, name: str) -> None:
        self.mount(name)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                self.command(self.container(name)["args"]), env=self.environment(name), stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self.answers(name, "startupProbe"):
            assert self.processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8")

    def answers(self, name: str, kind: str) -> bool:
        """Whether a probe, asked as the kubelet would, is content."""
        probe = self.container(name)[kind]
        if "exec" in probe:
            program, port, path = probe["exec"]["command"]
            asked = [ROOT / "deploy" / "container" / program, str(self.offset + int(port)), path]
            return subprocess.run(asked, capture_output=True, timeout=10, check=False).returncode == 0
        if "grpc" in probe:
            return is_serving(self.port(name, probe["grpc"]["port"]), probe["grpc"].get("service", ""))
        return status(f"http://127.0.0.1:{self.port(name, probe['httpGet']['port'])}{probe['httpGet']['path']}") == 200

    def inside(self, name: str, *arguments: str) -> str:
        """`kubectl exec`: the output of a command with all that a pod has."""
        return run(self.command(list(arguments)), self.environment(name))

    def end(self, name: str) -> int:
        """The exit code of a pod that is told to end, and has the time for it that Kubernetes gives."""
        spec = self.of_kind("Deployment")[name]["spec"]["template"]["spec"]
        self.processes[name].send_signal(signal.SIGTERM)
        return self.processes[name].wait(spec.get("terminationGracePeriodSeconds", 30))


def run(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def is_serving(port: int, service: str) -> bool:
    """As the kubelet's gRPC probes ask: in plaintext."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=3)
        except grpc.RpcError:
            return False
        return bool(answer.status == HealthCheckResponse.SERVING)


class _Staying(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def status(url: str, context: ssl.SSLContext | None = None) -> int:
    """Of the answer to a GET; 0 if there is none."""
    opener = urllib.request.build_opener(_Staying, urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read(), "utf-8")


@contextlib.contextmanager
def databases(postgres_server: str) -> Iterator[dict[str, dict[str, str]]]:
    """The Secrets of an empty database for each service that has one."""
    names = {service: f"{service}_{uuid4().hex}" for service in DATABASES}
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in names.values():
            connection.execute(f"CREATE DATABASE {name}")
        urls = {service: postgres_server.replace("/postgres?", f"/{name}?") for service, name in names.items()}
        yield {f"{service}-database": {"url": url} for service, url in urls.items()}
        for name in names.values():
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def up(node: Node) -> Iterator[Node]:
    """A pod of every Deployment, started and content; afterwards each ends when it is told to."""
    deployed = sorted(node.of_kind("Deployment"), key=ORDER.index)
    try:
        for name in deployed:
            node.start(name)
        for name in deployed:
            for kind in ("readinessProbe", "livenessProbe"):
                assert node.answers(name, kind), f"{kind} of {name}: {node.log(name)}"
        yield node
        assert {name: node.end(name) for name in reversed(deployed)} == dict.fromkeys(deployed, 0)
    finally:
        for process in node.processes.values():
            process.kill()


@pytest.fixture(scope="module")
def dev(
    render: Render, reserve_ports: ReservePorts, postgres_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """The overlay dev, with the Secrets that it makes itself."""
    objects = render("dev")
    secrets = {
        re.sub(r"-[a-z0-9]{10}$", "", one["metadata"]["name"]): {
            key: base64.b64decode(value).decode() for key, value in one.get("data", {}).items()
        }
        for one in objects
        if one["kind"] == "Secret"
    }
    with databases(postgres_server) as own, reserve_ports() as offset:
        given = secrets | own | {"callback-keys": {}}
        with up(Node(objects, given, tmp_path_factory.mktemp("dev"), offset)) as node:
            yield node


@dataclass
class Production:
    """The overlay production, and what its operator has."""

    node: Node
    certificates: Path

    def operator(self, **given: str) -> dict[str, str]:
        """The variables of an operator who has forwarded all ports."""
        account = {
            name: value for name, value in self.node.environment("reply-svc").items() if name.startswith("WECOM")
        }
        return {
            "PATH": PATH,
            "AI_ASSISTANT_HOME": NOWHERE,
            "AI_ASSISTANT_PORT_OFFSET": str(self.node.offset),
            "AI_ASSISTANT_EDGE_PROFILE": "production",
            "AI_ASSISTANT_EDGE_CERTIFICATE": str(self.certificates / "edge" / "certificate.pem"),
            "AI_ASSISTANT_EDGE_PRIVATE_KEY": str(self.certificates / "edge" / "key.pem"),
            **account,
            **given,
        }


@pytest.fixture(scope="module")
def production(
    render: Render, reserve_ports: ReservePorts, postgres_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Production]:
    """The overlay production, with the Secrets that deploy/k8s/README.md asks for, and metrics."""
    folder = tmp_path_factory.mktemp("production")
    certificates = folder / "certificates"
    authority = Authority.open(certificates / "ca")
    secrets = {
        "wecom-callback": {"token": TOKEN, "aeskey": AESKEY},
        "callback-keys": {"crypto-keys.json": json.dumps(KEYS)},
        "wecom-application": {"secret": SECRET},
    }
    for name in ("gateway", "crypto_svc", "nlp_svc", "reply_svc", "operator"):
        made = certificates / name
        authority.issue(made, [tls.host(name)], tls.uri(name), datetime.timedelta(days=1))
        files = (tls.CERTIFICATE, tls.KEY, tls.AUTHORITIES)
        secrets[f"{tls.host(name)}-certificate"] = {file: (made / file).read_text() for file in files}
    certificate, key = development_certificate(certificates / "edge")
    secrets["edge-certificate"] = {"tls.crt": certificate.read_text(), "tls.key": key.read_text()}
    nobody = {"reply-svc": {"WECOM_API_BASE": "http://127.0.0.1:1"}}  # where the platform would be
    with databases(postgres_server) as own, reserve_ports() as offset:
        node = Node(render("production", "prometheus"), secrets | own, folder, offset, nobody)
        with up(node):
            yield Production(node, certificates)


def test_dev_answers_without_any_credential(dev: Node) -> None:
    """What the README says to type prints an answer, and everything is well."""
    told = dev.inside("simulator", "ai-assistant-cli", "test", "wecom", "--message", "ping")
    assert json.loads(told)["content"] == "pong"
    assert status(f"http://127.0.0.1:{dev.port('envoy', 'http')}/health") == 200


def test_production_takes_callbacks_by_https_alone(production: Production) -> None:
    """HTTP is sent to HTTPS, and metrics are not for the world."""
    node = production.node
    trusting = ssl.create_default_context(cafile=str(production.certificates / "edge" / "certificate.pem"))
    assert status(f"http://127.0.0.1:{node.port('envoy', 'http')}/wecom") == 308
    assert status(f"https://localhost:{node.port('envoy', 'https')}/wecom", trusting) == 400  # it is no envelope
    assert status(f"https://localhost:{node.port('envoy', 'https')}/metrics", trusting) == 404


def test_production_shows_metrics_where_prometheus_looks(production: Production) -> None:
    """Every process has them, and crypto_svc knows from its file how old each key is."""
    node = production.node
    for name in node.processes:
        shown = "metrics" if name == "envoy" else "admin"
        assert status(f"http://127.0.0.1:{node.port(name, shown)}/metrics") == 200
    edge = page(f"http://127.0.0.1:{node.port('envoy', 'metrics')}/metrics")
    assert 'envoy_cluster_membership_healthy{envoy_cluster_name="gateway"} 1\n' in edge  # asked where callbacks go
    ages = page(f"http://127.0.0.1:{node.port('crypto-svc', 'admin')}/metrics")
    for key, seconds in (("configured", "1.78e+09"), ("autumn", "1.79e+09")):
        assert re.search(rf'assistant_key_added_timestamp_seconds{{.*key_id="{key}"}} {re.escape(seconds)}', ages)


@pytest.mark.parametrize(("token", "aeskey"), [(TOKEN, AESKEY), (NEXT_TOKEN, NEXT_AESKEY)], ids=["old", "new"])
def test_production_answers_callbacks_of_either_key(production: Production, token: str, aeskey: str) -> None:
    """While a key is changed, that of wecom-callback and that of callback-keys both open, and no log tells a secret."""
    command = ["ai-assistant-cli", "test", "wecom", "--message", "ping"]
    told = json.loads(run(command, production.operator(WECOM_TOKEN=token, WECOM_AESKEY=aeskey)))
    assert told["content"] == "pong"
    node = production.node
    shown = production.operator(AI_ASSISTANT_TLS_CERTIFICATES=str(production.certificates))
    assert told["message_id"] in run(["ai-assistant-cli", "inbox", "list"], shown)
    logs = "".join(node.log(name) for name in node.processes)
    assert [secret for secret in (TOKEN, AESKEY, SECRET, NEXT_TOKEN, NEXT_AESKEY) if secret in logs] == []


def test_production_speaks_to_certificates_alone(production: Production) -> None:
    """Without one, no service answers; with that of the operator, all do, to the commands of the README."""
    crypto = production.node.port("crypto-svc", "grpc")
    assert not is_serving(crypto, "liveness")
    folder = production.certificates / "operator"
    shown = ["-cacert", folder / tls.AUTHORITIES, "-cert", folder / tls.CERTIFICATE, "-key", folder / tls.KEY]
    listed = run(
        ["grpcurl", *map(str, shown), "-authority", "crypto-svc", f"127.0.0.1:{crypto}", "list"], {"PATH": PATH}
    )
    assert "assistant.api.crypto.v1.CryptoService" in listed
    operator = production.operator(
        WECOM_TOKEN=TOKEN, WECOM_AESKEY=AESKEY, AI_ASSISTANT_TLS_CERTIFICATES=str(production.certificates)
    )
    assert json.loads(run(["ai-assistant-cli", "deliveries", "list", "--json"], operator)) == []
