"""A server in a process of its own, to be killed. Its argument is where it listens; prints "ready"."""

import asyncio
import sys

from assistant import server, telemetry
from assistant.api.crypto.v1 import crypto_pb2


class Crypto:
    """Answers with its request, after as many seconds as the query says."""

    async def SealReply(self, request, call):
        await asyncio.sleep(float(request.query or 0))
        return crypto_pb2.SealReplyResponse(body=request.payload)


async def main() -> None:
    service = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]
    running = server.Server({service: Crypto()}, listen=sys.argv[1], drain_s=0.2)
    asyncio.get_running_loop().call_later(0, print, "starting")
    await server.serve(running)


telemetry.start("killed")
server.run(main())
