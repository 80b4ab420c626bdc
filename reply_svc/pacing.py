"""Keeping within what a platform lets one recipient be sent."""

from collections import deque
from collections.abc import Iterable, Sequence

from assistant.plugin import Quota
from reply_svc.clock import Clock


class Pacer:
    """Counts what each recipient of an account was sent.

    A send counts from when the platform answered it: it arrived before that, and the next one arrives after it
    is sent, so no window of the platform's ever holds more than the quota.
    """

    def __init__(self, quotas: Sequence[Quota], clock: Clock) -> None:
        self._quotas = quotas
        self._clock = clock
        self._most = max((quota.sends for quota in quotas), default=0)
        self.window_s = max((quota.window_s for quota in quotas), default=0.0)
        """What was sent longer ago than this, in seconds, no longer counts."""
        self._sends: dict[str, deque[float]] = {}

    def __contains__(self, recipient: str) -> bool:
        return recipient in self._sends

    def __len__(self) -> int:
        return len(self._sends)

    def wait_s(self, recipient: str) -> float:
        """Seconds until the recipient may be sent one more; 0 or less: now."""
        sends = self._sends.get(recipient, ())
        return max((self._wait_s(quota, sends) for quota in self._quotas), default=0.0)

    def count(self, recipient: str) -> None:
        """Something was sent just now, or may have been."""
        if recipient not in self._sends:
            self.load(recipient, ())
        self._sends[recipient].append(self._clock.now())

    def load(self, recipient: str, sent_at: Iterable[float]) -> None:
        """Replace what is known of a recipient, by the times of its sends in ascending order."""
        self._sends[recipient] = deque(sent_at, maxlen=self._most)

    def forget_idle(self) -> None:
        """Let go of recipients who were sent nothing within the longest window."""
        horizon = self._clock.now() - self.window_s
        for recipient in [name for name, sends in self._sends.items() if not sends or sends[-1] < horizon]:
            del self._sends[recipient]

    def _wait_s(self, quota: Quota, sends: Sequence[float]) -> float:
        if len(sends) < quota.sends:
            return 0.0
        wait_s = sends[-quota.sends] + quota.window_s - self._clock.now()
        return min(wait_s, quota.window_s)  # a clock set back makes nobody wait longer
