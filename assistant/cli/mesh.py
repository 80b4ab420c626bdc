"""`up`, `down`, `status`, `logs`, `health`: the mesh as a whole."""

import http.client
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import msgspec

from assistant import ports
from assistant.cli import control
from assistant.cli.addresses import is_free, occupant, reachable
from assistant.cli.configuration import Configuration
from assistant.cli.envoy import EdgeSettings
from assistant.cli.output import json_option, ourselves, print_json, print_table
from assistant.cli.plan import Part, parts
from assistant.cli.readiness import is_ready
from assistant.cli.simulation import SimulatorSettings, simulated_channel, with_simulation
from assistant.errors import InvalidSetting, ServiceUnavailable

_CRASHES_TO_GIVE_UP = 3
_PORT_PATIENCE_S = 3.0
"""A mesh whose supervisor was just killed needs a moment to end."""


@click.command()
@click.option("--foreground", is_flag=True, help="Stay, and print all logs: for containers.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait until everything is ready.")
def up(foreground: bool, timeout: float) -> None:
    """Start the mesh, or bring a running one in line with the configuration."""
    started = time.monotonic()
    configuration = Configuration.load()
    if problems := configuration.problems():
        raise InvalidSetting("\n".join(problems))
    mesh = parts(configuration)
    _check_ports(mesh)
    programs = [part.program for part in mesh]
    if foreground:
        control.prepare(programs)
        os.execv(sys.executable, control.command("--echo"))  # noqa: S606 - our own supervisor
    control.apply(programs)
    for part in mesh:
        _wait_until_ready(part, started + timeout)
        click.echo(f"  {part.program.name:<12} ready   {', '.join(part.addresses.values())}")
    answer = _settled_health(configuration, started + timeout)
    click.echo(f"\n{_welcome(configuration, time.monotonic() - started)}")
    if answer.get("status") != "ok":
        raise click.ClickException(f"the mesh runs, but not all is well: {json.dumps(answer, ensure_ascii=False)}")


