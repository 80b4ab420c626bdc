"""What is done every few seconds."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.api.reply.v1.reply_pb2 import ListDeliveriesRequest
from assistant.journal import Journal
from reply_svc.clock import Clock
from reply_svc.outbox import Outbox
from reply_svc.upkeep import Upkeep

if TYPE_CHECKING:
    from conftest import Reply


def upkeep(reply: "Reply", outbox: Outbox, told: "asyncio.Queue[bool]", keep_days: float) -> "asyncio.Task[None]":
    work = Upkeep(outbox, reply.lanes, reply.connections, Clock(), keep_days=keep_days, serving=told.put_nowait)
    return asyncio.create_task(work.run())


async def test_finished_deliveries_are_forgotten_when_they_are_old(reply: "Reply") -> None:
    """Kept for as long as the operator says, then gone."""
    await reply.deliver("old")
    await reply.over("old")
    await asyncio.sleep(0.01)
    told: asyncio.Queue[bool] = asyncio.Queue()
    running = upkeep(reply, reply.outbox, told, keep_days=0.001 / 86_400)
    async with asyncio.timeout(5):
        while (await reply.stub.ListDeliveries(ListDeliveriesRequest(), timeout=5)).deliveries:
            await asyncio.sleep(0.01)
    running.cancel()


async def test_a_young_delivery_is_kept(reply: "Reply") -> None:
    """Forgetting looks at the age; and as the database takes rows, the service serves."""
    await reply.deliver("new")
    await reply.over("new")
    told: asyncio.Queue[bool] = asyncio.Queue()
    running = upkeep(reply, reply.outbox, told, keep_days=7)
    assert await asyncio.wait_for(told.get(), 5) is True
    assert (await reply.look("new")).request_id == "new"
    running.cancel()


async def test_a_database_that_takes_nothing_is_told(reply: "Reply", tmp_path: Path) -> None:
    """Not serving, as nothing could be accepted. A closed journal refuses what is written as a full disk does."""
    journal = await Journal.open(f"sqlite:///{tmp_path}/closed.db", Outbox.migrations())
    await journal.close()
    told: asyncio.Queue[bool] = asyncio.Queue()
    running = upkeep(reply, Outbox(journal, "test:2"), told, keep_days=7)
    assert await asyncio.wait_for(told.get(), 5) is False
    running.cancel()
