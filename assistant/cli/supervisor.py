"""Keeps the processes of a mesh running: `python -m assistant.cli.supervisor <run folder>`.

It starts every program of `plan.json`, restarts whatever ends, writes their output to log files, and is told
what to do over a unix socket: one line of JSON in, one out. A program that ends is started again at once; while
it keeps ending, its starts lie further and further apart; it is never given up. Each program leads a process
group, of which nothing outlives it; and should the supervisor itself be killed, its programs end too (on Linux).

It keeps running when everything else fails, so it is small and imports little.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import uvloop

DRAIN_S = 10.0
"""How long a program may take to end by itself before it is killed."""
FIRST_INTERVAL_S, LONGEST_INTERVAL_S, SETTLED_S = 0.1, 1.0, 10.0
"""Starts of a program that keeps ending lie at least this far apart: first, at last, and when it is forgiven.

At last no more than a second: a platform tries three times with little between, and Envoy should be there for one.
"""
LOG_SIZE_BYTES = 10_000_000

PLAN, SOCKET, LOCK = "plan.json", "supervisor.sock", "supervisor.lock"


class Program(msgspec.Struct, frozen=True):
    """What to run."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """All of it: nothing is inherited."""
    revision: str
    """Digest of the files that it reads at its start: another one means that it must be started again."""
    stage: int
    """Programs of one stage are stopped together, those of a higher stage before those of a lower."""


class Standing(msgspec.Struct, frozen=True):
    """How a program stands."""

    name: str
    state: Literal["running", "restarting", "stopped"]
    pid: int | None
    up_s: float
    restarts: int
    last_exit: str


class Command(msgspec.Struct, frozen=True):
    """What the supervisor is told. `apply` reads the plan again; `stop` ends everything, and it."""

    command: Literal["status", "apply", "stop"]


def _preparation() -> Callable[[], None]:
    """What a child does before its program.

    It has the kernel end it when the supervisor dies. And it has itself scheduled in batches: when it wakes, it does
    not interrupt another program, which may finish what it is at. Each message wakes every program of a mesh, and an
    interruption costs both of them their caches. Without them a message costs 3 to 9 % less CPU.
    """
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1

    def prepare() -> None:
        prctl(set_parent_death_signal, signal.SIGTERM)
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    return prepare


class Log:
    """A file that is moved aside when it is full; one older file is kept."""

    def __init__(self, path: Path, echo: BinaryIO | None) -> None:
        self._path = path
        self._echo = echo
        self._file = path.open("ab", buffering=0)

    def write(self, chunk: bytes) -> None:
        """Losing a line of a log (disk full, terminal gone) must not stop a program."""
        with contextlib.suppress(OSError):
            if self._file.tell() > LOG_SIZE_BYTES:
                self._path.replace(self._path.with_suffix(".log.1"))
                self._file.close()
                self._file = self._path.open("ab", buffering=0)
            self._file.write(chunk)
        if self._echo:
            with contextlib.suppress(OSError):
                self._echo.write(chunk)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Keeper:
    """Keeps one program running."""

    def __init__(self, program: Program, log: Log, prepare: Callable[[], None]) -> None:
        self.program = program
        self._log = log
        self._prepare = prepare
        self._process: asyncio.subprocess.Process | None = None
        self._started = time.monotonic()
        self._restarts = 0
        self._last_exit = ""
        self._stopping = asyncio.Event()
        self._running = asyncio.create_task(self._run())

    def standing(self) -> Standing:
        """How it stands now."""
        process = self._process
        state: Literal["running", "restarting", "stopped"] = (
            "running" if process else "stopped" if self._stopping.is_set() else "restarting"
        )
        return Standing(
            name=self.program.name,
            state=state,
            pid=process.pid if process else None,
            up_s=round(time.monotonic() - self._started, 3) if process else 0.0,
            restarts=self._restarts,
            last_exit=self._last_exit,
        )

    async def stop(self) -> None:
        """Ask the program to end, and see to it that it does."""
        self._stopping.set()
        if self._process:
            _signal(self._process.pid, signal.SIGTERM)
        done, _ = await asyncio.wait([self._running], timeout=DRAIN_S)
        if not done and self._process:
            _signal_group(self._process.pid, signal.SIGKILL)
        await self._running
        self._log.close()

    async def _run(self) -> None:
        interval_s = 0.0
        while not self._stopping.is_set():
            self._started = time.monotonic()
            self._last_exit = await self._run_once()
            up_s = time.monotonic() - self._started
            interval_s = 0.0 if up_s > SETTLED_S else interval_s
            if self._stopping.is_set():
                return
            pause_s = max(0.0, interval_s - up_s)
            self._log.write(_line("ended", program=self.program.name, exit=self._last_exit, restart_in_s=pause_s))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            interval_s = min(max(2 * interval_s, FIRST_INTERVAL_S), LONGEST_INTERVAL_S)
            self._restarts += 1

    async def _run_once(self) -> str:
        """Run the program to its end, and say how it ended."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self.program.command,
                env=dict(self.program.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self._prepare,
            )
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        self._process = process
        if self._stopping.is_set():  # told to stop while it was being started
            _signal(process.pid, signal.SIGTERM)
        copying = asyncio.create_task(self._copy(process.stdout))
        code = await process.wait()
        _signal_group(process.pid, signal.SIGKILL)  # what the program left behind would hold its port
        await copying
        self._process = None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def _copy(self, output: asyncio.StreamReader | None) -> None:
        while output and (chunk := await output.read(65536)):
            self._log.write(chunk)


