"""SkillService: what can be done for a member, each use once."""

import asyncio
import contextlib
from collections.abc import Mapping
from time import monotonic
from typing import NamedTuple, NoReturn

import fastjsonschema
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from assistant import telemetry
from assistant.api.skill.v1.skill_pb2 import (
    InvokeSkillRequest,
    InvokeSkillResponse,
    ListSkillsRequest,
    ListSkillsResponse,
    SkillEffects,
)
from assistant.audit import Audit, digest
from assistant.errors import (
    AssistantError,
    AuditBroken,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArguments,
    InvalidRequest,
    InvalidSetting,
    PlatformOutcomeUnknown,
    ServiceUnavailable,
    SkillOutcomeUnknown,
    StorageUnavailable,
    UnknownSkill,
)
from assistant.plugin import Skill, SkillPlugin, installed, load
from assistant.server import Call
from assistant.settings import DEFAULT_ACCOUNT, Source
from nlp_svc.effects import Effects

_LONGEST_S = 60.0
"""A use goes on when its caller has gone, so that a repetition finds the answer; but not for ever."""

_REMEMBERED_S = 600.0
_REMEMBERED = 10_000

_OUTCOME_UNKNOWN = (
    Cancelled,
    DeadlineExceeded,
    Internal,
    PlatformOutcomeUnknown,
    ServiceUnavailable,
    SkillOutcomeUnknown,
)
"""Errors that leave open whether something was changed. All others say that nothing was."""


def create(source: Source) -> dict[str, Skill]:
    """All installed skills by name, with the settings of their sections. Raises InvalidSetting."""
    return {
        name: load("skills", name, "skill")(source.read(plugin.skill, f"skills.{name}"))
        for name, plugin in installed("skills").items()
        if isinstance(plugin, SkillPlugin)
    }


class SkillService:
    """Skills behind the contract. `skills` are keyed by name, which is the one that they describe themselves by."""

    def __init__(self, skills: Mapping[str, Skill], effects: Effects, audit: Audit) -> None:
        self._skills = {name: _Checked(name, skill) for name, skill in sorted(skills.items())}
        self._effects = effects
        self._audit = audit
        self._running: dict[str, _Use] = {}
        self._answered = _Answered()

    def ListSkills(self, request: ListSkillsRequest, call: Call) -> ListSkillsResponse:
        return ListSkillsResponse(
            skills=[skill.plugin.describe(request.locale or "zh-CN") for skill in self._skills.values()]
        )

    async def InvokeSkill(self, request: InvokeSkillRequest, call: Call) -> InvokeSkillResponse:
        if not request.turn_id:
            raise InvalidRequest("turn_id is empty: with action_index it names the use, which happens once")
        skill = self._skills.get(request.skill)
        if skill is None:
            known = ", ".join(self._skills) or "none"
            raise UnknownSkill(f"there is no skill {request.skill!r}. Skills: {known}")
        skill.check(request.arguments)
        telemetry.message_id.set(request.turn_id)
        response = await self._once(skill, request)
        telemetry.info("skill_invoked", skill=request.skill)
        return response

    async def _once(self, skill: "_Checked", request: InvokeSkillRequest) -> InvokeSkillResponse:
        """Join the same use if it is under way or over, else begin it."""
        name = f"{request.account.channel}/{request.account.name}/{request.turn_id}/{request.action_index}"
        use = self._answered.get(name) or self._running.get(name)
        if use is None:
            use = self._running[name] = _Use(request.skill, asyncio.create_task(self._run(name, skill, request)))
            use.answer.add_done_callback(lambda _: self._running.pop(name))
        _same(request, use.skill)
        return await asyncio.shield(use.answer)

    async def _run(self, name: str, skill: "_Checked", request: InvokeSkillRequest) -> InvokeSkillResponse:
        async with asyncio.timeout(_LONGEST_S):
            if skill.changes_something:
                response = await self._cause(name, skill, request)
            else:
                response = await skill.plugin.invoke(request)
        self._answered.keep(name, self._running[name])
        return response

    async def _cause(self, name: str, skill: "_Checked", request: InvokeSkillRequest) -> InvokeSkillResponse:
        """Use a skill that changes something: at most once, even if this process is killed meanwhile."""
        effect = await self._effects.begin(name, request.skill)
        if not effect.new:
            _same(request, effect.skill)
            if effect.response is None:
                raise SkillOutcomeUnknown
            return effect.response
        await self._record("skill.begin", request)
        try:
            response = await skill.plugin.invoke(request)
        except AssistantError as error:
            unknown = isinstance(error, _OUTCOME_UNKNOWN)
            await self._record("skill.end", request, "unknown" if unknown else "nothing done", error.reason)
            if not unknown:
                await self._effects.withdraw(name)
            raise
        except BaseException as error:
            await self._record("skill.end", request, "unknown", type(error).__name__)
            raise
        await self._effects.finish(name, response)
        await self._record("skill.end", request, "done")
        return response

    async def _record(self, action: str, request: InvokeSkillRequest, outcome: str = "", reason: str = "") -> None:
        """Write to the audit log what is done for whom. A member is served even if that fails; it is counted."""
        facts = {
            "account": f"{request.account.channel}/{request.account.name or DEFAULT_ACCOUNT}",
            "turn_id": request.turn_id,
            "action_index": request.action_index,
            "skill": request.skill,
            "arguments_sha256": digest(MessageToDict(request.arguments)),
        } | {name: value for name, value in (("outcome", outcome), ("reason", reason)) if value}
        with contextlib.suppress(AuditBroken, StorageUnavailable):
            await asyncio.to_thread(self._audit.append, action, f"member {request.sender.id}", **facts)


