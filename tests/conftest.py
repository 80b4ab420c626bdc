"""Fixtures for tests that start real processes on fixed ports."""

import contextlib
import random
import socket
from collections.abc import Callable, Iterator

import pytest

from assistant import ports

_STEP = 500  # no two ports of a mesh lie a multiple of this apart, so meshes of different offsets never meet
_HIGHEST = 22_000  # keeps the highest port below the ephemeral ones
_RESERVED = 6_999  # a port that no mesh uses: whoever listens on it owns the offset
_SERVICES = (ports.GATEWAY, ports.CRYPTO, ports.NLP, ports.REPLY)
_PORTS = (
    *_SERVICES,
    *(port + ports.ADMIN_OFFSET for port in _SERVICES),
    ports.SIMULATOR,
    ports.EDGE_HTTP,
    ports.EDGE_HTTPS,
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
