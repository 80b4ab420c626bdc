"""The skill service: arguments are checked, and every use happens once."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from assistant import audit, plugin
from assistant.api.message.v1.message_pb2 import Account
from assistant.api.skill.v1 import skill_pb2
from assistant.api.skill.v1.skill_pb2 import InvokeSkillRequest, InvokeSkillResponse, ListSkillsRequest, SkillEffects
from assistant.api.skill.v1.skill_pb2 import Skill as SkillDescription
from assistant.api.skill.v1.skill_pb2_grpc import SkillServiceStub
from assistant.audit import Audit
from assistant.errors import (
    AssistantError,
    DeadlineExceeded,
    Internal,
    InvalidArguments,
    InvalidRequest,
    InvalidSetting,
    PlatformOutcomeUnknown,
    PlatformUnavailable,
    SkillOutcomeUnknown,
    UnknownSkill,
)
from assistant.journal import Journal, Operation
from assistant.settings import Source
from nlp_svc import effects, skills
from nlp_svc.effects import Effects
from nlp_svc.skills import SkillService

SKILLS = skill_pb2.DESCRIPTOR.services_by_name["SkillService"]
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 10}, "days": {"type": "integer", "minimum": 1}},
    "required": ["title"],
    "additionalProperties": False,
}
EFFECTS = [SkillEffects.SKILL_EFFECTS_NONE, SkillEffects.SKILL_EFFECTS_REVERSIBLE]


class Tickets(plugin.Skill):
    """Counts how often it was used; waits and fails on demand."""

    def __init__(self, effects: "SkillEffects.ValueType" = SkillEffects.SKILL_EFFECTS_REVERSIBLE) -> None:
        self.name = "tickets"
        self.schema: dict[str, Any] = SCHEMA
        self.effects = effects
        self.uses = 0
        self.error: Exception | None = None
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    def describe(self, locale: str) -> SkillDescription:
        return SkillDescription(
            name=self.name,
            description=f"Opens a ticket ({locale}).",
            arguments_schema=ParseDict(self.schema, Struct()),
            effects=self.effects,
        )

    async def invoke(self, request: InvokeSkillRequest) -> InvokeSkillResponse:
        self.uses += 1
        await self.may_finish.wait()
        if self.error:
            raise self.error
        response = InvokeSkillResponse()
        response.result["number"] = self.uses
        return response


def use(turn: str = "t", index: int = 0, skill: str = "tickets", **arguments: object) -> InvokeSkillRequest:
    account = Account(channel="loopback", name="default")
    request = InvokeSkillRequest(turn_id=turn, action_index=index, skill=skill, account=account)
    request.arguments.update(arguments or {"title": "printer"})
    return request


@pytest.fixture(params=EFFECTS, ids=["looks", "changes"])
def tickets(request: pytest.FixtureRequest) -> Tickets:
    return Tickets(request.param)


@pytest.fixture
def chain(tmp_path: Path) -> Audit:
    """The audit log of nlp_svc."""
    return Audit("nlp_svc", tmp_path / "audit")


def recorded(tmp_path: Path) -> list[tuple[str, ...]]:
    records = audit.records(audit.chains(tmp_path / "audit"))
    return [(each["action"], *(each["facts"].get(name, "") for name in ("outcome", "reason"))) for each in records]


@pytest.fixture
async def stub(serve: Any, journal: Journal, tickets: Tickets, chain: Audit) -> SkillServiceStub:
    service = SkillService({"tickets": tickets, "clock": clock()}, Effects(journal, keep_days=30), chain)
    return SkillServiceStub(await serve(SKILLS, service))


def clock() -> plugin.Skill:
    return skills.create(Source({}, {}, "test"))["clock"]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_skills_are_listed_by_name(stub: SkillServiceStub) -> None:
    """All skills come sorted, described in the language asked for, Chinese unless said."""
    listed = (await stub.ListSkills(ListSkillsRequest(), timeout=5)).skills
    assert [skill.name for skill in listed] == ["clock", "tickets"]
    assert listed[1].description == "Opens a ticket (zh-CN)."
    listed = (await stub.ListSkills(ListSkillsRequest(locale="en"), timeout=5)).skills
    assert "Tells" in listed[0].description


async def test_a_use_is_answered(stub: SkillServiceStub) -> None:
    """The skill's result comes back."""
    assert (await stub.InvokeSkill(use(), timeout=5)).result["number"] == 1


async def test_a_repeated_use_gets_the_first_answer(stub: SkillServiceStub, tickets: Tickets) -> None:
    """The same turn and index name the same use; another index or turn is another one."""
    numbers = [
        (await stub.InvokeSkill(request, timeout=5)).result["number"]
        for request in (use(), use(), use(index=1), use(turn="u"), use())
    ]
    assert numbers == [1, 1, 2, 3, 1]
    assert tickets.uses == 3


