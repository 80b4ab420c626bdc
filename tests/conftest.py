"""Fixtures for tests that start real processes on fixed ports."""

import random
import socket
from collections.abc import Iterator

import pytest

_STEP = 500  # no two ports of a mesh lie a multiple of this apart, so meshes of different offsets never meet
_HIGHEST = 22_000  # keeps the highest port below the ephemeral ones
_RESERVED = 6_999  # a port that no mesh uses: whoever listens on it owns the offset


@pytest.fixture(scope="session")
def port_offset() -> Iterator[int]:
    """An AI_ASSISTANT_PORT_OFFSET that is ours alone for this session, whatever else runs on the machine."""
    offsets = list(range(_STEP, _HIGHEST + 1, _STEP))
    random.shuffle(offsets)
    for offset in offsets:
        with socket.socket() as reservation:
            try:
                reservation.bind(("127.0.0.1", _RESERVED + offset))
                reservation.listen()
                for port in (7000, 7001, 7002, 7003, 7050, 7100, 7101, 7102, 7103, 8080, 8443, 9901):
                    with socket.create_server(("127.0.0.1", port + offset)):
                        pass
            except OSError:
                continue
            yield offset
            return
    pytest.fail("no free block of ports for a mesh on this machine")
