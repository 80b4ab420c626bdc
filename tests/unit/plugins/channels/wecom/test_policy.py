"""What the platform makes possible in an account's policy."""

from typing import Any

import pytest

from assistant.errors import InvalidSetting
from assistant.settings import Source
from plugins.channels.wecom import Policy


def read(**given: Any) -> Policy:
    return Source({"channels": {"wecom": given}}, {}, "the test").read(Policy, "channels.wecom")


def test_departments_are_numbers() -> None:
    """As the console shows them, in a list or in words."""
    assert read(allow_departments=[2, 30]).allow_departments.split_up() == ["2", "30"]
    assert read(deny_departments="2, 30").restricts_members


@pytest.mark.parametrize("key", ["allow_departments", "deny_departments"])
@pytest.mark.parametrize("name", ["研发部", "2, x", "-1", "1.5"])
def test_a_department_that_is_none_is_refused(key: str, name: str) -> None:
    """With where to find the number: a name that nobody belongs to would lock everybody out."""
    with pytest.raises(InvalidSetting, match="部门ID"):
        read(**{key: name})


def test_what_every_policy_checks_is_checked_too() -> None:
    """Such as addresses."""
    with pytest.raises(InvalidSetting, match="callback_sources"):
        read(callback_sources="10.0.0.300")
    assert read(callback_sources="platform").asks_platform_for_sources