def _same(request: InvokeSkillRequest, skill: str) -> None:
    if request.skill != skill:
        raise InvalidRequest(
            f"action_index {request.action_index} of this turn is a use of {skill!r} already: count actions on"
        )


class _Use(NamedTuple):
    """One use of a skill."""

    skill: str
    answer: "asyncio.Task[InvokeSkillResponse]"


class _Answered:
    """The last uses that were answered, oldest first."""

    def __init__(self) -> None:
        self._uses: dict[str, tuple[float, _Use]] = {}

    def get(self, name: str) -> _Use | None:
        until, use = self._uses.get(name, (0.0, None))
        return use if until > monotonic() else None

    def keep(self, name: str, use: _Use) -> None:
        now = monotonic()
        self._uses[name] = now + _REMEMBERED_S, use
        while len(self._uses) > _REMEMBERED or self._oldest_until() < now:
            del self._uses[next(iter(self._uses))]

    def _oldest_until(self) -> float:
        return next(iter(self._uses.values()))[0]


class _Checked:
    """A skill whose description holds, and whose arguments are checked before it sees them."""

    def __init__(self, name: str, plugin: Skill) -> None:
        """Raises InvalidSetting."""
        self.plugin = plugin
        description = plugin.describe("en")
        if description.name != name:
            raise InvalidSetting(f"the skill plugin {name!r} describes itself as {description.name!r}: mend the plugin")
        if description.effects == SkillEffects.SKILL_EFFECTS_UNSPECIFIED:
            raise InvalidSetting(f"the skill plugin {name!r} does not say what it changes: set `effects` in the plugin")
        self.changes_something = description.effects != SkillEffects.SKILL_EFFECTS_NONE
        try:
            self._validate = fastjsonschema.compile(
                MessageToDict(description.arguments_schema), handlers=_NO_REMOTE, use_default=False, fast_fail=False
            )
        except fastjsonschema.JsonSchemaDefinitionException as error:
            raise InvalidSetting(f"the skill plugin {name!r} has no valid schema of arguments: {error}") from error

    def check(self, arguments: Struct) -> None:
        """Raises InvalidArguments, which says of each argument what is wrong, but not its value."""
        try:
            self._validate(MessageToDict(arguments), name_prefix="arguments")
        except fastjsonschema.JsonSchemaException as error:
            raise InvalidArguments(str(error)) from None


def _refuse(address: str) -> NoReturn:
    raise fastjsonschema.JsonSchemaDefinitionException(f"it refers to {address}; a schema must be whole in itself")


_NO_REMOTE = dict.fromkeys(("http", "https", "ftp", "file", "data"), _refuse)
