"""Tells the time, the date and the day of the week."""

from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from assistant import settings
from assistant.plugin import SkillPlugin


class Settings(settings.Settings, frozen=True, kw_only=True):
    """Section `skills.clock`."""

    timezone: Annotated[str, msgspec.Meta(description="IANA name of the time zone where nobody names another")] = (
        "Asia/Shanghai"
    )

    def __post_init__(self) -> None:
        """Raises ValueError."""
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"timezone is no IANA name, such as Asia/Shanghai: {self.timezone!r}") from None


manifest = SkillPlugin(name="clock", title={"en": "Clock", "zh-CN": "时钟"}, skill=Settings)