@click.command()
def down() -> None:
    """Stop the mesh: what has begun is finished first."""
    click.echo("Stopped." if control.stop() else "Nothing was running.")


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Say how every process stands. Exit code 1 if not all are ready."""
    standing = control.standing()
    if standing is None:
        if as_json:
            print_json([])
        raise click.ClickException(f"no mesh runs here ({control.run_folder().parent}). Start it: {ourselves()} up")
    questions = {part.program.name: part for part in parts(Configuration.load())}
    with ThreadPoolExecutor() as pool:
        known = [process for process in standing if process.name in questions]
        ready = dict(
            zip((p.name for p in known), pool.map(lambda p: is_ready(questions[p.name].ready), known), strict=True)
        )
    rows = [{**msgspec.structs.asdict(process), "ready": ready.get(process.name, False)} for process in standing]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("name", "state", "ready", "pid", "up_s", "restarts", "last_exit"))
    if not all(row["ready"] for row in rows):
        sys.exit(1)


@click.command()
@click.argument("names", nargs=-1, metavar="[PROCESS]...")
@click.option("--follow", "-f", is_flag=True, help="Keep printing what is added.")
@click.option("--lines", "-n", default=20, show_default=True, help="Lines to begin with, of each process.")
def logs(names: tuple[str, ...], follow: bool, lines: int) -> None:
    """Print the logs of all processes, or of those named."""
    files = sorted(control.log_folder().glob("*.log"))
    if unknown := set(names) - {file.stem for file in files}:
        there_are = ", ".join(file.stem for file in files) or "none"
        raise click.ClickException(f"no log of {', '.join(sorted(unknown))}: there are {there_are}")
    wanted = [file for file in files if not names or file.stem in names]
    for file in wanted:
        for line in _tail(file, lines):
            click.echo(f"{file.stem}: {line}")
    if follow:
        for name, line in _added(wanted):
            click.echo(f"{name}: {line}")


@click.command()
def health() -> None:
    """Ask the mesh, through Envoy, how it is. Exit code 1 if not all is well."""
    configuration = Configuration.load()
    answer = ask_health(configuration)
    if answer is None:
        raise ServiceUnavailable(f"nothing answers at http://{_edge(configuration)}/health. Is it up? {ourselves()} up")
    print_json(answer)
    if answer.get("status") != "ok":
        sys.exit(1)


def ask_health(configuration: Configuration) -> dict[str, Any] | None:
    """What `/health` says through Envoy. None: nobody answered."""
    connection = http.client.HTTPConnection(_edge(configuration), timeout=6)
    try:
        connection.request("GET", "/health")
        answer = json.loads(connection.getresponse().read())
        return answer if isinstance(answer, dict) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _edge(configuration: Configuration) -> str:
    return reachable(configuration.source.read(EdgeSettings, "edge").http)


def _check_ports(mesh: Iterable[Part]) -> None:
    """Name every port that somebody else has. Raises InvalidSetting."""
    ours = {process.name for process in control.standing() or []}
    deadline = time.monotonic() + _PORT_PATIENCE_S
    while busy := [
        (name, address)
        for part in mesh
        if part.program.name not in ours
        for name, address in part.addresses.items()
        if not is_free(address)
    ]:
        if time.monotonic() > deadline:
            lines = [
                f"{address} ({name}) is taken{' by ' + who if (who := occupant(address.port)) else ''}"
                for name, address in busy
            ]
            offset = ports.OFFSET_VARIABLE
            raise InvalidSetting(
                "\n".join(lines)
                + f"\nStop what is there, move all ports with {offset}, such as `{offset}=1000 {ourselves()} up`, "
                f"or move one: `{ourselves()} config set {busy[0][0]} HOST:PORT`"
            )
        time.sleep(0.1)


def _wait_until_ready(part: Part, deadline: float) -> None:
    name = part.program.name
    while not is_ready(part.ready):
        process = next((process for process in control.standing() or [] if process.name == name), None)
        if process is None or process.restarts >= _CRASHES_TO_GIVE_UP or time.monotonic() > deadline:
            how = f"keeps ending ({process.last_exit})" if process and process.restarts else "is not ready"
            log = control.log_folder() / f"{name}.log"
            tail = "\n".join(f"  {line}" for line in _tail(log, 15))
            raise ServiceUnavailable(f"{name} {how}. The end of its log, {log}:\n{tail}")
        time.sleep(0.05)


def _settled_health(configuration: Configuration, deadline: float) -> dict[str, Any]:
    """What `/health` says once it is well, or at the deadline."""
    while True:
        answer = ask_health(configuration) or {"status": "no answer"}
        if answer.get("status") == "ok" or time.monotonic() > deadline:
            return answer
        time.sleep(0.1)


def _welcome(configuration: Configuration, seconds: float) -> str:
    edge = configuration.source.read(EdgeSettings, "edge")
    channels = ", ".join(configuration.accounts()) or f"{simulated_channel(configuration)} (simulated)"
    lines = [
        f"The mesh is up ({seconds:.1f} s), channels: {channels}.",
        f"  callbacks  {_entrances(edge)}",
        f"  health     curl http://localhost:{edge.http.port}/health",
        f"  logs       {ourselves()} logs -f    (files: {control.log_folder()})",
    ]
    mesh = with_simulation(configuration)
    if channel := simulated_channel(configuration):
        page = mesh.source.read(SimulatorSettings, "simulator").listen
        lines.append(f"  chat       http://{page}    write as an employee of a simulated company")
        lines.append(f"Your own account: {ourselves()} config set channels.{channel} --help")
    tried = next(iter(mesh.accounts()), None)
    if tried:
        lines.append(f"Try: {ourselves()} test {tried} --message ping")
    return "\n".join(lines)


def _entrances(edge: EdgeSettings) -> str:
    plain = f"http://localhost:{edge.http.port}/<channel> and " if edge.profile == "development" else ""
    return f"{plain}https://localhost:{edge.https.port}/<channel>"


def _tail(file: Path, count: int) -> list[str]:
    if not file.exists():
        return []
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - 500 * max(count, 1)))
        return log.read().decode(errors="replace").splitlines()[-count:] if count else []


def _added(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Lines as they are added, for ever, with the names of their logs."""
    ends = {file: file.stat().st_size for file in files}
    while True:
        for file, end in ends.items():
            size = file.stat().st_size if file.exists() else 0
            with file.open("rb") as log:
                log.seek(end if size >= end else 0)  # a smaller file is a new one
                whole = log.read().rpartition(b"\n")[0]
            ends[file] = (end if size >= end else 0) + len(whole) + bool(whole)
            for line in whole.splitlines():
                yield file.stem, line.decode(errors="replace")
        time.sleep(0.2)
