"""What tests of several folders need: processes' ports, PostgreSQL, a collector of traces, what Kubernetes is told."""

import contextlib
import functools
import gzip
import json
import os
import random
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from assistant import ports
from tests.postgres import create_database, postgres

_STEP = 300  # no two ports of a mesh lie a multiple of this apart, so meshes of different offsets never meet
_HIGHEST = 22_000  # keeps the highest port below the ephemeral ones
_RESERVED = 6_999  # a port that no mesh uses: whoever listens on it owns the offset
_SERVICES = (ports.GATEWAY, ports.CRYPTO, ports.NLP, ports.REPLY)
_PORTS = (
    *_SERVICES,
    *(port + ports.ADMIN_OFFSET for port in _SERVICES),
    ports.GATEWAY_GRPC,
    ports.SIMULATOR,
    ports.EDGE_HTTP,
    ports.EDGE_HTTPS,
    ports.EDGE_MESH,
    ports.ENVOY_ADMIN,
)

ReservePorts = Callable[[], contextlib.AbstractContextManager[int]]


@contextlib.contextmanager
def _reserve_ports() -> Iterator[int]:
    offsets = list(range(_STEP, _HIGHEST + 1, _STEP))
    random.shuffle(offsets)
    for offset in offsets:
        with socket.socket() as reservation:
            try:
                reservation.bind(("127.0.0.1", _RESERVED + offset))
                reservation.listen()
                for port in _PORTS:
                    socket.create_server(("127.0.0.1", port + offset)).close()
            except OSError:
                continue
            yield offset
            return
    pytest.fail("no free block of ports for a mesh on this machine")


@pytest.fixture(scope="session")
def reserve_ports() -> ReservePorts:
    """A context manager that gives an AI_ASSISTANT_PORT_OFFSET which is ours alone, whatever else runs here."""
    return _reserve_ports


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server of this session's own, on a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="assistant-pg-") as folder, postgres(Path(folder) / "data") as server:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")  # the machine does not crash, and databases are many
            connection.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty PostgreSQL database."""
    name = f"test_{uuid4().hex}"
    yield create_database(postgres_server, name)
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass(frozen=True)
class Span:
    """One span as a collector is told of it."""

    service: str
    name: str
    kind: str
    """"server", "client" or "internal"."""
    trace_id: str
    span_id: str
    parent_id: str
    """Empty: the trace begins with it."""
    error: str
    """What it was marked with. Empty: it did not fail."""
    attributes: dict[str, Any]


class Collector:
    """Takes spans by OTLP over HTTP, as any collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.headers: list[dict[str, str]] = []
        """Those of each request that brought spans."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self._body()
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf":
                    collector.spans += _spans(ExportTraceServiceRequest.FromString(body))
                    collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(self.headers["content-length"]))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def until(self, found: Callable[[list[Span]], Any]) -> Any:
        """The first answer about all spans that is true."""
        deadline = time.monotonic() + 30
        while not (answer := found(list(self.spans))):
            assert time.monotonic() < deadline, [(span.service, span.name, span.trace_id) for span in self.spans]
            time.sleep(0.05)
        return answer


def _spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        Span(
            service=_values(resource.resource.attributes)["service.name"],
            name=span.name,
            kind={1: "internal", 2: "server", 3: "client"}[span.kind],
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            error=span.status.message if span.status.code == 2 else "",
            attributes=_values(span.attributes),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector of traces that listens."""
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """`render("production", "cert-manager")`: the objects of an overlay of deploy/k8s with further components."""
    root = Path(__file__).parents[1]
    kubectl = root / ".venv" / "bin" / "kubectl"
    if not kubectl.exists():
        pytest.fail(f"{kubectl} is missing, which renders deploy/k8s: `make .venv/bin/kubectl` fetches it")

    @functools.cache
    def rendered(overlay: str, *components: str) -> str:
        folder = tmp_path_factory.mktemp("kustomize").resolve()
        given = Path(os.path.relpath(root / "deploy" / "k8s", folder))
        kustomization = {
            "resources": [str(given / "overlays" / overlay)],
            "components": [str(given / "components" / component) for component in components],
        }
        (folder / "kustomization.yaml").write_text(json.dumps(kustomization))  # JSON is YAML
        done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return lambda overlay, *components: list(yaml.load_all(rendered(overlay, *components), yaml.CSafeLoader))
