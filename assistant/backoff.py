"""Pauses between attempts: longer each time, and never the same for everybody."""

import random


class Backoff:
    """None before the second attempt, then from `first_s`, doubled each time up to `max_s`; half of it is chance."""

    def __init__(self, first_s: float = 0.02, max_s: float = 0.5) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._pause_s = 0.0

    def next_s(self) -> float:
        """How long to pause now, in seconds."""
        pause_s = self._pause_s
        self._pause_s = min(max(self._first_s, 2 * pause_s), self._max_s)
        return pause_s * random.uniform(0.5, 1.0)  # noqa: S311  spreads attempts, protects nothing

    def reset(self) -> None:
        """The next attempt is the first again."""
        self._pause_s = 0.0
