"""Effects of skills, on every kind of database: claimed once, answered for ever after."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from assistant.api.skill.v1.skill_pb2 import InvokeSkillResponse
from assistant.journal import Journal
from nlp_svc import effects
from nlp_svc.effects import Effects

KEEP_DAYS = 30.0


@pytest.fixture
async def journal(database_url: str) -> AsyncIterator[Journal]:
    journal = await Journal.open(database_url, effects.MIGRATIONS)
    yield journal
    await journal.close()


async def test_an_effect_is_claimed_by_one(journal: Journal) -> None:
    """Of many who begin the same effect at once, exactly one may cause it."""
    claims = await asyncio.gather(*(Effects(journal, KEEP_DAYS).begin("name", "tickets") for _ in range(20)))
    assert sum(claim.new for claim in claims) == 1
    assert {claim.skill for claim in claims} == {"tickets"}
    assert {claim.response for claim in claims} == {None}


async def test_a_finished_effect_keeps_its_answer(journal: Journal) -> None:
    """Whoever begins it again gets what it answered, byte for byte."""
    kept = Effects(journal, KEEP_DAYS)
    await kept.begin("name", "tickets")
    response = InvokeSkillResponse()
    response.result["工单"] = 42
    await kept.finish("name", response)
    again = await kept.begin("name", "tickets")
    assert not again.new
    assert again.response == response


async def test_a_withdrawn_effect_may_be_begun_again(journal: Journal) -> None:
    """When nothing was done, the claim is given back."""
    kept = Effects(journal, KEEP_DAYS)
    await kept.begin("name", "tickets")
    await kept.withdraw("name")
    assert (await kept.begin("name", "tickets")).new


async def test_old_effects_are_forgotten_as_new_ones_come(journal: Journal) -> None:
    """The table does not grow for ever."""
    forgetful = Effects(journal, keep_days=-1)
    assert (await forgetful.begin("first", "tickets")).new
    assert (await forgetful.begin("second", "tickets")).new
    assert (await forgetful.begin("first", "tickets")).new
