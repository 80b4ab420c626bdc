"""What processes cost: CPU time and memory, from the kernel."""

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

Processes = Mapping[str, int]
"""The process at the root of each part of a system, by name: its children count as it."""


def cpu_s(processes: Processes) -> dict[str, float]:
    """CPU seconds used so far, by name."""
    return {name: sum(_cpu_s(pid) for pid in family(root)) for name, root in processes.items()}


def cpu_us_per_message(before: Mapping[str, float], after: Mapping[str, float], messages: int) -> dict[str, float]:
    """CPU microseconds for each of the messages, by name."""
    return {name: (after[name] - before[name]) / max(1, messages) * 1e6 for name in after}


def memory_mb(processes: Processes) -> dict[str, float]:
    """Proportional set size by name: what is shared counts once in the sum of all processes."""
    return {name: sum(_pss_mb(pid) for pid in family(root)) for name, root in processes.items()}


def family(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        children[parent].append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def _cpu_s(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the process's CPU clock: clock_getcpuclockid(3)
    except OSError:
        return 0.0


def _pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
