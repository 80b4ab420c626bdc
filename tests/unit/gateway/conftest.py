"""A gateway's turns over real parts: a real SQLite inbox, real gRPC servers for engine, skills and delivery."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from assistant.api.message.v1.message_pb2 import (
    CONVERSATION_KIND_DIRECT,
    CONVERSATION_KIND_GROUP,
    Account,
    Content,
    InboundMessage,
    Text,
)
from assistant.api.nlp.v1 import nlp_pb2
from assistant.api.nlp.v1.nlp_pb2 import GenerateReplyRequest, GenerateReplyResponse
from assistant.api.nlp.v1.nlp_pb2_grpc import NlpServiceStub
from assistant.api.reply.v1 import reply_pb2
from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceStub
from assistant.api.skill.v1 import skill_pb2
from assistant.api.skill.v1.skill_pb2_grpc import SkillServiceStub
from assistant.client import connect
from assistant.errors import AssistantError, UnknownDelivery, UnknownSkill
from assistant.journal import Journal
from assistant.plugin import Codec, HttpBody
from assistant.policy import Policy
from assistant.server import Call, Server
from assistant.settings import Names
from gateway.conversations import Conversations
from gateway.delivery import Delivery
from gateway.directory import Directory
from gateway.engine import Engine
from gateway.held import HeldCallback
from gateway.inbox import MIGRATIONS, Inbox
from gateway.policy import Gatekeeper
from gateway.turns import Turns

Away = Callable[[], AbstractContextManager[None]]


class PlainCodec(Codec):
    """Answers of up to 100 bytes of text fit the HTTP answer."""

    reply_limit_s = 5.0
    redelivery_s = 0.6
    acknowledgement = HttpBody(b"", "text/plain")

    def __init__(self, account: Account, settings: object) -> None:
        self._account = account

    def parse(self, payload: bytes) -> InboundMessage:
        return InboundMessage.FromString(payload)

    def format(self, message: InboundMessage, content: Sequence[Content]) -> bytes | None:
        joined = "\n".join(part.text.text for part in content).encode()
        return joined if len(joined) <= 100 else None


class ScriptedEngine:
    """Echoes; what it does differently stands in the message: "slow 0.3 …", "fail …", "long …", and so on."""

    def __init__(self) -> None:
        self.requests: list[GenerateReplyRequest] = []
        self.failing: AssistantError | None = None

    async def GenerateReply(self, request: GenerateReplyRequest, call: Call) -> GenerateReplyResponse:
        self.requests.append(GenerateReplyRequest.FromString(request.SerializeToString()))
        text = request.message.content[0].text.text
        response = GenerateReplyResponse(model="scripted/1")
        match text.split():
            case ["slow", seconds, *_]:
                await asyncio.sleep(float(seconds))
            case ["fail", *_] if self.failing is not None:
                raise self.failing
            case ["long", *_]:
                text = text + "." * 100
            case ["new"]:
                response.starts_conversation = True
            case ["count"]:
                count = int(request.state["count"] if "count" in request.state.fields else 0) + 1
                response.state["count"] = count
                text = str(count)
            case ["silent"]:
                return response
            case ["use", skill] if not request.skill_results:
                response.actions.add(skill=skill)
                return response
            case ["use", _]:
                result = request.skill_results[0]
                text = str(result.result["said"]) if result.succeeded else result.error_reason
            case ["circle"]:
                response.actions.add(skill="clock")
                return response
        response.content.add(text=Text(text=f"re: {text}"))
        return response


class ScriptedSkills:
    """Has one skill, which says the turn and the index it was invoked with."""

    def ListSkills(self, request: skill_pb2.ListSkillsRequest, call: Call) -> skill_pb2.ListSkillsResponse:
        return skill_pb2.ListSkillsResponse(skills=[skill_pb2.Skill(name="clock", description="tells")])

    def InvokeSkill(self, request: skill_pb2.InvokeSkillRequest, call: Call) -> skill_pb2.InvokeSkillResponse:
        if request.skill != "clock":
            raise UnknownSkill
        response = skill_pb2.InvokeSkillResponse()
        response.result["said"] = f"{request.turn_id} {request.action_index} {request.sender.id}"
        return response


class RecordingReply:
    """Takes deliveries as reply_svc does; `state` is what it says of all of them. Knows who is in which department."""

    def __init__(self) -> None:
        self.delivered: dict[str, list[str]] = {}
        self.repeated = 0
        self.state = reply_pb2.DELIVERY_STATE_DELIVERED
        self.departments: dict[str, list[str]] = {}
        self.sources: list[str] = []
        self.failing: AssistantError | None = None
        """What the platform answers to whoever asks for members or addresses."""
        self.asked: list[str] = []
        """The members asked for, and "sources" for each time that addresses were."""

    def DeliverReply(self, request: reply_pb2.DeliverReplyRequest, call: Call) -> reply_pb2.DeliverReplyResponse:
        self.repeated += request.request_id in self.delivered
        self.delivered.setdefault(request.request_id, [part.text.text for part in request.content])
        return reply_pb2.DeliverReplyResponse(delivery_id=request.request_id, state=self.state)

    def GetDelivery(self, request: reply_pb2.GetDeliveryRequest, call: Call) -> reply_pb2.GetDeliveryResponse:
        if request.request_id not in self.delivered:
            raise UnknownDelivery
        return reply_pb2.GetDeliveryResponse(delivery=reply_pb2.Delivery(state=self.state))

    def GetMember(self, request: reply_pb2.GetMemberRequest, call: Call) -> reply_pb2.GetMemberResponse:
        self.asked.append(request.member_id)
        if self.failing is not None:
            raise self.failing
        return reply_pb2.GetMemberResponse(department_ids=self.departments.get(request.member_id, ()))

    def ListCallbackSources(
        self, request: reply_pb2.ListCallbackSourcesRequest, call: Call
    ) -> reply_pb2.ListCallbackSourcesResponse:
        self.asked.append("sources")
        if self.failing is not None:
            raise self.failing
        return reply_pb2.ListCallbackSourcesResponse(networks=self.sources)


class PlainPolicy(Policy, frozen=True, kw_only=True):
    """That of a platform which tells everything."""

    tells_departments = True
    publishes_sources = True
    ignores_case = True


def message(text: str, *, number: str = "1", member: str = "zhang", group: str = "") -> InboundMessage:
    """A member's text, written to the assistant alone or in a group."""
    made = InboundMessage(account=Account(channel="plain", name="default"), message_id=number)
    made.sender.id = member
    made.conversation.id = group or member
    made.conversation.kind = CONVERSATION_KIND_GROUP if group else CONVERSATION_KIND_DIRECT
    made.content.add(text=Text(text=text))
    made.sent_at.GetCurrentTime()
    return made


