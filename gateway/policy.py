"""Whom the assistant serves: asked once at the beginning of each turn, before the engine.

A message that is refused is a turn like any other: recorded, answered once, and nothing of it reaches the engine,
not even later as history. Why it was refused stands in its row; `ai-assistant-cli inbox list` shows it.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import Counter

from assistant import telemetry
from assistant.api.message.v1.message_pb2 import CONVERSATION_KIND_GROUP, InboundMessage
from assistant.api.storage.v1.storage_pb2 import TurnRecord
from assistant.errors import AssistantError
from assistant.plugin import SELF_TEST_MEMBER
from assistant.policy import Policy
from assistant.settings import Names
from gateway.conversations import Conversation
from gateway.directory import Directory
from gateway.limits import Limiter
from gateway.phrases import apology, denial, patience

NOT_PERMITTED = "MEMBER_NOT_PERMITTED"
TOO_MANY = "TOO_MANY_MESSAGES"
UNKNOWN = "MEMBER_UNKNOWN"

_REFUSED = Counter(
    "assistant_refused_turns",
    "Messages that were not put to the engine, by the policy of their account.",
    ["channel", "reason"],
)
_count = functools.cache(_REFUSED.labels)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a message is not put to the engine."""

    reason: str
    words: str = ""
    """What the member is told. Empty: nothing."""
    failure: AssistantError | None = None
    """Set if nobody decided so: whether the member may is not known."""


class Gatekeeper:
    """Asks the policy of each account."""

    def __init__(
        self,
        policies: Mapping[tuple[str, str], Policy],
        directory: Directory,
        locale: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`locale` is the language of those of whom the platform does not tell theirs. `clock` gives seconds."""
        self._rules = {names: _Rules(policy, directory, clock) for names, policy in policies.items()}
        self._locale = locale

    @classmethod
    def of(cls, policies: Mapping[tuple[str, str], Policy], directory: Directory, locale: str) -> "Gatekeeper | None":
        """None if no account refuses anybody: then there is nothing to ask."""
        asked = {
            names: policy
            for names, policy in policies.items()
            if policy.restricts_members or policy.messages_per_minute
        }
        return cls(asked, directory, locale) if asked else None

    async def refuse(
        self, message: InboundMessage, conversation: Conversation, *, retried: bool
    ) -> tuple[TurnRecord, AssistantError | None] | None:
        """How the turn of a message ends that is not to be put to the engine. None: it is.

        With an error nobody decided so: whether the member may is not known. `retried`: an operator wants it
        answered after all, however much the member has sent.
        """
        rules = self._rules.get((message.account.channel, message.account.name))
        # Who plays the self-test has the account's keys, and is no member.
        if rules is None or message.sender.id == SELF_TEST_MEMBER:
            return None
        refusal = await rules.refuse(message, message.locale or self._locale, limited=not retried)
        if refusal is None:
            return None
        _count(message.account.channel, refusal.reason).inc()
        telemetry.info("turn_refused", reason=refusal.reason, member=message.sender.id)
        record = TurnRecord(refusal=refusal.reason, state=conversation.state)
        if refusal.words:
            record.content.add().text.text = refusal.words
        record.answered_at.FromNanoseconds(time.time_ns())
        return record, refusal.failure


class _Rules:
    """The policy of one account."""

    def __init__(self, policy: Policy, directory: Directory, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._tell_denied = policy.tell_denied
        self._limiter = Limiter(policy.messages_per_minute, clock) if policy.messages_per_minute else None
        self._restricts = policy.restricts_members
        self._same: Callable[[str], str] = str.casefold if policy.ignores_case else str
        self._allow_members = frozenset(map(self._same, policy.allow_members.split_up()))
        self._allow_departments = _set(policy.allow_departments)
        self._allow_groups = _set(policy.allow_groups)
        self._deny_members = frozenset(map(self._same, policy.deny_members.split_up()))
        self._deny_departments = _set(policy.deny_departments)
        self._deny_groups = _set(policy.deny_groups)
        self._allows_everybody = not (self._allow_members or self._allow_departments or self._allow_groups)

    async def refuse(self, message: InboundMessage, locale: str, *, limited: bool) -> _Refusal | None:
        member = self._same(message.sender.id)
        if limited and self._limiter is not None and not self._limiter.take(member):
            return _Refusal(TOO_MANY, patience(locale) if self._limiter.tell(member) else "")
        if not self._restricts:
            return None
        try:
            permitted = await self._permits(message, member)
        except AssistantError as error:
            return _Refusal(UNKNOWN, apology(locale), error)
        return None if permitted else _Refusal(NOT_PERMITTED, denial(locale) if self._tell_denied else "")

    async def _permits(self, message: InboundMessage, member: str) -> bool:
        """Whoever is denied may not, whatever else allows it. The platform is asked only if nothing else decides."""
        group = message.conversation.id if message.conversation.kind == CONVERSATION_KIND_GROUP else ""
        if member in self._deny_members or group in self._deny_groups:
            return False
        allowed = self._allows_everybody or member in self._allow_members or group in self._allow_groups
        if not self._deny_departments and (allowed or not self._allow_departments):
            return allowed
        departments = await self._directory.departments(message.account, member)
        if departments & self._deny_departments:
            return False
        return allowed or not departments.isdisjoint(self._allow_departments)


def _set(names: Names) -> frozenset[str]:
    return frozenset(names.split_up())
