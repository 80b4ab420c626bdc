"""The process that delivers: `python -m reply_svc`."""

import asyncio
import socket
from functools import partial

import aiohttp

from assistant import telemetry, tls
from assistant.api.reply.v1.reply_pb2 import DESCRIPTOR
from assistant.journal import Journal
from assistant.server import Server, run, serve
from assistant.settings import Source
from reply_svc.accounts import Connections
from reply_svc.clock import Clock, comparison
from reply_svc.lanes import Lanes
from reply_svc.outbox import Outbox
from reply_svc.service import ReplyService
from reply_svc.settings import ReplySettings
from reply_svc.upkeep import Upkeep

_SERVICE = DESCRIPTOR.services_by_name["ReplyService"]


def main() -> None:
    """Serve until told to stop."""
    telemetry.start("reply_svc")
    run(_main())


async def _main() -> None:
    source, clock = Source.load(), Clock()
    settings = source.read(ReplySettings, "reply")
    # Parallel calls are bounded per account; cookies would be one account's word in another one's request.
    connector, cookies = aiohttp.TCPConnector(limit=0), aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, cookie_jar=cookies, trace_configs=[comparison()]) as http:
        connections = Connections.configured(source, http, clock)
        journal = await Journal.open(settings.database, Outbox.migrations())
        outbox = Outbox(journal, f"{socket.gethostname()}:{settings.listen.port}")
        await outbox.open()
        lanes = Lanes(outbox, connections, clock)
        await lanes.recover()  # before anything new is accepted: it is later in its lane
        service = ReplyService(outbox, lanes, connections, settings.max_open)
        server = Server(
            {_SERVICE: service},
            listen=settings.listen,
            listen_setting="reply.listen",
            admin=settings.admin,
            admin_setting="reply.admin",
            identity=tls.identity(source, "reply_svc"),
            callers={_SERVICE.full_name: settings.callers},
        )
        serving = partial(server.health.set, _SERVICE.full_name)
        upkeep = Upkeep(outbox, lanes, connections, clock, keep_days=settings.keep_days, serving=serving)
        running = asyncio.create_task(upkeep.run())
        await serve(server)
        running.cancel()
        await lanes.close()
        connections.close()
        await outbox.close()
        await journal.close()


if __name__ == "__main__":
    main()
