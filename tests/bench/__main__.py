"""Runs the benchmark: `python -m tests.bench [--quick] [--only SECTION ...] [--write docs/performance.md]`."""

import argparse
import tempfile
import time
from pathlib import Path

from tests.bench import table
from tests.bench.load import require_wrk
from tests.bench.sections import ALL, Run


def main() -> None:
    """Run the sections, then print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round each: below 90 seconds, less exact")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL), help="some sections only")
    parser.add_argument("--offset", type=int, default=9000, help="by how much all ports are moved")
    given = parser.parse_args()
    require_wrk()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="assistant-bench-") as folder:
        run = Run(Path(folder), given.offset, given.quick)
        for name in given.only:
            ALL[name](run)
    run.say("The comparison\n\n" + table.goals(run.goals))
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
