"""What the clock says."""

from datetime import UTC, datetime, tzinfo

import fastjsonschema
import pytest
from google.protobuf.json_format import MessageToDict

from assistant.api.skill.v1.skill_pb2 import InvokeSkillRequest, SkillEffects
from assistant.errors import InvalidArguments, InvalidSetting
from assistant.plugin import load
from assistant.settings import Source
from plugins.skills.clock import Settings

NOW = datetime(2026, 11, 23, 16, 30, tzinfo=UTC)


def now(zone: tzinfo) -> datetime:
    return NOW.astimezone(zone)


CLOCK = load("skills", "clock", "skill")(Settings(), now)


async def ask(**arguments: str) -> dict[str, object]:
    request = InvokeSkillRequest(turn_id="t", skill="clock")
    request.arguments.update(arguments)
    return dict((await CLOCK.invoke(request)).result.items())


async def test_it_tells_everything_unless_asked_for_one_thing() -> None:
    """Without arguments it gives time, date and weekday of the company's zone; with `what`, that alone."""
    everything = {"timezone": "Asia/Shanghai", "time": "00:30", "date": "2026-11-24", "weekday": 2}
    assert await ask() == everything
    for what in ("time", "date", "weekday"):
        assert await ask(what=what) == {"timezone": "Asia/Shanghai", what: everything[what]}


async def test_it_tells_the_time_of_any_zone() -> None:
    """A zone that is named counts instead of the company's."""
    assert await ask(timezone="America/New_York") == {
        "timezone": "America/New_York",
        "time": "11:30",
        "date": "2026-11-23",
        "weekday": 1,
    }


@pytest.mark.parametrize("zone", ["", "Mars/Base", "../../etc/passwd", "Asia", "x" * 5000, "Asia/\x00"])
async def test_an_unknown_zone_is_refused(zone: str) -> None:
    """Anything but an IANA name is an invalid argument, not a crash."""
    with pytest.raises(InvalidArguments, match="Asia/Shanghai"):
        await ask(timezone=zone)


async def test_the_company_chooses_its_zone() -> None:
    """The setting `skills.clock.timezone` counts where nobody names another."""
    source = Source({}, {"AI_ASSISTANT_SKILLS_CLOCK_TIMEZONE": "Europe/Berlin"}, "test")
    clock = load("skills", "clock", "skill")(source.read(Settings, "skills.clock"), now)
    response = await clock.invoke(InvokeSkillRequest(turn_id="t", skill="clock"))
    assert (response.result["timezone"], response.result["time"]) == ("Europe/Berlin", "17:30")


def test_a_wrong_zone_in_the_settings_stops_the_start() -> None:
    """The setting is checked when it is read, and named."""
    with pytest.raises(InvalidSetting, match=r"skills\.clock.*timezone"):
        Source({"skills": {"clock": {"timezone": "Mars"}}}, {}, "test").read(Settings, "skills.clock")


@pytest.mark.parametrize(("locale", "word"), [("zh-CN", "查询"), ("en-US", "Tells"), ("ja", "查询")])
def test_it_describes_itself_to_engines(locale: str, word: str) -> None:
    """The description is in the language asked for, the schema is valid, and nothing is changed by looking."""
    description = CLOCK.describe(locale)
    assert description.name == "clock"
    assert word in description.description
    assert description.effects == SkillEffects.SKILL_EFFECTS_NONE
    fits = fastjsonschema.compile(MessageToDict(description.arguments_schema))
    fits({"what": "time", "timezone": "Asia/Tokyo"})
    with pytest.raises(fastjsonschema.JsonSchemaException):
        fits({"what": "noon"})


async def test_the_real_clock_is_the_default() -> None:
    """Without a clock of the test's, the time is now."""
    clock = load("skills", "clock", "skill")(Settings(timezone="UTC"))
    before = datetime.now(UTC).date().isoformat()
    response = await clock.invoke(InvokeSkillRequest(turn_id="t", skill="clock"))
    assert before <= response.result["date"] <= datetime.now(UTC).date().isoformat()
