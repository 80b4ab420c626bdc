"""The load: callbacks sealed before the run, each sent once, by a generator that is not the bottleneck (wrk)."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant import plugin

SCRIPT = Path(__file__).with_name("load.lua")
PATH = "/wecom"
_TIMEOUT_S = 20
_USED_UP = "used up"
"""What the script says when it has nothing more to send."""


@dataclass(frozen=True)
class Load:
    """What one run of the generator saw."""

    requests: int
    seconds: float
    bytes: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    failed: int
    """Answers other than 2xx, and broken connections."""

    @property
    def rate(self) -> float:
        """Messages answered per second."""
        return self.requests / self.seconds


def require_wrk() -> None:
    """Exit with how to get the generator if it is not there."""
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed, and Python would be the bottleneck: apt-get install wrk")


def write_callbacks(
    file: Path, credentials: Mapping[str, Any], count: int, members: int, path: str, text: str, first: int = 0
) -> Path:
    """Seal `count` messages with ids of their own, as HTTP requests ready to send.

    They come in turn from so many members, beginning with the `first`.
    """
    simulator = plugin.load("channels", "wecom", "simulator")(credentials)
    with file.open("wb") as output:
        for number in range(first, first + count):
            callback, _ = simulator.callback(text, f"member{number % members:06}")
            request = b"".join(_http(callback, path))
            output.write(b"%06d" % len(request) + request)
    return file


def _http(callback: plugin.Callback, path: str) -> Iterator[bytes]:
    yield f"POST {path}?{callback.query} HTTP/1.1\r\nhost: bench\r\n".encode()
    yield f"content-type: text/xml\r\ncontent-length: {len(callback.body)}\r\n\r\n".encode()
    yield callback.body


def send(url: str, callbacks: Path, connections: int, seconds: int, think_ms: int = 0) -> Load:
    """Send callbacks over so many connections, for so long or until they are used up."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", f"{_TIMEOUT_S}s", "-s", str(SCRIPT)]
    command += [url, "--", str(callbacks), str(think_ms)]
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as wrk:
        assert wrk.stdout is not None
        for line in wrk.stdout:
            said.append(line)
            if line.strip() == _USED_UP:
                wrk.send_signal(signal.SIGINT)  # or it sleeps for the rest of its time
    if wrk.returncode:
        raise SystemExit(f"wrk against {url} failed: {''.join(said)}")
    return Load(**json.loads(said[-1]))
