"""CPU and memory of a container, as the files of its cgroup tell them."""

from pathlib import Path

import pytest

from assistant.resources import Resources

GIB = float(1 << 30)
V2 = {
    "cpu.max": "150000 100000",
    "cpu.stat": "usage_usec 7500000\nuser_usec 5000000",
    "memory.max": str(1 << 30),
    "memory.current": str(600 << 20),
    "memory.stat": f"anon 1\ninactive_file {100 << 20}",
}
V1 = {
    "cpu/cpu.cfs_quota_us": "150000",
    "cpu/cpu.cfs_period_us": "100000",
    "cpuacct/cpuacct.usage": "7500000000",
    "memory/memory.limit_in_bytes": str(1 << 30),
    "memory/memory.usage_in_bytes": str(600 << 20),
    "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {100 << 20}",
}
EXPECTED = {
    "assistant_cpu_seconds": 7.5,
    "assistant_cpu_limit_cores": 1.5,
    "assistant_memory_bytes": float(500 << 20),
    "assistant_memory_limit_bytes": GIB,
}


def measured(folder: Path, files: dict[str, str], cgroup: str) -> dict[str, float]:
    """What is told of a process in this group, with these files where cgroups are mounted."""
    process, mount = folder / "self", folder / "cgroup"
    process.mkdir()
    (process / "cgroup").write_text(cgroup)
    (process / "statm").write_text("9000 256 100 1 0 500 0")
    for name, content in files.items():
        file = mount / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return {metric.name: metric.samples[0].value for metric in Resources(mount, process).collect()}


@pytest.mark.parametrize(
    ("files", "cgroup"),
    [
        (V2, "0::/\n"),
        ({f"kubepods/pod1/{name}": content for name, content in V2.items()}, "0::/kubepods/pod1\n"),
        (V2, "0::/docker/of-the-host\n"),
        (V1, "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/\n"),
    ],
    ids=["v2", "v2 below the mount", "v2 seen from inside", "v1"],
)
def test_a_containers_limits_and_use_are_told(tmp_path: Path, files: dict[str, str], cgroup: str) -> None:
    """Both versions of cgroups, with the group at the mount or below it, give the same numbers."""
    assert measured(tmp_path, files, cgroup) == EXPECTED


@pytest.mark.parametrize(
    "files",
    [
        {},
        {**V2, "cpu.max": "max 100000", "memory.max": "max"},
        {**V1, "cpu/cpu.cfs_quota_us": "-1", "memory/memory.limit_in_bytes": "9223372036854771712"},
    ],
    ids=["no cgroups", "v2", "v1"],
)
def test_without_limits_it_is_the_process_against_the_machine(tmp_path: Path, files: dict[str, str]) -> None:
    """What others on the machine use is not counted where nothing limits us together."""
    told = measured(tmp_path, files, "0::/\n")
    assert told["assistant_cpu_limit_cores"] >= 1
    assert told["assistant_memory_limit_bytes"] > told["assistant_memory_bytes"] == 256 * 4096
    assert 0 < told["assistant_cpu_seconds"] != 7.5
