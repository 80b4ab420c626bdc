"""The supervisor as a real process, keeping small shell scripts running."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Supervised:
    """A folder in which a supervisor runs."""

    home: Path

    @property
    def run_folder(self) -> Path:
        return self.home / "run"

    def plan(self, **scripts: str) -> None:
        """What is to run: names and shell scripts."""
        programs = [
            {
                "name": name,
                "command": ["/bin/sh", "-c", script],
                "environment": {"PATH": os.environ["PATH"], "FOLDER": str(self.home)},
                "revision": script,
                "stage": stage,
            }
            for stage, (name, script) in enumerate(scripts.items())
        ]
        (self.run_folder / "plan.json").write_text(json.dumps(programs))

    def start(self) -> "subprocess.Popen[bytes]":
        supervisor = subprocess.Popen([sys.executable, "-m", "assistant.cli.supervisor", str(self.run_folder)])
        until(lambda: (self.run_folder / "supervisor.sock").exists() or supervisor.poll() is not None)
        return supervisor

    def tell(self, command: str) -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.run_folder / "supervisor.sock"))
            connection.sendall(json.dumps({"command": command}).encode() + b"\n")
            return json.load(connection.makefile("rb"))

    def standing(self, name: str) -> Any:
        return next(program for program in self.tell("status") if program["name"] == name)

    def pid(self, name: str) -> int:
        """Once it runs."""
        return int(until(lambda: self.standing(name)["pid"]))

    def lines(self, name: str) -> list[str]:
        """What scripts wrote into a file of this name."""
        file = self.home / name
        return file.read_text().splitlines() if file.exists() else []


def until(question: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (answer := question()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return answer


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    (tmp_path / "run").mkdir()
    (tmp_path / "logs").mkdir()
    there = Supervised(tmp_path)
    yield there
    with contextlib.suppress(OSError):
        there.tell("stop")


def test_a_program_that_is_killed_is_started_again(supervised: Supervised) -> None:
    """However often a program dies, another one follows."""
    supervised.plan(a='echo $$ >> "$FOLDER/starts"; exec sleep 1000')
    supervisor = supervised.start()
    for count in range(1, 5):
        until(lambda count=count: len(supervised.lines("starts")) == count)
        os.kill(int(supervised.lines("starts")[-1]), signal.SIGKILL)
    until(lambda: len(supervised.lines("starts")) == 5)
    standing = until(lambda: (found := supervised.standing("a"))["state"] == "running" and found)
    assert (standing["restarts"], standing["last_exit"]) == (4, "killed by SIGKILL")
    supervised.tell("stop")
    assert supervisor.wait(10) == 0


def test_a_program_that_keeps_ending_is_tried_less_and_less_often(supervised: Supervised) -> None:
    """A program that cannot start does not eat the machine, and is not given up."""
    supervised.plan(a='echo x >> "$FOLDER/starts"; exit 3')
    supervisor = supervised.start()
    until(lambda: len(supervised.lines("starts")) >= 4)
    log = [json.loads(line) for line in (supervised.home / "logs" / "a.log").read_text().splitlines()]
    assert {line["exit"] for line in log} == {"exit code 3"}
    pauses = [line["restart_in_s"] for line in log]
    assert pauses == sorted(pauses)
    supervised.tell("stop")
    assert supervisor.wait(10) == 0


def test_what_a_program_left_behind_ends_with_it(supervised: Supervised) -> None:
    """A child of a killed program does not keep its port."""
    supervised.plan(a='sleep 1000 & echo $! >> "$FOLDER/children"; wait')
    supervisor = supervised.start()
    child = int(until(lambda: supervised.lines("children"))[0])
    os.kill(supervised.pid("a"), signal.SIGKILL)
    until(lambda: not is_alive(child))
    supervised.tell("stop")
    assert supervisor.wait(10) == 0


def test_stop_waits_for_what_has_begun_and_goes_by_stages(supervised: Supervised) -> None:
    """A program may finish its work; those that it needs are stopped after it."""
    finishing = (
        "trap 'sleep 0.3; echo %s >> \"$FOLDER/ends\"; exit 0' TERM; "
        'echo up >> "$FOLDER/ups"; while :; do sleep 0.05; done'
    )
    supervised.plan(callee=finishing % "callee", caller=finishing % "caller")
    supervisor = supervised.start()
    until(lambda: len(supervised.lines("ups")) == 2)
    supervised.tell("stop")
    assert supervisor.wait(10) == 0
    assert supervised.lines("ends") == ["caller", "callee"]


def test_apply_restarts_what_has_changed_and_nothing_else(supervised: Supervised) -> None:
    """A new plan ends what it no longer has, starts what is new, and lets the rest alone."""
    supervised.plan(same="exec sleep 1000", changed="exec sleep 1001", gone="exec sleep 1002")
    supervisor = supervised.start()
    before = {name: supervised.pid(name) for name in ("same", "changed", "gone")}
    supervised.plan(same="exec sleep 1000", changed="exec sleep 1003")
    supervised.tell("apply")
    assert {program["name"] for program in supervised.tell("status")} == {"same", "changed"}
    assert supervised.pid("same") == before["same"]
    assert supervised.pid("changed") != before["changed"]
    assert not is_alive(before["gone"])
    supervised.tell("stop")
    assert supervisor.wait(10) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_programs_end_when_the_supervisor_is_killed(supervised: Supervised) -> None:
    """Nothing runs unwatched."""
    supervised.plan(a="exec sleep 1000")
    supervisor = supervised.start()
    pid = supervised.pid("a")
    supervisor.kill()
    supervisor.wait()
    until(lambda: not is_alive(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux schedules in batches")
def test_programs_do_not_interrupt_one_another(supervised: Supervised) -> None:
    supervised.plan(sleeper="exec sleep 60")
    supervisor = supervised.start()
    assert os.sched_getscheduler(supervised.pid("sleeper")) == os.SCHED_BATCH
    assert os.sched_getscheduler(supervisor.pid) == os.SCHED_OTHER  # it is to see at once that a program died


def test_only_one_supervisor_runs_in_a_folder(supervised: Supervised) -> None:
    """A second one ends at once and does not disturb the first."""
    supervised.plan(a="exec sleep 1000")
    first = supervised.start()
    second = subprocess.run(
        [sys.executable, "-m", "assistant.cli.supervisor", str(supervised.run_folder)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode != 0
    assert "already" in second.stderr
    assert is_alive(supervised.pid("a"))
    supervised.tell("stop")
    assert first.wait(10) == 0


def test_a_full_log_is_moved_aside(supervised: Supervised) -> None:
    """Logs do not fill the disk, and no line is torn by that."""
    line = "x" * 999
    supervised.plan(a=f"i=0; while [ $i -lt 11000 ]; do echo {line}; i=$((i+1)); done; exec sleep 1000")
    supervisor = supervised.start()
    old, new = (supervised.home / "logs" / name for name in ("a.log.1", "a.log"))
    until(lambda: old.exists() and old.stat().st_size + new.stat().st_size == 11_000_000)
    assert new.stat().st_size < old.stat().st_size
    supervised.tell("stop")
    assert supervisor.wait(10) == 0


def test_nonsense_is_answered_with_an_error(supervised: Supervised) -> None:
    """Whoever tells the supervisor something unknown is told so, and it runs on."""
    supervised.plan(a="exec sleep 1000")
    supervisor = supervised.start()
    assert "error" in supervised.tell("dance")
    assert is_alive(supervised.pid("a"))
    supervisor.terminate()
    assert supervisor.wait(10) == 0
