"""Time, as something that is passed in: tests run on a faster one. And whether ours is right."""

import asyncio
import time
from email.utils import parsedate_to_datetime
from types import SimpleNamespace

import aiohttp
from prometheus_client import Gauge

_offset = Gauge("assistant_clock_offset_seconds", "How far our clock is ahead of the platform's, by its last answer.")


class Clock:
    """The real one."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        await asyncio.sleep(seconds)


def comparison() -> aiohttp.TraceConfig:
    """Compares our clock with the date of every answer that a session gets."""
    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(_compare)
    return trace


async def _compare(_: aiohttp.ClientSession, __: SimpleNamespace, answered: aiohttp.TraceRequestEndParams) -> None:
    date = answered.response.headers.get("Date", "")
    if "Age" in answered.response.headers:  # a proxy kept it: the date is that of another time
        return
    try:
        _offset.set(time.time() - parsedate_to_datetime(date).timestamp())
    except ValueError:
        return
