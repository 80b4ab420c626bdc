"""What an idle conversation occupies in memory while the gateway remembers it.

It is a kilobyte or two, which the process's size would hide: so what Python allocates for it is counted, in the
gateway's own `Conversations` on an empty inbox.
"""

import asyncio
import tempfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

from assistant.api.message.v1.message_pb2 import InboundMessage
from assistant.api.storage.v1.storage_pb2 import TurnRecord
from assistant.journal import Journal
from gateway.conversations import Conversations
from gateway.inbox import MIGRATIONS, Inbox
from tests.bench.scaling.growth import Growth
from tests.bench.sections import Run
from tests.bench.table import number, table

_CONVERSATIONS = 5_000
_TURNS = (0, 1, 10, 50)
_TEXTS: Mapping[str, tuple[str, str]] = {
    "of a word": ("ping", "pong"),
    "of 30 and 200 characters": ("问" * 30, "答" * 200),
}
"""What a member writes, and what the answer is."""


def remembered(run: Run) -> list[Growth]:
    """Conversations of more and more turns."""
    found = {title: asyncio.run(_kb_each(*texts)) for title, texts in _TEXTS.items()}
    rows = [[str(turns), *(number(kb_each[turns]) for kb_each in found.values())] for turns in _TURNS]
    header = ["turns", *(f"KB, texts {title}" for title in found)]
    run.say(
        f"**Idle conversations**: what each occupies in the gateway, {number(_CONVERSATIONS)} of them\n\n"
        + table(header, rows)
    )
    return [
        Growth(
            cause="conversations remembered",
            least="0",
            most="10,000",
            figure="memory of the gateway, 10 turns each",
            unit="MB",
            before=0,
            after=found["of 30 and 200 characters"][10] * 10_000 / 1024,
            each=found["of 30 and 200 characters"][10],
        )
    ]


async def _kb_each(said: str, answered: str) -> dict[int, float]:
    """KB for each conversation, by its turns."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        inbox = Inbox(await Journal.open(f"sqlite://{Path(folder)}/inbox.db", MIGRATIONS), "bench:1")
        await inbox.open()
        message, record = InboundMessage(), TurnRecord()
        message.content.add().text.text = said
        message.sent_at.GetCurrentTime()
        record.content.add().text.text = answered
        record.answered_at.GetCurrentTime()
        conversations = Conversations(inbox, max(_TURNS), capacity=_CONVERSATIONS)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        had = 0
        for turns in _TURNS:
            for number_ in range(_CONVERSATIONS):
                conversation = await conversations.get(f"wecom:default:member{number_:06}")
                for seq in range(had, turns):
                    conversation.remember(seq, message, record)
            found[turns] = (tracemalloc.get_traced_memory()[0] - before) / 1024 / _CONVERSATIONS
            had = turns
        tracemalloc.stop()
        await inbox.close()
    return found
