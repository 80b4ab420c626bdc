"""What one call costs, client and server together, in microseconds of CPU: plain gRPC against operations on a stream.

.venv/bin/python tests/bench/transport.py [calls per case]
"""

import asyncio
import itertools
import subprocess
import sys
import time
from dataclasses import dataclass

import uvloop

from assistant import server
from assistant.api.crypto.v1 import crypto_pb2
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.client import connect

SERVICE = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]
REQUEST = crypto_pb2.OpenCallbackRequest(method="POST", query="q" * 120, body=b"x" * 480)
WAITING_REQUEST = crypto_pb2.SealReplyRequest(payload=b"x" * 600)
IN_FLIGHT = (1, 16, 64)


class Trivial:
    """Methods that do nothing, so that only the way to them costs."""

    def OpenCallback(
        self, request: crypto_pb2.OpenCallbackRequest, call: server.Call
    ) -> crypto_pb2.OpenCallbackResponse:
        return crypto_pb2.OpenCallbackResponse(payload=request.body, key_id="configured")

    async def SealReply(self, request: crypto_pb2.SealReplyRequest, call: server.Call) -> crypto_pb2.SealReplyResponse:
        return crypto_pb2.SealReplyResponse(body=request.payload)


async def _serve() -> None:
    trivial = server.Server({SERVICE: Trivial()}, listen="127.0.0.1:0", drain_s=0)
    async with trivial:
        print(trivial.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def _cpu_s(pid: int) -> float:
    return time.clock_gettime((~pid << 3) | 2)  # the process's CPU clock: clock_getcpuclockid(3)


async def _measure(port: int, pid: int, case: "Case", calls: int) -> tuple[float, float, float]:
    """Calls per second, and CPU microseconds per call of client and server."""
    async with connect(f"127.0.0.1:{port}", multiplex=case.multiplex) as channel:
        stub = CryptoServiceStub(channel)
        method, request = (stub.SealReply, WAITING_REQUEST) if case.waits else (stub.OpenCallback, REQUEST)

        async def caller(count: int) -> None:
            for _ in range(count):
                await method(request, timeout=5)

        async def together(count: int) -> None:
            await asyncio.gather(*(caller(count) for _ in range(case.in_flight)))

        await together(20)
        before = time.perf_counter(), time.process_time(), _cpu_s(pid)
        await together(calls // case.in_flight)
        after = time.perf_counter(), time.process_time(), _cpu_s(pid)
        seconds, client, server_ = (now - then for now, then in zip(after, before, strict=True))
        done = calls // case.in_flight * case.in_flight
        return done / seconds, client / done * 1e6, server_ / done * 1e6


@dataclass(frozen=True)
class Case:
    """What is measured."""

    multiplex: bool
    waits: bool
    in_flight: int


async def _compare(port: int, pid: int, calls: int) -> None:
    print("transport    method     in flight   calls/s client us server us  sum us")
    for case in itertools.starmap(Case, itertools.product((False, True), (False, True), IN_FLIGHT)):
        count = calls if case.multiplex and case.in_flight > 1 else calls // 8
        rate, client, server_ = await _measure(port, pid, case, count)
        transport, method = "multiplexed" if case.multiplex else "plain", "async def" if case.waits else "def"
        costs = f"{client:9.1f} {server_:9.1f} {client + server_:7.1f}"
        print(f"{transport:12} {method:10} {case.in_flight:9} {rate:9.0f} {costs}")


def main() -> None:
    """Compare all cases against a server in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.transport", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        uvloop.run(_compare(port, process.pid, int(sys.argv[1]) if len(sys.argv) > 1 else 16_000))
        process.stdin.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        uvloop.run(_serve())
    else:
        main()
