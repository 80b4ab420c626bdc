"""The gateway as a process: what is asked on which of its addresses for HTTP."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from assistant import ports


@pytest.fixture
def offset(reserve_ports: Callable[[], AbstractContextManager[int]], tmp_path: Path) -> Iterator[int]:
    """By how much the ports of a gateway are moved that serves, with nobody around it."""
    with reserve_ports() as offset:
        environment = {"AI_ASSISTANT_HOME": str(tmp_path), ports.OFFSET_VARIABLE: str(offset)}
        with subprocess.Popen([sys.executable, "-m", "gateway"], env=os.environ | environment) as gateway:
            try:
                deadline = time.monotonic() + 30
                while status(offset + ports.GATEWAY, "/healthz") != 200:
                    assert gateway.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                yield offset
            finally:
                gateway.terminate()


def status(port: int, path: str) -> int:
    """0: nobody is there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return 0


def test_what_operators_ask_is_answered_on_the_admin_address_alone(offset: int) -> None:
    """It is alive though all that it depends on is away; the world is not told."""
    admin, world = offset + ports.GATEWAY + ports.ADMIN_OFFSET, offset + ports.GATEWAY
    asked = ("/livez", "/metrics", "/healthz", "/health")
    assert {path: status(admin, path) for path in asked} == dict.fromkeys(asked, 200) | {"/health": 503}
    assert [status(world, path) for path in ("/livez", "/metrics")] == [404, 404]
