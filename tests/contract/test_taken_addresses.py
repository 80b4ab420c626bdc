"""A service that cannot have its address says which setting to change."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

LISTENING = [
    *(("gateway", f"gateway.{key}") for key in ("listen", "admin", "grpc")),
    *((f"{name}_svc", f"{name}.{key}") for name in ("crypto", "nlp", "reply") for key in ("listen", "admin")),
]


@pytest.mark.parametrize(("service", "setting"), LISTENING)
def test_the_setting_of_an_address_that_is_taken_is_named(
    reserve_ports: Callable[[], AbstractContextManager[int]], tmp_path: Path, service: str, setting: str
) -> None:
    """By its whole name, as `config set` takes it; the process ends."""
    with reserve_ports() as offset, socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        environment = {
            "AI_ASSISTANT_HOME": str(tmp_path),
            "AI_ASSISTANT_PORT_OFFSET": str(offset),
            f"AI_ASSISTANT_{setting.upper().replace('.', '_')}": address,
        }
        command = [sys.executable, "-m", service]
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode != 0
    assert f"cannot listen on {address}: " in done.stdout + done.stderr
    assert f"set `{setting}` to another address" in done.stdout + done.stderr
