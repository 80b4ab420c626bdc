"""What one call costs, client and server together, in microseconds of CPU: plain gRPC against operations on a stream.

.venv/bin/python tests/bench/transport.py [calls per case]
"""

import asyncio
import subprocess
import sys
import time

import uvloop

from assistant import server
from assistant.api.crypto.v1 import crypto_pb2
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.client import connect

SERVICE = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]
REQUEST = crypto_pb2.OpenCallbackRequest(method="POST", query="q" * 120, body=b"x" * 480)
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


async def _measure(
    port: int, pid: int, multiplex: bool, waits: bool, in_flight: int, calls: int
) -> tuple[float, float, float]:
    """Calls per second, and CPU microseconds per call of client and server."""
    async with connect(f"127.0.0.1:{port}", multiplex=multiplex) as channel:
        stub = CryptoServiceStub(channel)
        method = stub.SealReply if waits else stub.OpenCallback
        request = crypto_pb2.SealReplyRequest(payload=b"x" * 600) if waits else REQUEST

        async def caller(count: int) -> None:
            for _ in range(count):
                await method(request, timeout=5)

        await asyncio.gather(*(caller(20) for _ in range(in_flight)))
        before = time.perf_counter(), time.process_time(), _cpu_s(pid)
        await asyncio.gather(*(caller(calls // in_flight) for _ in range(in_flight)))
        seconds, client, server_ = (
            now - then
            for now, then in zip((time.perf_counter(), time.process_time(), _cpu_s(pid)), before, strict=True)
        )
        done = calls // in_flight * in_flight
        return done / seconds, client / done * 1e6, server_ / done * 1e6


async def _compare(calls: int) -> None:
    command = [sys.executable, __file__, "serve"]
    with subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        port = int(process.stdout.readline())
        titles = ("calls/s", "client us", "server us", "sum us")
        print(f"{'transport':12} {'method':10} {'in flight':>9}", *(f"{title:>9}" for title in titles))
        for multiplex in (False, True):
            for waits in (False, True):
                for in_flight in IN_FLIGHT:
                    count = calls if multiplex and in_flight > 1 else calls // 8
                    rate, client, server_ = await _measure(port, process.pid, multiplex, waits, in_flight, count)
                    case = f"{'multiplexed' if multiplex else 'plain':12} {'async def' if waits else 'def':10}"
                    figures = (client, server_, client + server_)
                    print(f"{case} {in_flight:9} {rate:9.0f}", *(f"{figure:9.1f}" for figure in figures))
        process.stdin.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        uvloop.run(_serve())
    else:
        uvloop.run(_compare(int(sys.argv[1]) if len(sys.argv) > 1 else 16_000))