async def test_uses_at_the_same_time_join(stub: SkillServiceStub, tickets: Tickets) -> None:
    """Callers that repeat while the first use is under way wait for its answer."""
    tickets.may_finish.clear()
    calls = [asyncio.create_task(stub.InvokeSkill(use(), timeout=5)) for _ in range(5)]
    await until(lambda: tickets.uses)
    tickets.may_finish.set()
    assert [(await call).result["number"] for call in calls] == [1] * 5
    assert tickets.uses == 1


async def test_a_use_outlives_its_caller(stub: SkillServiceStub, tickets: Tickets) -> None:
    """A caller that gives up and repeats finds the answer of what it began."""
    tickets.may_finish.clear()
    with pytest.raises(DeadlineExceeded):
        await stub.InvokeSkill(use(), timeout=0.1)
    tickets.may_finish.set()
    assert (await stub.InvokeSkill(use(), timeout=5)).result["number"] == 1


async def test_another_skill_cannot_take_the_name_of_a_use(stub: SkillServiceStub, tickets: Tickets) -> None:
    """An index that is used up is refused, rather than answered with the result of something else."""
    await stub.InvokeSkill(use(), timeout=5)
    with pytest.raises(InvalidRequest, match="tickets"):
        await stub.InvokeSkill(use(skill="clock", what="time"), timeout=5)


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ({"days": 1}, ["title"]),
        ({"title": 5}, [r"arguments\.title must be string"]),
        ({"title": "x", "days": 1.5}, [r"arguments\.days must be integer"]),
        ({"title": "a very long title", "days": 0}, [r"arguments\.title", r"arguments\.days"]),
        ({"title": "x", "colour": "red"}, ["colour"]),
    ],
)
async def test_arguments_that_do_not_fit_are_refused(
    stub: SkillServiceStub, tickets: Tickets, arguments: dict[str, object], problems: list[str]
) -> None:
    """Every problem is named, no value is repeated, and the skill is not called."""
    for problem in problems:
        with pytest.raises(InvalidArguments, match=problem) as caught:
            await stub.InvokeSkill(use(**arguments), timeout=5)
        assert "a very long title" not in str(caught.value)
    assert tickets.uses == 0


async def test_whole_numbers_count_as_integers(stub: SkillServiceStub) -> None:
    """A Struct has no integers, so 3.0 is one."""
    await stub.InvokeSkill(use(title="x", days=3), timeout=5)


async def test_an_unknown_skill_is_refused(stub: SkillServiceStub) -> None:
    """The error names the skills that there are."""
    with pytest.raises(UnknownSkill, match="clock, tickets"):
        await stub.InvokeSkill(use(skill="weather"), timeout=5)


async def test_a_use_without_a_turn_is_refused(stub: SkillServiceStub) -> None:
    """Without a name a use could happen twice."""
    with pytest.raises(InvalidRequest, match="turn_id"):
        await stub.InvokeSkill(use(turn=""), timeout=5)


async def test_a_use_that_failed_without_effect_can_be_repeated(stub: SkillServiceStub, tickets: Tickets) -> None:
    """An error that says that nothing was done leaves the way open."""
    tickets.error = PlatformUnavailable()
    with pytest.raises(PlatformUnavailable):
        await stub.InvokeSkill(use(), timeout=0.2)
    before, tickets.error = tickets.uses, None
    assert (await stub.InvokeSkill(use(), timeout=5)).result["number"] == before + 1


@pytest.mark.parametrize("error", [PlatformOutcomeUnknown(), DeadlineExceeded(), ValueError("a bug")])
async def test_an_effect_that_may_have_happened_is_not_repeated(
    serve: Any, journal: Journal, chain: Audit, error: Exception
) -> None:
    """After a failure that leaves it open, repeating says so and does nothing."""
    tickets = Tickets()
    stub = SkillServiceStub(
        await serve(SKILLS, SkillService({"tickets": tickets}, Effects(journal, keep_days=30), chain))
    )
    tickets.error = error
    with pytest.raises((AssistantError if isinstance(error, AssistantError) else Internal, SkillOutcomeUnknown)):
        await stub.InvokeSkill(use(), timeout=5)
    tickets.error = None
    with pytest.raises(SkillOutcomeUnknown):
        await stub.InvokeSkill(use(), timeout=5)
    assert tickets.uses == 1


async def invoke(service: SkillService, request: InvokeSkillRequest) -> InvokeSkillResponse:
    """Call the servicer itself, for tests in which the process around it goes away."""
    return await service.InvokeSkill(request, None)  # type: ignore[arg-type]  # it looks at no call


async def restarted(database: str, tickets: Tickets) -> tuple[Journal, SkillService]:
    journal = await Journal.open(database, effects.MIGRATIONS)
    chain = Audit("nlp_svc", Path(database.removeprefix("sqlite:///")).parent / "audit")
    return journal, SkillService({tickets.name: tickets}, Effects(journal, keep_days=30), chain)


async def test_the_answer_of_an_effect_survives_a_restart(database: str) -> None:
    """A repetition after a restart gets the first answer; the effect happened once."""
    tickets = Tickets()
    journal, service = await restarted(database, tickets)
    await invoke(service, use())
    await journal.close()
    journal, service = await restarted(database, tickets)
    assert (await invoke(service, use())).result["number"] == 1
    assert tickets.uses == 1
    await journal.close()


