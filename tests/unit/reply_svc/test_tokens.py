"""Access tokens."""

import asyncio

import pytest

from assistant.errors import (
    Internal,
    PlatformMisconfigured,
    PlatformTokenRejected,
    PlatformUnavailable,
)
from assistant.plugin import AccessToken
from reply_svc.clock import Clock
from reply_svc.tokens import FAILED_PAUSE_S, REFUSED_PAUSE_S, RENEW_BEFORE_S, TokenCache


class SetClock(Clock):
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time


class Platform:
    """Gives out tokens "1", "2", … for two hours, slowly, or fails."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: Exception | None = None
        self.good: set[str] = set()

    async def fetch(self) -> AccessToken:
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.failure:
            raise self.failure
        self.good = {str(self.asked)}
        return AccessToken(str(self.asked), 7200)

    async def use(self, token: str) -> str:
        if token not in self.good:
            raise PlatformTokenRejected
        return token


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def tokens(platform: Platform, clock: SetClock) -> TokenCache:
    return TokenCache(platform.fetch, clock)


async def test_many_waiters_cost_one_fetch(tokens: TokenCache, platform: Platform) -> None:
    """A hundred who need a token at once ask the platform once."""
    assert await asyncio.gather(*(tokens.get() for _ in range(100))) == ["1"] * 100
    assert platform.asked == 1


async def test_a_waiter_that_gives_up_stops_nobody(tokens: TokenCache) -> None:
    """The fetch goes on for the others."""
    impatient, patient = asyncio.create_task(tokens.get()), asyncio.create_task(tokens.get())
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == "1"


async def test_a_token_is_renewed_before_it_ends(tokens: TokenCache, platform: Platform, clock: SetClock) -> None:
    """Nobody waits for the renewal while the old token is good."""
    await tokens.get()
    clock.time += 7200 - RENEW_BEFORE_S + 1
    assert await tokens.get() == "1"
    async with asyncio.timeout(5):
        while await tokens.get() != "2":
            await asyncio.sleep(0.005)
    assert platform.asked == 2


async def test_a_failed_renewal_leaves_the_old_token(tokens: TokenCache, platform: Platform, clock: SetClock) -> None:
    """As long as the old one is good, trouble with the next is nobody's trouble."""
    await tokens.get()
    platform.failure = PlatformUnavailable()
    clock.time += 7200 - 10
    for _ in range(5):
        assert await tokens.get() == "1"
        await asyncio.sleep(0.02)
    assert platform.asked == 2


async def test_a_withdrawn_token_is_replaced_once(tokens: TokenCache, platform: Platform) -> None:
    """Fifty calls that meet a withdrawn token cost one new one, and all succeed."""
    await tokens.with_token(platform.use)
    platform.good.clear()
    assert await asyncio.gather(*(tokens.with_token(platform.use) for _ in range(50))) == ["2"] * 50
    assert platform.asked == 2


async def test_a_late_refusal_does_not_drop_the_new_token(tokens: TokenCache, platform: Platform) -> None:
    """Who used the old token must not take away the new one."""
    old = await tokens.get()
    tokens.drop(old)
    new = await tokens.get()
    tokens.drop(old)
    assert await tokens.get() == new
    assert platform.asked == 2


async def test_a_token_refused_twice_is_an_error(tokens: TokenCache, platform: Platform) -> None:
    """A call is repeated once, not for ever."""
    used = []

    async def refuse(token: str) -> None:
        used.append(token)
        raise PlatformTokenRejected

    with pytest.raises(PlatformTokenRejected):
        await tokens.with_token(refuse)
    assert used == ["1", "2"]


async def test_a_token_without_a_life_is_used_once(clock: SetClock) -> None:
    """The platform may give out a token that ends at once: better than none."""
    fetched = iter("123")

    async def fetch() -> AccessToken:
        return AccessToken(next(fetched), 0)

    tokens = TokenCache(fetch, clock)
    assert [await tokens.get(), await tokens.get()] == ["1", "2"]


async def test_a_refused_secret_is_not_asked_for_again(tokens: TokenCache, platform: Platform, clock: SetClock) -> None:
    """A wrong secret costs one call in ten minutes, however many want a token."""
    platform.failure = PlatformMisconfigured("wrong")
    for _ in range(100):
        with pytest.raises(PlatformMisconfigured):
            await tokens.get()
        clock.time += REFUSED_PAUSE_S / 101
    assert platform.asked == 1
    clock.time += REFUSED_PAUSE_S
    platform.failure = None
    assert await tokens.get() == "2"


async def test_a_failure_is_asked_about_again_soon(tokens: TokenCache, platform: Platform, clock: SetClock) -> None:
    """Trouble on the way is over when it is over."""
    platform.failure = PlatformUnavailable()
    with pytest.raises(PlatformUnavailable):
        await tokens.get()
    platform.failure = None
    clock.time += FAILED_PAUSE_S
    assert await tokens.get() == "2"


async def test_an_unexpected_failure_is_told_without_its_text(tokens: TokenCache, platform: Platform) -> None:
    """A sender's own mistake may quote the secret: its text goes nowhere."""
    platform.failure = RuntimeError("https://…?corpsecret=s3cret")
    with pytest.raises(Internal) as caught:
        await tokens.get()
    assert "s3cret" not in str(caught.value)