@dataclass
class Life:
    """One life of a gateway."""

    inbox: Inbox
    turns: Turns
    codec: Codec
    taking: set[asyncio.Task[None]] = field(default_factory=set)

    async def say(
        self,
        text: str,
        *,
        number: str = "1",
        member: str = "zhang",
        group: str = "",
        locale: str = "",
        budget_s: float = 4.0,
    ) -> str | None:
        """One callback: what its HTTP answer says, None for an empty acknowledgement."""
        inbound = message(text, number=number, member=member, group=group)
        inbound.locale = locale
        return await self.take(inbound, budget_s=budget_s)

    async def take(
        self, inbound: InboundMessage, *, budget_s: float = 4.0, connection: "asyncio.Event | None" = None
    ) -> str | None:
        """The same for any message. `connection`, once set, is one that broke."""
        callback = Callback(connection or asyncio.Event())
        taking = asyncio.create_task(
            self.turns.take(inbound, self.codec, cast("HeldCallback", callback), time.monotonic(), budget_s)
        )
        self.taking.add(taking)  # its turn goes on after the answer
        taking.add_done_callback(self.taking.discard)
        await asyncio.wait([taking, callback.answer], return_when=asyncio.FIRST_COMPLETED)
        if taking.done() and not taking.cancelled():
            taking.result()
        return await callback.answer


