"""A short run of `make chaos`: every process is killed under load, and every message is answered once."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

_LIMIT_S = 240
_KILLS = 6  # every process, and the gateway's worker


def test_no_message_is_lost_while_processes_are_killed(
    reserve_ports: Callable[[], AbstractContextManager[int]], tmp_path: Path
) -> None:
    """Whichever process is killed, every message is answered exactly once, in order, and none gets an error."""
    figures = tmp_path / "figures.json"
    with reserve_ports() as offset:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.chaos", "--kills", str(_KILLS), "--rate", "25", "--members", "60"),
                *("--faults", "token-revoked", "stream-cut", "--offset", str(offset), "--json", str(figures)),
            ],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            cwd=Path(__file__).parents[2],
        )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(figures.read_text())
    assert told["kills"] == _KILLS
    assert told["messages"]["messages"] > 100
    assert min(told["messages"]["passive"], told["messages"]["active"]) > 0
    assert told["broken"] == {}
