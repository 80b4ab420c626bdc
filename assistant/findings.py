"""What an examination found, in words for an operator: what is wrong, why it matters, what mends it.

Every sentence is given in English and Chinese; who prints it chooses. No finding holds a secret or a message's text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

Language = Literal["en", "zh-CN"]
ENGLISH: Language = "en"
CHINESE: Language = "zh-CN"


class Text(NamedTuple):
    """The same in two languages."""

    en: str
    zh: str

    def in_language(self, language: Language) -> str:
        """One of them."""
        return self.zh if language == CHINESE else self.en

    def __bool__(self) -> bool:
        return bool(self.en)


def same(words: str) -> Text:
    """What is said alike in all languages: names, numbers, another program's words."""
    return Text(words, words)


NOTHING = same("")


class Severity(StrEnum):
    """How bad a finding is. Only a problem means that something does not work."""

    OK = "ok"
    SKIPPED = "skipped"
    """It could not be looked at; the title says why."""
    WARNING = "warning"
    """It works, and will not for ever, or not as well as it should."""
    PROBLEM = "problem"


@dataclass(frozen=True)
class Remedy:
    """Why something matters, and what mends it."""

    why: Text
    mend: Text = NOTHING
    """What to do, where it is more than to type `command`."""
    command: str = ""
    """What to type, as if `ai-assistant-cli` were on the path. Empty: it is not mended by a command."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """What was looked at: a stable name for programs, such as "platform.account"."""
    severity: Severity
    title: Text
    """What is so, in one line."""
    subject: str = ""
    """Which one, where there are several: an account, a service, a file."""
    detail: Text = NOTHING
    """More about what is wrong."""
    remedy: Remedy = Remedy(NOTHING)


def ok(check: str, title: Text, subject: str = "") -> Finding:
    """All is well with it."""
    return Finding(check, Severity.OK, title, subject)


def skipped(check: str, title: Text, subject: str = "") -> Finding:
    """It could not be looked at."""
    return Finding(check, Severity.SKIPPED, title, subject)


def warning(check: str, title: Text, remedy: Remedy, subject: str = "", detail: Text = NOTHING) -> Finding:
    """It works still."""
    return Finding(check, Severity.WARNING, title, subject, detail, remedy)


def problem(check: str, title: Text, remedy: Remedy, subject: str = "", detail: Text = NOTHING) -> Finding:
    """It does not work."""
    return Finding(check, Severity.PROBLEM, title, subject, detail, remedy)


def worst(findings: Iterable[Finding]) -> Severity:
    """The severity of the worst of them; of none, OK."""
    order = list(Severity)
    return max((finding.severity for finding in findings), key=order.index, default=Severity.OK)
