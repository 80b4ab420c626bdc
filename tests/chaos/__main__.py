"""Runs chaos: `python -m tests.chaos --kills 300 --store sqlite`. Exit code 1 if a promise was broken."""

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvloop

from tests.chaos.faults import FAULTS
from tests.chaos.run import Plan, run
from tests.postgres import create_database, postgres


def main() -> None:
    """Run, print the table, keep the folder if something broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite", help="postgres: two of everything")
    parser.add_argument("--kills", type=int, default=30, help="processes to kill")
    parser.add_argument("--pause", type=float, default=1.0, help="longest pause between recovery and the next kill, s")
    parser.add_argument("--faults", nargs="*", choices=[*FAULTS, "all"], default=[], help="what else goes wrong")
    parser.add_argument("--rate", type=float, default=60.0, help="messages per second")
    parser.add_argument("--members", type=int, default=150, help="members who write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--offset", type=int, default=14_000, help="by how much all ports are moved")
    parser.add_argument("--diary", type=Path, help="write every fault and every message to this file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    faults = list(FAULTS) if "all" in given.faults else given.faults
    plan = Plan(given.kills, given.pause, faults, given.rate, given.members, given.seed, given.offset)
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        with _databases(given.store, home) as databases:
            report = uvloop.run(run(plan, home, databases))
    except asyncio.CancelledError:
        sys.exit(f"Ended before its time. What the processes wrote: {home}/logs")
    print(report.table(given.store))
    if given.json:
        given.json.write_text(json.dumps(report.figures(given.store), indent=2) + "\n")
    if given.diary:
        report.write_diary(given.diary)
    if report.broken:
        report.write_diary(home / "diary")
        sys.exit(f"Promises were broken: {report.broken}. Every message: {home}/diary, logs: {home}/logs")
    shutil.rmtree(home)


@contextlib.contextmanager
def _databases(store: str, home: Path) -> Iterator[dict[str, str]]:
    if store == "sqlite":
        yield {}
        return
    with postgres(home / "postgres") as server:
        yield {section: create_database(server, section) for section in ("gateway", "nlp", "reply")}


if __name__ == "__main__":
    main()
