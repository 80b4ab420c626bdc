"""Asking the engine: what it proposes is run by the skills, and it sees the results, at most a few rounds."""

import asyncio
import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from prometheus_client import Histogram

from assistant import telemetry, wire
from assistant.api.message.v1.message_pb2 import Account, InboundMessage, Member
from assistant.api.nlp.v1.nlp_pb2 import Action, GenerateReplyRequest, GenerateReplyResponse, SkillResult
from assistant.api.skill.v1.skill_pb2 import InvokeSkillRequest, ListSkillsRequest
from assistant.errors import AssistantError, EngineUnavailable, UnknownSkill
from gateway.conversations import Conversation

if TYPE_CHECKING:
    from assistant.api.nlp.v1.nlp_pb2_grpc import NlpServiceAsyncStub
    from assistant.api.skill.v1.skill_pb2_grpc import SkillServiceAsyncStub

ROUNDS = 4
"""An engine that still proposes actions after so many rounds goes in circles."""
_SKILL_TIMEOUT_S = 30.0
_LIST_TIMEOUT_S = 1.0
_LIST_LIFETIME_S = 30.0
_SECONDS = Histogram(
    "assistant_engine_seconds", "Time of one answer of the engine.", ["outcome"], buckets=telemetry.EDGES_S
)
_SKILL_SECONDS = Histogram(
    "assistant_skill_seconds", "Time of one use of a skill.", ["skill", "outcome"], buckets=telemetry.EDGES_S
)
_seconds = functools.cache(_SECONDS.labels)
_skill_seconds = functools.cache(_SKILL_SECONDS.labels)
_OK = "ok"
_message = wire.part(GenerateReplyRequest, "message")


@dataclass
class _Listed:
    skills: bytes
    """As a part of a serialised GenerateReplyRequest: most requests of an account have the same."""
    until: float


class Engine:
    """The NLP service and the skills, as a turn needs them."""

    def __init__(
        self, nlp: "NlpServiceAsyncStub", skills: "SkillServiceAsyncStub", *, timeout_s: float, locale: str
    ) -> None:
        self._nlp = nlp
        self._skills = skills
        self._timeout_s = timeout_s
        self._locale = locale
        self._listed: dict[tuple[str, str, str], _Listed] = {}
        self._listing: dict[tuple[str, str, str], asyncio.Lock] = {}

    async def reply(
        self, turn_id: str, message: InboundMessage, body: bytes, conversation: Conversation
    ) -> GenerateReplyResponse:
        """Answer one message; `body` is it, serialised. Raises what the engine fails with for good or in the end."""
        deadline = time.monotonic() + self._timeout_s
        request = GenerateReplyRequest(
            turn_id=turn_id,
            account=message.account,
            conversation=message.conversation,
            state=conversation.state,
            locale=message.locale,
        )
        skills = await self._skills_for(message.account, message.locale or self._locale)
        # History, skills and message, most of the request, stay as they are kept: serialised. Joined parts are merged.
        fixed = conversation.history() + skills + _message(body)
        for _ in range(ROUNDS):
            response = await self._ask(fixed + request.SerializeToString(), deadline)
            if not response.actions:
                return response
            for action in response.actions:
                result = await self._run(action, len(request.skill_results), request, message.sender)
                request.skill_results.append(result)
        raise EngineUnavailable(f"the engine still proposes actions after {ROUNDS} rounds")

    async def _ask(self, request: bytes, deadline: float) -> GenerateReplyResponse:
        """Ask until the engine can answer: it may still be loading, or its provider may be away for a moment."""
        began_at = now = time.monotonic()
        pause_s = 0.05
        while True:
            left_s = max(0.001, deadline - now)
            try:
                response = await self._nlp.GenerateReply(cast("GenerateReplyRequest", request), timeout=left_s)
            except AssistantError as error:
                pause_s = min(1.0, max(pause_s * 2, error.retry_after_s or 0.0))
                now = time.monotonic()
                if not isinstance(error, EngineUnavailable) or pause_s > deadline - now:
                    _seconds(error.reason).observe(now - began_at)
                    raise
            else:
                _seconds(_OK).observe(time.monotonic() - began_at)
                return response
            await asyncio.sleep(pause_s)
            now = time.monotonic()

    async def _skills_for(self, account: Account, locale: str) -> bytes:
        """The skills to offer. InvokeSkill decides who may use one; an unreachable skill service offers none."""
        key = (account.channel, account.name, locale)
        listed = self._listed.get(key)
        if listed is None or listed.until < time.monotonic():
            async with self._listing.setdefault(key, asyncio.Lock()):
                listed = self._listed.get(key)
                if listed is None or listed.until < time.monotonic():
                    listed = await self._list(account, locale, listed)
                    self._listed[key] = listed
        return listed.skills

    async def _list(self, account: Account, locale: str, known: _Listed | None) -> _Listed:
        request = ListSkillsRequest(account=account, locale=locale)
        try:
            response = await self._skills.ListSkills(request, timeout=_LIST_TIMEOUT_S)
        except AssistantError as error:
            telemetry.warning("skills_not_listed", reason=error.reason, detail=error.message)
            return _Listed(known.skills if known else b"", time.monotonic() + 1.0)
        skills = GenerateReplyRequest(skills=response.skills).SerializeToString()
        return _Listed(skills, time.monotonic() + _LIST_LIFETIME_S)

    async def _run(self, action: Action, index: int, request: GenerateReplyRequest, sender: Member) -> SkillResult:
        invocation = InvokeSkillRequest(
            turn_id=request.turn_id,
            action_index=index,
            skill=action.skill,
            arguments=action.arguments,
            account=request.account,
            conversation=request.conversation,
            sender=sender,
            locale=request.locale or self._locale,
        )
        began_at = time.monotonic()
        try:
            done = await self._skills.InvokeSkill(invocation, timeout=_SKILL_TIMEOUT_S)
        except AssistantError as error:
            # An engine may name whatever it likes: what is no skill is no label.
            name = "" if isinstance(error, UnknownSkill) else action.skill
            _skill_seconds(name, error.reason).observe(time.monotonic() - began_at)
            telemetry.warning("skill_failed", skill=action.skill, reason=error.reason, detail=error.message)
            return SkillResult(action=action, succeeded=False, error_reason=error.reason)
        _skill_seconds(action.skill, _OK).observe(time.monotonic() - began_at)
        return SkillResult(action=action, succeeded=True, result=done.result, content=done.content)
