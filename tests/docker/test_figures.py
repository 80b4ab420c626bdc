"""The figures of deploy/README.md, measured: `make e2e-docker` prints them (pytest -s)."""

import json
import shutil
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.bench.load import PATH, Load, send, write_callbacks
from tests.docker.conftest import run

SESSIONS = 500
THINK_MS = 5_000
LOAD_S = 40
LIMIT = 0.8
"""Of its memory, above which an alert tells: deploy/prometheus/rules.yml."""


@pytest.fixture(scope="module")
def stack(make_stack: Callable[..., AbstractContextManager[Any]]) -> Iterator[Any]:
    with make_stack("docker-compose.yml") as stack:
        stack.compose("build", "account")
        began = time.monotonic()
        stack.up()
        _print("docker compose up, until all are healthy", f"{time.monotonic() - began:.1f} s")
        size = json.loads(run("docker", "image", "inspect", "ai-assistant"))[0]["Size"]
        _print("image", f"{size / 1e6:.0f} MB")
        yield stack


def test_memory_stays_far_below_its_limits(stack: Any, tmp_path: Path) -> None:
    """Idle, and while 500 members each write every 5 seconds, for which every callback is answered."""
    if not shutil.which("wrk"):
        pytest.skip("wrk is not installed: apt-get install wrk")
    idle = _memory(stack)
    account = tomllib.loads(stack.inside("gateway", "cat", "/etc/ai-assistant/account.toml"))["channels"]["wecom"]
    count = SESSIONS * (1 + 2 * LOAD_S * 1000 // THINK_MS)
    callbacks = write_callbacks(tmp_path / "callbacks", account, count, SESSIONS, PATH, "ping")
    found: list[Load] = []
    url = f"https://localhost:{stack.https}"
    load = threading.Thread(target=lambda: found.append(send(url, callbacks, SESSIONS, LOAD_S, THINK_MS)))
    load.start()
    time.sleep(LOAD_S * 0.75)
    busy = _memory(stack)
    load.join()
    _print("container", "idle", f"{SESSIONS} sessions", "limit [MB]")
    for name, (_, limit) in idle.items():
        _print(name, *(f"{size / 2**20:.0f}" for size in (idle[name][0], busy[name][0], limit)))
    (told,) = found
    _print("messages", f"{told.rate:.0f}/s", f"p50 {told.p50_ms:.1f} ms", f"p99 {told.p99_ms:.1f} ms")
    assert told.failed == 0
    assert {name for name, (used, limit) in busy.items() if used > LIMIT * limit} == set()


def test_every_container_ends_by_itself(stack: Any) -> None:
    """`docker stop` takes seconds, and nothing has to be killed."""
    for name in sorted(stack.containers()):
        if name.startswith(("account", "certificates")):
            continue
        began = time.monotonic()
        run("docker", "stop", "--time", "60", f"{stack.project}-{name}")
        took_s = time.monotonic() - began
        state = stack.containers()[name]["State"]
        _print(f"docker stop {name}", f"{took_s:.1f} s", f"exit code {state['ExitCode']}")
        assert state["ExitCode"] in (0, 143)
        assert took_s < 15


def _memory(stack: Any) -> Mapping[str, tuple[float, float]]:
    """What each container uses and may use, in bytes, as its kernel counts it, without what can be dropped."""
    lines = run("docker", "stats", "--no-stream", "--format", "{{json .}}").splitlines()
    rows = {row["Name"]: row["MemUsage"].split(" / ") for row in map(json.loads, lines)}
    ours = {name.removeprefix(f"{stack.project}-"): row for name, row in rows.items() if name.startswith(stack.project)}
    return {name: (_bytes(used), _bytes(limit)) for name, (used, limit) in sorted(ours.items())}


def _bytes(text: str) -> float:
    number, unit = text[:-3], text[-3:]
    return float(number) * {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]


def _print(*cells: str) -> None:
    print("".join(cell.ljust(44 if not index else 16) for index, cell in enumerate(cells)).rstrip())
