"""How often a member may write: a token bucket for each, in this process alone."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60.0
"""An empty bucket is full again after so long; and a member is told at most once within it."""


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float
    """When `left` was so."""
    told_at: float = float("-inf")


class Limiter:
    """So many messages a minute for each member, at once or spread."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_minute` is 1 or more. `clock` gives seconds."""
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        """Those used last are last: from the other end, those that are full again are forgotten."""

    def take(self, member: str) -> bool:
        """Whether the member may send one more message now. If so it is counted."""
        now = self._clock()
        bucket = self._bucket(member, now)
        bucket.left = min(self._per_minute, bucket.left + (now - bucket.at) * self._per_minute / WINDOW_S)
        bucket.at = now
        if bucket.left < 1.0:
            return False
        bucket.left -= 1.0
        return True

    def tell(self, member: str) -> bool:
        """Whether to tell a member, of whom too much came, that it did. If so it is remembered."""
        now = self._clock()
        bucket = self._bucket(member, now)
        if now - bucket.told_at < WINDOW_S:
            return False
        bucket.told_at = now
        return True

    def __len__(self) -> int:
        return len(self._buckets)

    def _bucket(self, member: str, now: float) -> _Bucket:
        bucket = self._buckets.get(member)
        if bucket is None:
            bucket = self._buckets[member] = _Bucket(self._per_minute, now)
        self._buckets.move_to_end(member)
        while now - (oldest := next(iter(self._buckets.values()))).at >= WINDOW_S and oldest is not bucket:
            self._buckets.popitem(last=False)
        return bucket
