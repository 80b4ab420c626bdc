"""The token buckets of members."""

from gateway.limits import WINDOW_S, Limiter


class Clock:
    """Goes on when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_a_steady_stream() -> None:
    """As many at once as in a minute, then one more for each part of it."""
    clock = Clock()
    limiter = Limiter(30, clock)
    assert [limiter.take("zhang") for _ in range(31)] == [True] * 30 + [False]
    clock.now += 1.9
    assert not limiter.take("zhang")
    clock.now += 0.2
    assert limiter.take("zhang")
    assert not limiter.take("zhang")
    clock.now += 10 * WINDOW_S
    assert [limiter.take("zhang") for _ in range(31)] == [True] * 30 + [False]


def test_members_are_told_once_within_the_window() -> None:
    """Each by themselves."""
    clock = Clock()
    limiter = Limiter(1, clock)
    assert [limiter.tell("zhang"), limiter.tell("zhang"), limiter.tell("li")] == [True, False, True]
    clock.now += WINDOW_S
    assert limiter.tell("zhang")


def test_only_the_last_minute_is_remembered() -> None:
    """Whose bucket is full again is forgotten, so that a company of any size costs what its active members do."""
    clock = Clock()
    limiter = Limiter(5, clock)
    for number in range(1_000):
        limiter.take(f"member{number}")
    assert len(limiter) == 1_000
    clock.now += WINDOW_S
    limiter.take("zhang")
    assert len(limiter) == 1