class Callback:
    """What a held callback is to a turn, without HTTP and keys."""

    def __init__(self, broken: asyncio.Event) -> None:
        self.answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._broken = broken

    @property
    def is_open(self) -> bool:
        return not (self.answer.done() or self._broken.is_set())

    async def reply(self, payload: bytes) -> None:
        self._answer(payload.decode())

    def acknowledge(self) -> None:
        self._answer(None)

    def _answer(self, said: str | None) -> None:
        if not self.answer.done():
            self.answer.set_result(said)


@dataclass
class House:
    """The services around the gateway, and the lives that it has among them."""

    folder: Path
    engine: ScriptedEngine = field(default_factory=ScriptedEngine)
    skills: ScriptedSkills = field(default_factory=ScriptedSkills)
    reply: RecordingReply = field(default_factory=RecordingReply)

    @asynccontextmanager
    async def life(
        self,
        *,
        held_callbacks: int = 100,
        drain_s: float = 5.0,
        database: str = "",
        name: str = "test:7000",
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> AsyncIterator[Life]:
        """A gateway from start to stop. `drain_s=0` leaves what is under way as a crash would.

        `clock` is that of the policy.
        """
        database = database or f"sqlite:///{self.folder}/gateway.db"
        inbox = Inbox(await Journal.open(database, MIGRATIONS), name)
        await inbox.open()
        codec = PlainCodec(Account(channel="plain", name="default"), None)
        nlp, reply = connect(f"unix:{self.folder}/nlp"), connect(f"unix:{self.folder}/reply")
        engine = Engine(NlpServiceStub(nlp), SkillServiceStub(nlp), timeout_s=1.0, locale="zh-CN")
        turns = Turns(
            inbox,
            Conversations(inbox, turns=3),
            engine,
            Delivery(ReplyServiceStub(reply)),
            {("plain", "default"): codec},
            held_callbacks=held_callbacks,
            locale="zh-CN",
            gatekeeper=self._gatekeeper(policy, ReplyServiceStub(reply), clock) if policy else None,
            orphan_grace_s=0.2,
        )
        await turns.recover()
        try:
            yield Life(inbox, turns, codec)
        finally:
            await turns.drain(drain_s)
            await inbox.close()
            await nlp.close()
            await reply.close()

    def policy(self, **settings: Any) -> Policy:
        """A policy, on a platform that makes everything possible."""
        given = {key: Names(value) if isinstance(value, str) else value for key, value in settings.items()}
        return PlainPolicy(**given)

    def _gatekeeper(self, policy: Policy, reply: ReplyServiceStub, clock: Callable[[], float]) -> Gatekeeper:
        directory = Directory(reply, insist_s=0.5, clock=clock)
        return Gatekeeper({("plain", "default"): policy}, directory, "zh-CN", clock)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """The services around a gateway, running."""
    house = House(tmp_path)
    nlp = nlp_pb2.DESCRIPTOR.services_by_name["NlpService"]
    skill = skill_pb2.DESCRIPTOR.services_by_name["SkillService"]
    reply = reply_pb2.DESCRIPTOR.services_by_name["ReplyService"]
    async with AsyncExitStack() as stack:
        servers = [
            Server({nlp: house.engine, skill: house.skills}, listen=f"unix:{tmp_path}/nlp", drain_s=0.0),
            Server({reply: house.reply}, listen=f"unix:{tmp_path}/reply", drain_s=0.0),
        ]
        for server in servers:
            await stack.enter_async_context(server)
        yield house


@pytest.fixture
def away(postgres_server: str, postgres_url: str) -> Away:
    """`with away():` meanwhile nobody is let into the database, and all who were in it are out."""
    name = postgres_url.rpartition("/test_")[2].partition("?")[0]

    @contextmanager
    def meanwhile() -> Iterator[None]:
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE test_{name} ALLOW_CONNECTIONS false")
            connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test_{name}'")
            yield
            connection.execute(f"ALTER DATABASE test_{name} ALLOW_CONNECTIONS true")

    return meanwhile
