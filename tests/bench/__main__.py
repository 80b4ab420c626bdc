"""Runs the benchmark: `python -m tests.bench [--quick] [--only SECTION ...] [--write FILE]`."""

import argparse
import datetime
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import sections, table
from tests.bench.load import require_wrk
from tests.bench.peers import peers
from tests.bench.scaling import scaling
from tests.bench.sections import Run

SPEED = (sections.throughput, sections.active, sections.slow, sections.start, sections.exactness)
SECTIONS: dict[str, Callable[[Run], None]] = {section.__name__: section for section in (*SPEED, peers, scaling)}
_MEASURED = re.compile("(?<=<!-- measured -->\n).*(?=\n<!-- end -->)", re.DOTALL)


def main() -> None:
    """Run the sections, then print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round each: below 90 seconds, less exact")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, help="some sections only; else all but peers and scaling"
    )
    parser.add_argument("--offset", type=int, default=9000, help="by how much all ports are moved")
    parser.add_argument("--write", type=Path, help="put the result into this document, between its marks")
    given = parser.parse_args()
    require_wrk()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="assistant-bench-") as folder:
        run = Run(Path(folder), given.offset, given.quick)
        run.say(_machine())
        for name in given.only or [section.__name__ for section in SPEED]:
            SECTIONS[name](run)
    if run.goals:
        run.say("The comparison\n\n" + table.goals(run.goals))
    print(f"\n{time.monotonic() - began:.0f} s")
    if given.write:
        _write(given.write, run)


def _write(file: Path, run: Run) -> None:
    """Keep the result, the comparison first."""
    machine, *details = [text for text in run.texts if text]
    measured = "\n\n".join((machine, *details[-1:], *details[:-1]) if run.goals else (machine, *details))
    text, replaced = _MEASURED.subn(lambda _: f"\n{measured}\n", file.read_text())
    if not replaced:
        raise SystemExit(f"{file} has no marks: <!-- measured --> and <!-- end -->")
    file.write_text(text)


def _machine() -> str:
    """Where and when this runs."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    now = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{now}: {os.cpu_count()} cores ({cpu.partition(': ')[2] or platform.machine()}), {memory_gb:.0f} GB, "
        f"Linux {platform.release()}, Python {platform.python_version()}; load before the run {os.getloadavg()[0]:.1f}."
    )


if __name__ == "__main__":
    main()
