"""Deadlines of many things at once, with few timers."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

_TICKS_PER_S = 100

K = TypeVar("K")


class Deadlines(Generic[K]):
    """Calls `strike(key)` for each key when its time is over, up to 10 ms late.

    No deadline is taken back: that would cost more than a strike which finds that all is done. So give keys that
    are small, and by which it can be seen.
    """

    def __init__(self, strike: Callable[[K], None]) -> None:
        self._strike = strike
        self._loop = asyncio.get_running_loop()
        self._keys: dict[int, list[K]] = {}

    def add(self, key: K, time_left_s: float) -> None:
        """Strike when so many seconds have gone by."""
        tick = int((monotonic() + time_left_s) * _TICKS_PER_S) + 1
        keys = self._keys.get(tick)
        if keys is None:
            keys = self._keys[tick] = []
            self._loop.call_later(tick / _TICKS_PER_S - monotonic(), self._tick, tick)
        keys.append(key)

    def _tick(self, tick: int) -> None:
        for key in self._keys.pop(tick):
            self._strike(key)
