"""CPU and memory that a process may use, and uses: against the limits of its container if there are any.

Without a container, or without a limit of it, it is what the process itself uses, of the whole machine. So the same
alert serves Docker, Kubernetes and a process on a machine. Source: cgroups(7), both versions.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_CGROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ENDLESS_BYTES = 1 << 60
"""A limit of memory above this is none: version 1 says "none" with a number."""


class Resources(Collector):
    """Reads a few small files each time that metrics are asked for."""

    def __init__(self, cgroups: Path = _CGROUPS, process: Path = _PROCESS) -> None:
        """`cgroups` is where cgroups are mounted, `process` the folder of this process in /proc."""
        self._process = process
        paths: dict[str, str] = {}
        for line in _lines(process / "cgroup"):
            _, controllers, path = line.split(":", 2)
            paths |= dict.fromkeys(controllers.split(","), path.strip("/"))
        # Version 2 has one tree of groups, version 1 one for each controller. A container sees its own group as the
        # root of the tree, whatever its path is said to be.
        self._folders = {
            controller: [
                cgroups / paths.get("", ""),
                cgroups,
                cgroups / controller / paths.get(controller, ""),
                cgroups / controller,
            ]
            for controller in ("cpu", "cpuacct", "memory")
        }

    def collect(self) -> Iterator[Metric]:
        """The four metrics."""
        cpu_limit, memory_limit = self._cpu_limit_cores(), self._memory_limit_bytes()
        cpu_s = self._cpu_s() if cpu_limit is not None else None
        memory = self._memory_bytes() if memory_limit is not None else None
        yield CounterMetricFamily(
            "assistant_cpu_seconds",
            "CPU time used: of the container if it limits it, else of this process.",
            value=time.process_time() if cpu_s is None else cpu_s,
        )
        yield GaugeMetricFamily(
            "assistant_cpu_limit_cores",
            "CPU that may be used, in cores: the container's limit, else all of the machine.",
            value=cpu_limit or float(len(os.sched_getaffinity(0))),
        )
        yield GaugeMetricFamily(
            "assistant_memory_bytes",
            "Memory used: of the container if it limits it, without what the kernel can drop, else of this process.",
            value=self._resident_bytes() if memory is None else memory,
        )
        yield GaugeMetricFamily(
            "assistant_memory_limit_bytes",
            "Memory that may be used: the container's limit, else all of the machine.",
            value=memory_limit or float(os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES),
        )

    def _cpu_limit_cores(self) -> float | None:
        quota, period = (self._read("cpu", "cpu.max").split() or ["max", "1"])[:2]
        if quota == "max":
            quota = self._read("cpu", "cpu.cfs_quota_us") or "-1"
            period = self._read("cpu", "cpu.cfs_period_us") or "1"
        return float(quota) / float(period) if float(quota) > 0 else None

    def _cpu_s(self) -> float | None:
        if used := self._keyed("cpu", "cpu.stat").get("usage_usec"):
            return used / 1e6
        used_ns = self._read("cpuacct", "cpuacct.usage")
        return float(used_ns) / 1e9 if used_ns else None

    def _memory_limit_bytes(self) -> float | None:
        limit = self._read("memory", "memory.max") or self._read("memory", "memory.limit_in_bytes") or "max"
        return float(limit) if limit != "max" and int(limit) < _ENDLESS_BYTES else None

    def _memory_bytes(self) -> float | None:
        used = self._read("memory", "memory.current") or self._read("memory", "memory.usage_in_bytes")
        if not used:
            return None
        details = self._keyed("memory", "memory.stat")
        return float(used) - details.get("total_inactive_file", details.get("inactive_file", 0.0))

    def _resident_bytes(self) -> float:
        (sizes,) = _lines(self._process / "statm") or ["0 0"]
        return float(sizes.split()[1]) * _PAGE_BYTES

    def _keyed(self, controller: str, file: str) -> dict[str, float]:
        pairs = (line.split() for line in self._read(controller, file).splitlines())
        return {key: float(value) for key, value in pairs}

    def _read(self, controller: str, file: str) -> str:
        """What a file of our group says; empty if there is none."""
        for folder in self._folders[controller]:
            if lines := _lines(folder / file):
                return "\n".join(lines)
        return ""


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").splitlines()
    except OSError:
        return []