class Supervisor:
    """Keeps the programs of a plan running. `run_folder` holds the plan, the socket and the lock."""

    def __init__(self, run_folder: Path, log_folder: Path, echo: BinaryIO | None = None) -> None:
        self._run_folder = run_folder
        self._log_folder = log_folder
        self._echo = echo
        self._prepare = _preparation()
        self._keepers: dict[str, Keeper] = {}
        self._changing = asyncio.Lock()
        self._told_to_end = asyncio.Event()

    async def run(self) -> None:
        """Run until told to stop, by a command or a signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end.set)
        await self._apply()
        socket = self._run_folder / SOCKET
        socket.unlink(missing_ok=True)  # of an earlier life: the lock says that there is no other
        server = await asyncio.start_unix_server(self._serve, socket)
        await self._told_to_end.wait()
        await self._stop()
        server.close()
        socket.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            told = msgspec.json.decode(await reader.readline(), type=Command)
            await self._obey(told)
            writer.write(msgspec.json.encode([keeper.standing() for keeper in self._keepers.values()]) + b"\n")
            await writer.drain()
        except (msgspec.DecodeError, ValueError) as error:
            writer.write(msgspec.json.encode({"error": str(error)}) + b"\n")
        except ConnectionError:
            pass  # whoever asked has gone; what was asked for is done
        finally:
            writer.close()

    async def _obey(self, told: Command) -> None:
        if told.command == "apply":
            await self._apply()
        elif told.command == "stop":
            await self._stop()
            self._told_to_end.set()

    async def _apply(self) -> None:
        async with self._changing:
            wanted = {program.name: program for program in read_plan(self._run_folder)}
            await self._end([keeper for name, keeper in self._keepers.items() if wanted.get(name) != keeper.program])
            for name, program in wanted.items():
                if name not in self._keepers:
                    log = Log(self._log_folder / f"{name}.log", self._echo)
                    self._keepers[name] = Keeper(program, log, self._prepare)

    async def _stop(self) -> None:
        async with self._changing:
            await self._end(list(self._keepers.values()))

    async def _end(self, keepers: list[Keeper]) -> None:
        for stage in sorted({keeper.program.stage for keeper in keepers}, reverse=True):
            await asyncio.gather(*(keeper.stop() for keeper in keepers if keeper.program.stage == stage))
        for keeper in keepers:
            del self._keepers[keeper.program.name]


def read_plan(run_folder: Path) -> list[Program]:
    """The programs to run."""
    return msgspec.json.decode((run_folder / PLAN).read_bytes(), type=list[Program])


def _line(event: str, **fields: object) -> bytes:
    """A log line in the form of all services (assistant.telemetry, which is too much to import here)."""
    line = {"time": datetime.now(UTC), "level": "warning", "service": "supervisor", "event": event, **fields}
    return msgspec.json.encode(line) + b"\n"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def main() -> None:
    """Run in this process until told to stop. `--echo` repeats all logs on standard output, for a container."""
    run_folder, echo = Path(sys.argv[1]), sys.stdout.buffer if "--echo" in sys.argv else None
    with (run_folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another supervisor runs here already")
        uvloop.run(Supervisor(run_folder, run_folder.parent / "logs", echo).run())


if __name__ == "__main__":
    main()
