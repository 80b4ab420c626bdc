"""gRPC polls its sockets as we ask it to: whatever it does not know, it ignores but for a line on standard error."""

import os
import subprocess
import sys

CALL = """
import asyncio, grpc, assistant
from grpc_health.v1.health_pb2 import DESCRIPTOR
from assistant.server import Server

async def main():
    async with Server({}, listen="127.0.0.1:0", drain_s=0.0) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 10)
asyncio.run(main())
"""


def _run(prelude: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    done = subprocess.run(
        [sys.executable, "-c", prelude + CALL], env=inherited | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_grpc_knows_what_we_ask_for():
    assert "experiment" not in _run("import assistant").lower()


def test_it_would_say_if_it_did_not():
    assert "Unknown experiment: no_such_thing" in _run("import assistant", GRPC_EXPERIMENTS="no_such_thing")
