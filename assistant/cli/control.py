"""Talking to the supervisor."""

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import msgspec

from assistant.cli.files import write_private
from assistant.cli.supervisor import DRAIN_S, LOCK, PLAN, SOCKET, Command, Program, Standing
from assistant.errors import InvalidSetting, ServiceUnavailable
from assistant.settings import home

_LONGEST_STOP_S = 3 * DRAIN_S + 5  # three stages
_LONGEST_SOCKET_PATH = 107  # of a unix socket on Linux, in bytes


def run_folder() -> Path:
    """Where the supervisor and the files of the running mesh are."""
    return home() / "run"


def log_folder() -> Path:
    """Where the output of every process goes."""
    return home() / "logs"


def standing() -> list[Standing] | None:
    """How the programs stand. None: no mesh runs here."""
    return _tell("status")


def apply(programs: list[Program]) -> None:
    """Run exactly these programs: start the supervisor, or tell the one that runs. Raises ServiceUnavailable."""
    prepare(programs)
    if _tell("apply") is not None:
        return
    with (log_folder() / "supervisor.log").open("ab") as log:
        supervisor = subprocess.Popen(
            command(),
            env={"PATH": os.defpath},  # no secret of ours: each program's environment is in the plan
            cwd=home(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while _tell("status") is None:
        if supervisor.poll() is not None:
            raise ServiceUnavailable(f"the supervisor ended at once: see {log_folder() / 'supervisor.log'}")
        time.sleep(0.02)


def prepare(programs: list[Program]) -> None:
    """Write the plan that a supervisor reads at its start. Raises InvalidSetting."""
    if len(str(run_folder() / SOCKET).encode()) > _LONGEST_SOCKET_PATH:
        raise InvalidSetting(f"the path {home()} is too long for a unix socket: set AI_ASSISTANT_HOME to a shorter one")
    log_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(run_folder() / PLAN, msgspec.json.encode(programs).decode())


def command(*arguments: str) -> list[str]:
    """What starts a supervisor here."""
    return [sys.executable, "-m", "assistant.cli.supervisor", str(run_folder()), *arguments]


def stop() -> bool:
    """End the mesh and wait for it. False: none was running."""
    if _tell("stop") is None:
        return False
    with (run_folder() / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # free only when the supervisor itself has ended
    return True


def _tell(told: Literal["status", "apply", "stop"]) -> list[Standing] | None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_LONGEST_STOP_S)
        try:
            connection.connect(str(run_folder() / SOCKET))
            connection.sendall(msgspec.json.encode(Command(told)) + b"\n")
            answer = connection.makefile("rb").read()
        except (FileNotFoundError, ConnectionError):
            return None
        except OSError as error:
            raise ServiceUnavailable(f"the supervisor does not answer: {error}") from error
    return msgspec.json.decode(answer, type=list[Standing]) if answer else None
