"""What WeCom's doctor says of settings and of error codes."""

from typing import Any

import pytest

from assistant import plugin
from assistant.findings import Severity
from plugins.channels.wecom.advice import BY_CODE, failure

GOOD: dict[str, Any] = {
    "corpid": "ww0123456789abcdef",
    "token": "abcdefghijklmnopqrstuvwxyz012345",
    "aeskey": "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG",
    "secret": "theSecret",
    "agentid": "1000002",
    "api_base": None,
    "proxy": None,
}

doctor = plugin.doctor("wecom", "default")

# Code -> what the operator must read, and must type (empty: nothing). The table of errors that operators meet.
CODES = {
    -1: ("busy", ""),
    40003: ("visible range", ""),
    60111: ("visible range", ""),
    46004: ("visible range", ""),
    40007: ("upload the file again", ""),
    40008: ("type, size and fields", ""),
    40013: ("我的企业", "--corpid"),
    2000002: ("我的企业", "--corpid"),
    40014: ("two systems share one app", ""),
    42001: ("two systems share one app", ""),
    40033: ("characters", ""),
    40056: ("agentid", "--agentid"),
    301002: ("agentid", "--agentid"),
    40057: ("doctor --url", ""),
    40058: ("fields", ""),
    40035: ("fields", ""),
    40063: ("fields", ""),
    40091: ("another company", "--corpid … --secret"),
    41001: ("bug", ""),
    43004: ("WeChat plugin", ""),
    43012: ("callback URL", ""),
    44004: ("empty or too long", ""),
    45002: ("empty or too long", ""),
    45009: ("self-service tool", ""),
    45033: ("too many calls at once", ""),
    48002: ("permissions", ""),
    48004: ("permissions", ""),
    50002: ("visible range", ""),
    60011: ("visible range", ""),
    50003: ("enable it", ""),
    60020: ("企业可信IP", ""),
    60140: ("new card", ""),
    42014: ("new card", ""),
    42016: ("new card", ""),
    81013: ("visible range", ""),
    82001: ("visible range", ""),
    86003: ("group that this app created", ""),
    86216: ("group that this app created", ""),
    93000: ("webhook", ""),
    93004: ("webhook", ""),
    95001: ("5 messages", ""),
    95002: ("48 hours", ""),
    95018: ("session", ""),
    846608: ("6 minutes", ""),
    846605: ("second instance", ""),
    846609: ("second instance", ""),
}

REFUSALS = {
    "SIGNATURE_MISMATCH": ("-40001", "--token --aeskey"),
    "UNDECRYPTABLE": ("-40007", "--token --aeskey"),
    "RECEIVER_MISMATCH": ("-40005", "--corpid"),
    "STALE_CALLBACK": ("clock", ""),
    "MALFORMED_ENVELOPE": ("proxy", ""),
}


def is_chinese(text: str) -> bool:
    return any("一" <= character <= "鿿" for character in text)


def test_good_settings_need_no_word() -> None:
    """Whatever has the form of the console's is left alone."""
    assert list(doctor.examine(GOOD)) == []


