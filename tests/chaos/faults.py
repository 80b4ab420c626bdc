"""What goes wrong in a chaos run. Each fault is real: processes die or stop, disks fill, connections break."""

import asyncio
import os
import random
import resource
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from tests.chaos.mesh import Mesh
from tests.chaos.platform import Platform


class Fault(ABC):
    """Something that goes wrong for a while."""

    name: ClassVar[str]
    settle_s: ClassVar[float] = 30.0
    """Until then a mesh must have got over it: every message is answered."""

    def __init__(self, mesh: Mesh, platform: Platform) -> None:
        self.mesh = mesh
        self.platform = platform

    def impossible(self) -> str:
        """Why it cannot be done here. Empty: it can."""
        return ""

    @abstractmethod
    async def strike(self) -> None:
        """Go wrong, and return when that is over."""


class PlatformSlow(Fault):
    """The platform's API takes two seconds for an answer."""

    name = "platform slow"

    async def strike(self) -> None:
        self.platform.desk.latency_s = 2.0
        await asyncio.sleep(6.0)
        self.platform.desk.latency_s = 0.0


class PlatformDown(Fault):
    """The platform's API breaks every connection."""

    name = "platform down"

    async def strike(self) -> None:
        self.platform.desk.down = True
        await asyncio.sleep(5.0)
        self.platform.desk.down = False


class PlatformFails(Fault):
    """The platform's API answers HTTP 503."""

    name = "platform 5xx"

    async def strike(self) -> None:
        self.platform.desk.status = 503
        await asyncio.sleep(5.0)
        self.platform.desk.status = 200


class RateLimited(Fault):
    """The platform's API says that we call too often."""

    name = "rate limited"
    settle_s = 90.0  # WeCom counts by the minute, so we wait for one

    async def strike(self) -> None:
        self.platform.desk.error_code = 45009
        await asyncio.sleep(2.0)
        self.platform.desk.error_code = 0


class TokenRevoked(Fault):
    """Access tokens become void in the middle, three times."""

    name = "token revoked"

    async def strike(self) -> None:
        for _ in range(3):
            self.platform.desk.revoke_tokens()
            await asyncio.sleep(1.0)


class NlpHangs(Fault):
    """One process of nlp_svc stops dead for longer than a callback may be held, then goes on."""

    name = "nlp_svc hangs"

    async def strike(self) -> None:
        pid = self.mesh.pid("nlp_svc")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(7.0)
        finally:
            os.kill(pid, signal.SIGCONT)


class StreamCut(Fault):
    """Connections between the gateway and the services break in the middle of what they carry."""

    name = "stream cut"

    def impossible(self) -> str:
        return "" if self.mesh.proxies else "this mesh has no proxies between its processes"

    async def strike(self) -> None:
        for _ in range(3):
            for proxy in self.mesh.proxies:
                await asyncio.wait_for(proxy.cut(), 20.0)
                await asyncio.sleep(0.2)


class DiskFull(Fault):
    """What keeps the inbox and the outbox can write no more, for a while.

    By a limit on the size of files, which a process can be given from outside without any rights: to SQLite it is
    an error of writing, like a full disk.
    """

    name = "disk full"

    def impossible(self) -> str:
        return "" if not self.mesh.shared else "a full disk of PostgreSQL is PostgreSQL's own matter"

    async def strike(self) -> None:
        pids = [pid for name in ("gateway", "reply_svc") for pid in family(self.mesh.pid(name))]
        with _file_limit(pids, 4096):
            await asyncio.sleep(7.0)


@contextmanager
def _file_limit(pids: list[int], size_bytes: int) -> Iterator[None]:
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


class ClockJumps(Fault):
    """The clocks of the services behind the gateway jump two minutes ahead, two behind, then are right again."""

    name = "clock jumps"

    def impossible(self) -> str:
        return "" if self.mesh.clock else "libfaketime is not installed (Debian: apt-get install faketime)"

    async def strike(self) -> None:
        assert self.mesh.clock is not None
        for offset in ("+120", "-120", "+0"):
            self.mesh.clock.write_text(f"{offset}\n")
            await asyncio.sleep(3.0)


class Kill:
    """A process ends as the kernel ends it when memory is short."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self._mesh = mesh
        self._random = random.Random(seed)
        self._next: list[str] = []

    async def strike(self) -> str:
        """Kill the next process; its name. All get their turn, in an order that is never the same."""
        if not self._next:
            self._next = [*self._mesh.names, *(f"{name} worker" for name in self._mesh.replicas("gateway"))]
            self._random.shuffle(self._next)
        name = self._next.pop()
        pid = await self._pid(name)
        os.kill(pid, signal.SIGKILL)
        return name

    async def _pid(self, name: str) -> int:
        while True:
            found = family(self._mesh.pid(name.removesuffix(" worker")))
            if len(found) > name.endswith(" worker"):
                return found[-1] if name.endswith(" worker") else found[0]
            await asyncio.sleep(0.05)  # it has just been killed


def family(pid: int | None) -> list[int]:
    """A process and its children."""
    if pid is None:
        return []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *map(int, children)]


FAULTS: dict[str, type[Fault]] = {
    fault.name.replace(" ", "-"): fault
    for fault in (
        *(PlatformSlow, PlatformDown, PlatformFails, TokenRevoked, NlpHangs, StreamCut, DiskFull, ClockJumps),
        RateLimited,
    )
}
