"""nlp_svc over real gRPC and a real journal, with engines and skills of the tests."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from google.protobuf.descriptor import ServiceDescriptor

from assistant.client import Channel, connect
from assistant.journal import Journal
from assistant.server import Server
from nlp_svc import effects

Serve = Callable[[ServiceDescriptor, object], Awaitable[Channel]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Serve one servicer on a unix socket; a channel to it."""
    async with AsyncExitStack() as stack:

        async def served(descriptor: ServiceDescriptor, servicer: object) -> Channel:
            address = f"unix:{tmp_path}/{descriptor.name}.sock"
            await stack.enter_async_context(Server({descriptor: servicer}, listen=address, drain_s=0))
            channel = connect(address)
            stack.push_async_callback(channel.close)
            return channel

        yield served


@pytest.fixture
def database(tmp_path: Path) -> str:
    """URL of a database of its own."""
    return f"sqlite:///{tmp_path}/nlp.db"


@pytest.fixture
async def journal(database: str) -> AsyncIterator[Journal]:
    """A journal with the tables of nlp_svc."""
    journal = await Journal.open(database, effects.MIGRATIONS)
    yield journal
    await journal.close()
