"""Keeping within quotas."""

from hypothesis import given
from hypothesis import strategies as st

from assistant.plugin import Quota
from reply_svc.clock import Clock
from reply_svc.pacing import Pacer

QUOTAS = (Quota(3, 60), Quota(5, 600))


class SetClock(Clock):
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time


@given(st.lists(st.floats(0, 100), max_size=60))
def test_no_window_ever_holds_more_than_the_quota(pauses: list[float]) -> None:
    """Whatever the rhythm, who waits as told never sends too much."""
    clock = SetClock()
    pacer = Pacer(QUOTAS, clock)
    sent = []
    for pause in pauses:
        clock.time += pause
        clock.time += max(0.0, pacer.wait_s("a"))
        pacer.count("a")
        sent.append(clock.time)
    for quota in QUOTAS:
        for first, excess in zip(sent, sent[quota.sends :], strict=False):
            assert excess - first >= quota.window_s - 1e-6


def test_within_the_quota_nobody_waits() -> None:
    """Three may be sent at once, to each recipient."""
    pacer = Pacer(QUOTAS, SetClock())
    for recipient in ("a", "b"):
        for _ in range(3):
            assert pacer.wait_s(recipient) <= 0
            pacer.count(recipient)
    assert pacer.wait_s("a") == 60


def test_a_channel_without_quotas_never_waits() -> None:
    """No quota, no wait."""
    pacer = Pacer((), SetClock())
    for _ in range(100):
        assert pacer.wait_s("a") <= 0
        pacer.count("a")


def test_what_was_sent_in_an_earlier_life_counts() -> None:
    """Loaded sends are sends."""
    clock = SetClock()
    pacer = Pacer(QUOTAS, clock)
    pacer.load("a", [clock.time - 50, clock.time - 40, clock.time - 30])
    assert pacer.wait_s("a") == 10


def test_a_clock_set_back_makes_nobody_wait_for_ever() -> None:
    """The longest wait is the window."""
    clock = SetClock()
    pacer = Pacer(QUOTAS, clock)
    for _ in range(3):
        pacer.count("a")
    clock.time -= 86_400
    assert pacer.wait_s("a") == 60


def test_idle_recipients_are_forgotten() -> None:
    """Memory is for those who were sent something lately."""
    clock = SetClock()
    pacer = Pacer(QUOTAS, clock)
    pacer.count("old")
    clock.time += 601
    pacer.count("new")
    pacer.forget_idle()
    assert ("old" in pacer, "new" in pacer, len(pacer)) == (False, True, 1)
