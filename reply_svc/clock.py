"""Time, as something that is passed in: tests run on a faster one."""

import asyncio
import time


class Clock:
    """The real one."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        await asyncio.sleep(seconds)
