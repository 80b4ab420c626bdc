"""The counted run: what members see of a mesh in trouble. Lost, doubled and reordered answers must be none.

Every member writes numbered messages without waiting for answers; every tenth callback comes twice. Answers are
read where a member reads them: in the HTTP answer, and at the platform's API. The order that counts is that of the
inbox: callbacks of one member travel on connections of their own, and on a busy machine one overtakes another.
"""

import asyncio
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from assistant import plugin
from assistant.api.message.v1.message_pb2 import InboundMessage
from tests.bench.load import PATH
from tests.bench.systems import Helper

_PAUSE_S = 0.2
"""Between two messages of a member: as fast as anybody writes, and as the engine answers, so that they queue up."""
_SETTLE_S = 30.0


@dataclass(frozen=True)
class Count:
    """What became of the messages."""

    messages: int
    lost: int
    doubled: int
    reordered: int
    passive: int
    active: int


async def count(
    url: str, credentials: Mapping[str, Any], platform: Helper, inbox: Path, members: int, messages_each: int
) -> Count:
    """Play the members, and compare what they were answered with what they wrote."""
    simulator = plugin.load("channels", "wecom", "simulator")(credentials)
    before = len(platform.get("/delivered")["messages"])
    passive: dict[str, list[str]] = defaultdict(list)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def post(member: str, callback: plugin.Callback, *, repeated: bool) -> None:
            address = URL(f"{url}{PATH}?{callback.query}", encoded=True)
            async with http.post(address, data=callback.body, headers=dict(callback.headers)) as response:
                answer = simulator.read_reply(await response.read()) if response.status == 200 else None
                if answer is not None and not repeated:
                    passive[member].append(answer)

        async def play(member: str) -> None:
            posts = []
            for number in range(messages_each):
                callback, _ = simulator.callback(f"{member} {number}", member)
                posts.append(asyncio.create_task(post(member, callback, repeated=False)))
                await asyncio.sleep(_PAUSE_S)
                if number % 10 == 0:
                    posts.append(asyncio.create_task(post(member, callback, repeated=True)))
            await asyncio.gather(*posts)

        names = [f"exact{number:06}" for number in range(members)]
        await asyncio.gather(*(play(name) for name in names))

    total = members * messages_each
    by_callback = sum(map(len, passive.values()))
    delivered = await _settled(platform, before, total - by_callback)
    active: dict[str, list[str]] = defaultdict(list)
    for member, text in delivered:
        active[member].append(text)
    seen = Counter(text for name in names for text in passive[name] + active[name])
    wanted = [f"{name} {number}" for name in names for number in range(messages_each)]
    place = _places(inbox)
    return Count(
        messages=total,
        lost=sum(text not in seen for text in wanted),
        doubled=sum(times - 1 for times in seen.values()),
        reordered=sum(_inversions(way[name], place) for way in (passive, active) for name in names),
        passive=by_callback,
        active=len(delivered),
    )


async def _settled(platform: Helper, before: int, expected: int) -> list[tuple[str, str]]:
    """What the platform was sent since, once all is there or nobody can still be waiting."""
    for _ in range(int(_SETTLE_S / 0.2)):
        if platform.get("/delivered/count")["count"] >= before + expected:
            break
        await asyncio.sleep(0.2)
    await asyncio.sleep(0.5)  # one too many would come now
    messages: list[tuple[str, str]] = [tuple(message) for message in platform.get("/delivered")["messages"][before:]]
    return messages


def _places(inbox: Path) -> dict[str, int]:
    """Where each text stands in the inbox, an SQLite file."""
    with closing(sqlite3.connect(f"file:{inbox}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT body, seq FROM inbox").fetchall()
    return {InboundMessage.FromString(body).content[0].text.text: seq for body, seq in rows}


def _inversions(texts: list[str], place: Mapping[str, int]) -> int:
    return sum(place[later] < place[earlier] for earlier, later in pairwise(texts))
