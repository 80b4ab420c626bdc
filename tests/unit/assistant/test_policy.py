"""The policy of an account, as an operator writes it."""

from typing import Any

import pytest

from assistant.errors import InvalidSetting
from assistant.policy import Policy
from assistant.settings import Source


class Generous(Policy, frozen=True, kw_only=True):
    """That of a platform which tells everything."""

    tells_departments = True
    publishes_sources = True


def read(cls: type[Policy] = Generous, environ: dict[str, str] | None = None, **given: Any) -> Policy:
    return Source({"channels": {"plain": given}}, environ or {}, "the test").read(cls, "channels.plain")


def test_nothing_is_restricted_by_default() -> None:
    """Without a word of the operator everybody may write, as often as they like, from everywhere."""
    policy = read()
    assert not policy.restricts_members
    assert policy.messages_per_minute == 0
    assert policy.callback_sources == ""


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("2, 3", ["2", "3"]),
        ("2,3,", ["2", "3"]),
        ([2, 3], ["2", "3"]),
        (["2", "3"], ["2", "3"]),
        (2, ["2"]),
        ("", []),
        (" , ", []),
    ],
)
def test_a_list_is_written_as_one_likes(given: Any, names: list[str]) -> None:
    """As words with commas between them, as a TOML list of words or numbers, or as one number."""
    policy = read(allow_departments=given, callback_sources=",")
    assert policy.callback_sources == ""
    assert policy.allow_departments.split_up() == names
    assert policy.restricts_members == bool(names)


@pytest.mark.parametrize("given", [True, 1.5, {"a": 1}, [["a"]]])
def test_what_is_no_list_is_refused(given: Any) -> None:
    """With the name of the setting and what is expected."""
    with pytest.raises(InvalidSetting, match=r"allow_members.*words with commas"):
        read(allow_members=given)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("callback_sources", "platfrom", "'platfrom', which is neither 'platform' nor an address nor a range"),
        ("callback_sources", "10.0.0.1/8", "has host bits set"),
        ("callback_sources", "10.0.0.300", "'10.0.0.300'"),
        ("messages_per_minute", -1, "messages_per_minute"),
        ("messages_per_minute", 100_000, "messages_per_minute"),
        ("tell_denied", "perhaps", "tell_denied"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: Any, says: str) -> None:
    """A gateway does not start with it."""
    with pytest.raises(InvalidSetting) as refused:
        read(**{key: value})
    assert says in refused.value.message


@pytest.mark.parametrize(
    ("key", "value"), [("allow_departments", "2"), ("deny_departments", "2"), ("callback_sources", "platform")]
)
def test_what_the_platform_cannot_do_is_refused(key: str, value: str) -> None:
    """Rather than to refuse everybody, or nobody, later."""
    with pytest.raises(InvalidSetting, match="platform does not"):
        read(Policy, **{key: value})


def test_sources_are_read() -> None:
    """`platform` is a word among addresses and ranges of both families."""
    policy = read(callback_sources="platform, 203.0.113.9, 2001:db8::/32")
    assert policy.asks_platform_for_sources
    assert list(map(str, policy.named_sources())) == ["203.0.113.9/32", "2001:db8::/32"]
    assert not read(callback_sources="203.0.113.9").asks_platform_for_sources