@pytest.mark.parametrize(
    ("changed", "check", "severity", "said", "typed"),
    [
        ({"corpid": None}, "settings.corpid", Severity.PROBLEM, "missing", "--corpid"),
        ({"corpid": "1000"}, "settings.corpid", Severity.PROBLEM, "ww or wx", "--corpid"),
        ({"token": None}, "settings.token", Severity.PROBLEM, "missing", "--token"),
        ({"token": "a" * 31}, "settings.token", Severity.WARNING, "31 characters", "--token"),
        ({"token": "a" * 33}, "settings.token", Severity.PROBLEM, "33 characters", "--token"),
        ({"token": "a" * 31 + " "}, "settings.token", Severity.PROBLEM, "letters and digits", "--token"),
        ({"aeskey": None}, "settings.aeskey", Severity.PROBLEM, "missing", "--aeskey"),
        ({"aeskey": "a" * 42}, "settings.aeskey", Severity.PROBLEM, "42 characters", "--aeskey"),
        ({"aeskey": "a" * 42 + "!"}, "settings.aeskey", Severity.PROBLEM, "decode", "--aeskey"),
        ({"secret": None}, "settings.secret", Severity.PROBLEM, "missing", "--secret"),
        ({"secret": "the Secret"}, "settings.secret", Severity.PROBLEM, "space", "--secret"),
        ({"agentid": None}, "settings.agentid", Severity.WARNING, "not set", "--agentid"),
        ({"agentid": "my app"}, "settings.agentid", Severity.PROBLEM, "whole number", "--agentid"),
        ({"api_base": "http://10.0.0.1"}, "settings.api_base", Severity.WARNING, "HTTPS", "--api-base https://"),
        ({"proxy": "10.0.0.1:3128"}, "settings.proxy", Severity.PROBLEM, "URL", "--proxy http://"),
    ],
)
def test_a_wrong_setting_is_found(
    changed: dict[str, Any], check: str, severity: Severity, said: str, typed: str
) -> None:
    """Each is named with its form, why it matters and what to type; never with its value."""
    (finding,) = doctor.examine(GOOD | changed)
    assert (finding.check, finding.severity) == (check, severity)
    assert said in finding.title.en
    assert is_chinese(finding.title.zh)
    assert is_chinese(finding.remedy.why.zh)
    assert finding.remedy.why.en
    assert finding.remedy.command.startswith("ai-assistant-cli config set channels.wecom --")
    assert typed in finding.remedy.command
    assert GOOD["secret"] not in str(finding)


def test_a_further_account_is_named_in_the_command() -> None:
    """What is to be typed concerns the account that is wrong."""
    (finding,) = plugin.doctor("wecom", "branch").examine(GOOD | {"secret": None})
    assert finding.remedy.command.startswith("ai-assistant-cli config set channels.wecom --account branch --secret")


@pytest.mark.parametrize(("code", "expected"), CODES.items())
def test_every_code_says_what_to_do(code: int, expected: tuple[str, str]) -> None:
    """As the platform's answer becomes an error, and as it is explained: in both languages, with the command."""
    said, typed = expected
    error = failure(code, "x, from ip: 203.0.113.9, more")
    what, remedy = doctor.explain(str(code), str(error))
    assert said.lower() in f"{what.en}: {remedy.mend.en}".lower()
    assert typed in remedy.command
    assert bool(typed) == bool(remedy.command)
    assert is_chinese(what.zh)
    assert is_chinese(remedy.why.zh)
    assert remedy.why.en


def test_the_table_is_whole() -> None:
    """Every code of the operators' table has advice of its own."""
    assert CODES.keys() - BY_CODE.keys() == set()


def test_an_untrusted_address_is_the_one_to_add() -> None:
    """60020 names the address that the platform saw."""
    what, remedy = doctor.explain("60020", str(failure(60020, "not allow, from ip: 203.0.113.9, more")))
    assert "203.0.113.9" in what.en
    assert "203.0.113.9" in what.zh
    assert "企业可信IP" in remedy.mend.en


def test_a_wrong_secret_is_told_from_a_withdrawn_token() -> None:
    """40001 means one thing in the answer to gettoken and another elsewhere."""
    _, secret = doctor.explain("40001", str(failure(40001, "x", token_requested=True)))
    _, token = doctor.explain("40001", str(failure(40001, "x")))
    assert "--secret" in secret.command
    assert token.command == ""


def test_a_code_is_found_in_what_was_said() -> None:
    """A dead delivery keeps the platform's words, and no code beside them."""
    _, remedy = doctor.explain("", str(failure(301002, "x")))
    assert "--agentid" in remedy.command


def test_an_unknown_code_is_passed_on() -> None:
    """What WeCom says tomorrow is told as it is."""
    what, remedy = doctor.explain("999999", str(failure(999999, "x")))
    assert "90313" in what.en + remedy.mend.en
    assert remedy.why.en


@pytest.mark.parametrize(("reason", "expected"), REFUSALS.items())
def test_a_refused_callback_is_explained(reason: str, expected: tuple[str, str]) -> None:
    """By the reason for which crypto_svc refused it."""
    said, typed = expected
    what, remedy = doctor.explain(reason, "")
    assert said.lower() in f"{what.en}: {remedy.mend.en}".lower()
    assert typed in remedy.command
    assert is_chinese(what.zh)
    assert is_chinese(remedy.mend.zh)