async def test_another_skill_cannot_take_the_name_of_an_effect_after_a_restart(database: str) -> None:
    """What a use was is remembered with its answer."""
    journal, service = await restarted(database, Tickets())
    await invoke(service, use())
    await journal.close()
    other = Tickets()
    other.name = "other"
    journal, service = await restarted(database, other)
    with pytest.raises(InvalidRequest, match="tickets"):
        await invoke(service, use(skill="other"))
    await journal.close()


async def test_an_effect_cut_off_by_a_crash_is_not_repeated(database: str) -> None:
    """Whether it happened is unknown, so a repetition says that, and does nothing."""
    tickets = Tickets()
    tickets.may_finish.clear()
    journal, service = await restarted(database, tickets)
    cut_off = asyncio.create_task(invoke(service, use()))
    await until(lambda: tickets.uses)
    await journal.close()
    journal, service = await restarted(database, tickets)
    with pytest.raises(SkillOutcomeUnknown):
        await invoke(service, use())
    await journal.close()
    cut_off.cancel()
    assert tickets.uses == 1


async def test_old_effects_are_found_by_an_index(journal: Journal) -> None:
    """Forgetting looks at old rows only, however many there are."""
    plan = Operation("plan", lambda tx, batch: [tx.execute(f"EXPLAIN QUERY PLAN {sql}", (0, 4)) for sql in batch])
    rows = await journal.query(plan, effects.FORGET)
    assert "SCAN" not in str(rows)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "other"}, "describes itself as 'other'"),
        ({"effects": SkillEffects.SKILL_EFFECTS_UNSPECIFIED}, "effects"),
        ({"schema": {"type": "nonsense"}}, "schema"),
        ({"schema": {"$ref": "http://127.0.0.1:1/schema.json"}}, "whole in itself"),
    ],
)
async def test_a_skill_that_describes_itself_wrongly_stops_the_start(
    journal: Journal, chain: Audit, change: dict[str, Any], problem: str
) -> None:
    """The error names the plugin and what is wrong with it."""
    tickets = Tickets()
    for name, value in change.items():
        setattr(tickets, name, value)
    with pytest.raises(InvalidSetting, match=f"'tickets'.*{problem}"):
        SkillService({"tickets": tickets}, Effects(journal, keep_days=30), chain)


# --- The audit log ----------------------------------------------------------------------------------------


async def test_what_is_done_for_whom_is_recorded(serve: Any, journal: Journal, chain: Audit, tmp_path: Path) -> None:
    """Each effect is recorded once, before and after, without the words in its arguments; looking is not recorded."""
    service = SkillService({"tickets": Tickets(), "clock": clock()}, Effects(journal, keep_days=30), chain)
    stub = SkillServiceStub(await serve(SKILLS, service))
    request = use(title="my knee", days=3)
    request.sender.id = "zhangsan"
    for _ in range(2):
        await stub.InvokeSkill(request, timeout=5)
    await stub.InvokeSkill(use(index=1, skill="clock", what="time"), timeout=5)
    assert recorded(tmp_path) == [("skill.begin", "", ""), ("skill.end", "done", "")]
    text = (tmp_path / "audit" / "nlp_svc.jsonl").read_text()
    assert "knee" not in text
    record = json.loads(text.splitlines()[0])
    assert record["actor"] == "member zhangsan"
    assert record["facts"] == {
        "account": "loopback/default",
        "turn_id": "t",
        "action_index": 0,
        "skill": "tickets",
        "arguments_sha256": audit.digest({"title": "my knee", "days": 3.0}),
    }


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidRequest("no"), ("nothing done", "INVALID_REQUEST")),
        (PlatformOutcomeUnknown("perhaps"), ("unknown", "PLATFORM_OUTCOME_UNKNOWN")),
        (ValueError("a secret"), ("unknown", "ValueError")),
    ],
)
async def test_how_an_effect_ended_is_recorded(
    serve: Any, journal: Journal, chain: Audit, tmp_path: Path, error: Exception, outcome: tuple[str, str]
) -> None:
    """What failed can be told from what may have been done; the text of an error is left out."""
    tickets = Tickets()
    tickets.error = error
    stub = SkillServiceStub(await serve(SKILLS, SkillService({"tickets": tickets}, Effects(journal, 30), chain)))
    with pytest.raises(AssistantError):
        await stub.InvokeSkill(use(), timeout=5)
    assert recorded(tmp_path)[:2] == [("skill.begin", "", ""), ("skill.end", *outcome)]
    assert "a secret" not in (tmp_path / "audit" / "nlp_svc.jsonl").read_text()


async def test_a_member_is_served_without_an_audit_log(stub: SkillServiceStub, tmp_path: Path) -> None:
    """A log that cannot be written costs no answer. It is counted: tests/unit/assistant/test_audit.py."""
    (tmp_path / "audit").write_text("in the way")
    assert (await stub.InvokeSkill(use(), timeout=5)).result["number"] == 1
