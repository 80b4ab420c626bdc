"""Looks at the clock."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from assistant import plugin
from assistant.api.skill.v1.skill_pb2 import InvokeSkillRequest, InvokeSkillResponse, SkillEffects
from assistant.api.skill.v1.skill_pb2 import Skill as SkillDescription
from assistant.errors import InvalidArguments
from plugins.skills.clock import Settings

_WORDS = {
    "zh": {
        "skill": "查询现在的时间、今天的日期或星期几。",
        "what": "查什么：time 时间，date 日期，weekday 星期几；不填则全部返回。",
        "timezone": "时区的 IANA 名称，例如 Asia/Shanghai；不填则用本公司的时区。",
    },
    "en": {
        "skill": "Tells the current time, today's date or the day of the week.",
        "what": "What to tell: time, date or weekday. All of them if left out.",
        "timezone": "IANA name of a time zone, such as Asia/Shanghai. The company's own if left out.",
    },
}

_READINGS: dict[str, Callable[[datetime], str | int]] = {
    "time": lambda moment: moment.strftime("%H:%M"),
    "date": lambda moment: moment.date().isoformat(),
    "weekday": lambda moment: moment.isoweekday(),
}


class Skill(plugin.Skill):
    """Answers {"timezone": IANA name, "time": "HH:MM", "date": "YYYY-MM-DD", "weekday": 1 (Monday) to 7}."""

    def __init__(self, settings: Settings, now: Callable[[ZoneInfo], datetime] = datetime.now) -> None:
        self._timezone = settings.timezone
        self._now = now

    def describe(self, locale: str) -> SkillDescription:
        """Chinese unless `locale` is English."""
        words = _WORDS["en" if locale.lower().startswith("en") else "zh"]
        schema = {
            "type": "object",
            "properties": {
                "what": {"type": "string", "enum": list(_READINGS), "description": words["what"]},
                "timezone": {"type": "string", "description": words["timezone"]},
            },
            "additionalProperties": False,
        }
        return SkillDescription(
            name="clock",
            description=words["skill"],
            arguments_schema=ParseDict(schema, Struct()),
            effects=SkillEffects.SKILL_EFFECTS_NONE,
        )

    async def invoke(self, request: InvokeSkillRequest) -> InvokeSkillResponse:
        """Raises InvalidArguments for a time zone that nobody knows."""
        arguments: dict[str, Any] = dict(request.arguments.items())
        name = arguments.get("timezone", self._timezone)
        moment = self._now(_zone(name))
        wanted = [arguments["what"]] if "what" in arguments else _READINGS
        result = Struct()
        result.update({"timezone": name} | {what: _READINGS[what](moment) for what in wanted})
        return InvokeSkillResponse(result=result)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # ValueError: a path; OSError: a folder or an overlong name
        raise InvalidArguments("timezone is no IANA name, such as Asia/Shanghai") from None
