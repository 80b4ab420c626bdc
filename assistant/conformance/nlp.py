"""Does a service keep the contract of assistant.api.nlp.v1.NlpService?

    for result in await run("127.0.0.1:7002"):
        print(result.outcome, result.name, result.detail)

It needs no more of the service than the contract says: plain gRPC, no TLS, any language, any engine. It asks
about 200 short questions, and one of 64 KiB; of an engine that is paid by the word, that is what it costs.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import fastjsonschema
import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from assistant.api.message.v1.message_pb2 import (
    Account,
    Arrival,
    Card,
    CardClick,
    Content,
    Conversation,
    ConversationKind,
    Departure,
    Event,
    InboundMessage,
    Link,
    Location,
    Media,
    Member,
    MenuClick,
    OtherEvent,
    Scan,
    Text,
    Unknown,
)
from assistant.api.nlp.v1 import nlp_pb2
from assistant.api.nlp.v1.nlp_pb2 import (
    Action,
    Capability,
    DescribeModelRequest,
    DescribeModelResponse,
    GenerateReplyRequest,
    GenerateReplyResponse,
    HistoryEntry,
    Role,
    SkillResult,
    StreamReplyRequest,
    StreamReplyResponse,
)
from assistant.api.nlp.v1.nlp_pb2_grpc import NlpServiceStub
from assistant.api.skill.v1.skill_pb2 import Skill, SkillEffects
from assistant.conformance import Check, Mismatch, Result, Skipped, examine

SERVICE = nlp_pb2.DESCRIPTOR.services_by_name["NlpService"].full_name

_TEXT_LIMIT_BYTES = 64 * 1024
_STATE_LIMIT_BYTES = 16 * 1024
_ROUNDS = 4
_CALLERS = 50
_IMPATIENT_S = 0.001


async def run(target: str, *, timeout_s: float = 30.0) -> list[Result]:
    """Check the service at `target` ("host:port" or "unix:/path"); `timeout_s` is what one answer may take."""
    return [result async for result in results(target, timeout_s=timeout_s)]


async def results(target: str, *, timeout_s: float = 30.0) -> AsyncIterator[Result]:
    """The same, each result as it comes."""
    async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        async for result in examine(CHECKS, _Subject(channel, timeout_s)):
            yield result


# --- The service under examination ------------------------------------------------------------------------


@dataclass
class _Subject:
    channel: grpc.aio.Channel
    timeout_s: float
    _turns: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.nlp = NlpServiceStub(self.channel)

    def request(self, *content: Content | str, skills: Sequence[Skill] = ()) -> GenerateReplyRequest:
        """A turn of its own, of a member who says this."""
        turn = f"conformance-{next(self._turns)}"
        account, member = Account(channel="conformance", name="default"), Member(id="conformance-member")
        conversation = Conversation(id=member.id, kind=ConversationKind.CONVERSATION_KIND_DIRECT)
        message = InboundMessage(
            account=account,
            message_id=turn,
            conversation=conversation,
            sender=member,
            content=[_text(part) if isinstance(part, str) else part for part in content],
        )
        return GenerateReplyRequest(
            turn_id=turn, account=account, conversation=conversation, message=message, skills=skills
        )

    async def reply(self, request: GenerateReplyRequest) -> GenerateReplyResponse:
        """What it says, if anything. Raises Mismatch if it is not well-formed."""
        response: GenerateReplyResponse = await self.nlp.GenerateReply(request, timeout=self.timeout_s)
        _well_formed(response, request)
        return response

    async def answer(self, request: GenerateReplyRequest) -> GenerateReplyResponse:
        """What it says. Raises Mismatch if it says nothing."""
        response = await self.reply(request)
        if not response.content and not response.actions:
            raise Mismatch("an answer, if only to say that there is none", "neither content nor actions")
        return response

    async def answers(self, *texts: str) -> None:
        """Raises Mismatch unless it answers each of the texts."""
        for text in texts:
            await self.answer(self.request(text))

    async def describe(self) -> DescribeModelResponse:
        response: DescribeModelResponse = await self.nlp.DescribeModel(DescribeModelRequest(), timeout=self.timeout_s)
        return response

    async def stream(self, request: GenerateReplyRequest) -> list[StreamReplyResponse]:
        call = self.nlp.StreamReply(StreamReplyRequest(request=request), timeout=self.timeout_s)
        return [response async for response in call]

    async def call(self, path: str, payload: bytes) -> bytes:
        """Any unary call, as it goes over the wire."""
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(path)
        return await method(payload, timeout=self.timeout_s)


def _text(text: str) -> Content:
    return Content(text=Text(text=text))


def _well_formed(response: GenerateReplyResponse, request: GenerateReplyRequest) -> None:
    """Raises Mismatch."""
    if response.content and response.actions:
        raise Mismatch("content or actions", "both")
    if not 0 <= response.confidence <= 1:
        raise Mismatch("a confidence from 0 to 1", f"{response.confidence}")
    if any(not 0 <= citation.score <= 1 for citation in response.citations):
        raise Mismatch("citations with a score from 0 to 1", "others")
    if response.state.ByteSize() > _STATE_LIMIT_BYTES:
        raise Mismatch(f"a state of at most {_STATE_LIMIT_BYTES} bytes", f"{response.state.ByteSize()}")
    for content in response.content:
        _sayable(content)
    for action in response.actions:
        _offered(action, request.skills)


def _sayable(content: Content) -> None:
    kind = content.WhichOneof("kind")
    if kind in (None, "event", "unknown"):
        raise Mismatch("content that can be sent", f"content of the kind {kind}")
    size_bytes = len(content.text.text.encode())
    if kind == "text" and not 0 < size_bytes <= _TEXT_LIMIT_BYTES:
        raise Mismatch(f"a text of 1 to {_TEXT_LIMIT_BYTES} bytes", f"one of {size_bytes}")


def _offered(action: Action, skills: Sequence[Skill]) -> None:
    skill = next((skill for skill in skills if skill.name == action.skill), None)
    if skill is None:
        raise Mismatch(f"a skill of those offered ({[skill.name for skill in skills]})", f"{action.skill!r}")
    try:
        fastjsonschema.compile(MessageToDict(skill.arguments_schema))(
            MessageToDict(action.arguments), name_prefix="arguments"
        )
    except fastjsonschema.JsonSchemaValueException as error:
        raise Mismatch(f"arguments that fit the schema of {skill.name!r}", str(error)) from None


# --- Questions --------------------------------------------------------------------------------------------


def _skill(name: str, description: str, **properties: object) -> Skill:
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return Skill(
        name=name,
        description=description,
        arguments_schema=ParseDict(schema, Struct()),
        effects=SkillEffects.SKILL_EFFECTS_NONE,
    )


_SKILLS = (
    _skill(
        "clock",
        "Tells the current time, today's date or the day of the week. 查询现在的时间、今天的日期或星期几。",
        what={"type": "string", "enum": ["time", "date", "weekday"]},
        timezone={"type": "string"},
    ),
    _skill("canteen_menu", "Tells what the canteen serves today. 查询今天的食堂菜单。"),
)
_FOR_SKILLS = ("现在几点了？", "what time is it?", "今天星期几？")

_WORDLESS = (
    Content(image=Media(media_id="m", media_type="image/png")),
    Content(voice=Media(media_id="m", media_type="audio/amr")),
    Content(voice=Media(media_id="m", transcript="你好")),
    Content(video=Media(media_id="m")),
    Content(file=Media(media_id="m", name="报告.pdf", size_bytes=1)),
    Content(location=Location(latitude=22.5, longitude=114.0, label="深圳")),
    Content(link=Link(title="t", url="https://example.com/")),
    Content(card=Card(card_id="c", title="t")),
    Content(event=Event(arrival=Arrival(first=True))),
    Content(event=Event(arrival=Arrival(first=False))),
    Content(event=Event(departure=Departure())),
    Content(event=Event(menu_click=MenuClick(key="no such entry"))),
    Content(event=Event(card_click=CardClick(card_id="c", action_id="no such button"))),
    Content(event=Event(location=Location(latitude=22.5, longitude=114.0))),
    Content(event=Event(scan=Scan(kind="qrcode", result="1"))),
    Content(event=Event(other=OtherEvent(), name="something new")),
    Content(unknown=Unknown(name="something new")),
    Content(),  # how a kind of a newer contract looks
)

_UNUSUAL = (
    "🎉",
    "👩‍👩‍👧‍👦🇨🇳",
    "   ",
    "？？？",
    "e\u0301\u200b\u202eabc\u202c",
    "\x00\x07\x1b[31m",
    "𠮷野家",
    "{{7*7}} %s ${HOME} <b>&amp;</b> '; --",
)


# --- Checks: who is there ---------------------------------------------------------------------------------


async def reports_its_health(service: _Subject) -> None:
    """Envoy, Kubernetes and `make status` send requests only where the health service says SERVING."""
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    try:
        payload = await service.call("/grpc.health.v1.Health/Check", request.SerializeToString())
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            raise Skipped("there is no grpc.health.v1.Health: nobody can see when it is not ready") from None
        raise
    status = health_pb2.HealthCheckResponse.FromString(payload).status
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise Mismatch(f"SERVING for {SERVICE}", health_pb2.HealthCheckResponse.ServingStatus.Name(status))


async def offers_reflection(service: _Subject) -> None:
    """With reflection, people can look at the service and call it by hand with grpcurl."""
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    ask: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = service.channel.unary_stream(  # a stream of one request
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    try:
        payloads = [payload async for payload in ask(request, timeout=service.timeout_s)]
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            raise Skipped("there is no reflection: grpcurl needs the proto files") from None
        raise
    answers = [reflection_pb2.ServerReflectionResponse.FromString(payload) for payload in payloads]
    names = [found.name for answer in answers for found in answer.list_services_response.service]
    if SERVICE not in names:
        raise Mismatch(f"{SERVICE} among the services", f"{names}")


async def describes_itself(service: _Subject) -> None:
    """Operators want to know what answers, and the status page shows it."""
    description = await service.describe()
    for name in ("provider", "model", "version"):
        if not getattr(description, name):
            raise Mismatch(f"`{name}` of DescribeModel", "nothing")
    if Capability.CAPABILITY_UNSPECIFIED in description.capabilities:
        raise Mismatch("capabilities of the contract", "CAPABILITY_UNSPECIFIED")
    if not description.ready:
        raise Mismatch("a service that is ready", "ready: false. Run the suite again when the model is loaded")


# --- Checks: answers --------------------------------------------------------------------------------------


async def answers_english(service: _Subject) -> None:
    """A message that cannot be answered is no failure, so the member is always told something."""
    await service.answers("hello", "ping", "How do I apply for annual leave?")


async def answers_chinese(service: _Subject) -> None:
    """Most members write Chinese."""
    await service.answers("你好", "帮助", "年假怎么申请？")


async def names_what_answered(service: _Subject) -> None:
    """An answer that was wrong can only be mended if it says which engine and version gave it."""
    response = await service.answer(service.request("hello"))
    if not response.model:
        raise Mismatch("`model`, such as embedded/1", "nothing")


async def answers_after_a_long_history(service: _Subject) -> None:
    """Conversations get long, and the caller alone decides how much of them it shows."""
    request = service.request("hello")
    for number in range(100):
        request.history.add(role=Role.ROLE_MEMBER, content=[_text(f"第 {number} 个问题")])
        request.history.add(role=Role.ROLE_ASSISTANT, content=[_text(f"answer {number}")])
    await service.answer(request)


async def answers_a_history_of_any_content(service: _Subject) -> None:
    """Pictures and events are part of what was said before."""
    request = service.request("hello")
    request.history.extend(HistoryEntry(role=Role.ROLE_MEMBER, content=[content]) for content in _WORDLESS)
    await service.answer(request)


async def takes_any_kind_of_content(service: _Subject) -> None:
    """Members send pictures, click menus and use what is new on the platform; none of it may fail."""
    for content in _WORDLESS:
        await service.reply(service.request(content))
    await service.reply(service.request("look", *_WORDLESS[:2]))


async def answers_unusual_characters(service: _Subject) -> None:
    """Emoji, control characters and markup come every day and must not break anything."""
    await service.answers(*_UNUSUAL)


async def answers_a_huge_text(service: _Subject) -> None:
    """Somebody pastes a whole document sooner or later; the contract allows 64 KiB."""
    await service.answers("长" * (_TEXT_LIMIT_BYTES // len("长".encode())))


async def answers_a_repeated_turn(service: _Subject) -> None:
    """A turn whose process died is tried again with the same turn_id."""
    request = service.request("hello")
    await service.answer(request)
    await service.answer(request)


async def answers_many_at_once(service: _Subject) -> None:
    """Conversations run in parallel, and a service that fails under 50 callers fails at nine in the morning."""
    await asyncio.gather(*(service.answers("hello") for _ in range(_CALLERS)))


async def goes_on_with_its_own_state(service: _Subject) -> None:
    """What it gives as state comes back with the next turn, perhaps to another replica."""
    first = await service.answer(service.request("你好"))
    following = service.request("现在几点了？")
    following.state.CopyFrom(first.state)
    await service.answer(following)


async def bears_the_state_of_another_engine(service: _Subject) -> None:
    """Engines are swapped while conversations are open, and the state of the old one still arrives."""
    request = service.request("你好")
    request.state.update({"slots": {"day": None, "who": ["a", 1.5]}, "language": 7, "step": "confirm"})
    await service.answer(request)


async def ignores_fields_that_it_does_not_know(service: _Subject) -> None:
    """Callers are updated before services, and send fields of a newer contract."""
    newer = b"\xc2\x3e\x05newer"  # field 1000, length-delimited
    payload = await service.call(f"/{SERVICE}/GenerateReply", service.request("hello").SerializeToString() + newer)
    if not GenerateReplyResponse.FromString(payload).content:
        raise Mismatch("the answer that it gives without the new field", "no content")


# --- Checks: skills ---------------------------------------------------------------------------------------


async def proposes_no_skill_that_is_not_offered(service: _Subject) -> None:
    """The caller offers what the member may use; anything else would fail, or be a hole."""
    await service.answers(*_FOR_SKILLS)
    for text in _FOR_SKILLS:
        await service.answer(service.request(text, skills=_SKILLS[1:]))


async def proposes_skills_with_fitting_arguments(service: _Subject) -> None:
    """The caller runs what is proposed; arguments that break the schema fail in front of the member."""
    for text in _FOR_SKILLS:
        if (await service.answer(service.request(text, skills=_SKILLS))).actions:
            return
    raise Skipped("it proposed no action, though asked for the time and offered a clock")


async def ends_its_rounds(service: _Subject) -> None:
    """The caller runs actions a few rounds at most; an engine that never ends leaves the member without answer."""
    result = ParseDict({"timezone": "Asia/Shanghai", "time": "14:05", "date": "2026-01-31", "weekday": 6}, Struct())
    for succeeded in (True, False):
        request = service.request(_FOR_SKILLS[0], skills=_SKILLS)
        for _ in range(_ROUNDS):
            response = await service.answer(request)
            if response.content:
                break
            for action in response.actions:
                request.skill_results.add(
                    action=action,
                    succeeded=succeeded,
                    result=result if succeeded else None,
                    error_reason="" if succeeded else "SERVICE_UNAVAILABLE",
                )
        else:
            outcome = "succeeded" if succeeded else "failed"
            raise Mismatch(f"an answer after at most {_ROUNDS} rounds of skills that {outcome}", "more actions")


async def words_the_result_of_any_skill(service: _Subject) -> None:
    """A turn may begin with one engine and end with another, after a skill that this one would not have used."""
    request = service.request("食堂今天吃什么？", skills=_SKILLS)
    done = SkillResult(action=Action(skill=_SKILLS[1].name), succeeded=True)
    done.result.update({"dishes": ["饺子", "rice"]})
    request.skill_results.append(done)
    await service.answer(request)


# --- Checks: streams --------------------------------------------------------------------------------------


async def ends_a_stream_with_one_summary(service: _Subject) -> None:
    """Callers take the summary for the whole answer, and stop reading after it."""
    request = service.request("你好")
    pieces = await service.stream(request)
    kinds = [piece.WhichOneof("kind") for piece in pieces]
    if kinds[-1:] != ["summary"] or kinds.count("summary") != 1 or None in kinds:
        raise Mismatch("any number of text_delta, then one summary", f"{kinds[-5:]}")
    summary = pieces[-1].summary
    _well_formed(summary, request)
    if not summary.content and not summary.actions:
        raise Mismatch("the whole answer in the summary", "neither content nor actions")


async def streams_what_the_summary_says(service: _Subject) -> None:
    """Members read the deltas while they come, and the summary is what is kept."""
    pieces = await service.stream(service.request("How do I apply for annual leave?"))
    streamed = "".join(piece.text_delta for piece in pieces)
    if not streamed:
        raise Skipped("it streams no deltas")
    said = "".join(content.text.text for content in pieces[-1].summary.content)
    if streamed.split() != said.split():
        raise Mismatch("deltas that make up the text of the summary", "another text")


# --- Checks: failures -------------------------------------------------------------------------------------


async def refuses_a_request_without_a_message(service: _Subject) -> None:
    """INVALID_ARGUMENT tells the caller not to repeat; any other status makes it try again and again."""
    await _refused(service, GenerateReplyRequest())
    await _refused(service, GenerateReplyRequest(turn_id="conformance-empty"))


async def says_why_it_refuses(service: _Subject) -> None:
    """Whoever writes a caller sees only the message of the status."""
    error = await _refused(service, GenerateReplyRequest())
    if not error.details():
        raise Mismatch("a message that names the field", "an empty one")


async def refuses_a_stream_without_a_message(service: _Subject) -> None:
    """A stream fails as a single answer does."""
    try:
        pieces = await service.stream(GenerateReplyRequest())
    except grpc.aio.AioRpcError as error:
        _expect(error, grpc.StatusCode.INVALID_ARGUMENT)
    else:
        raise Mismatch("INVALID_ARGUMENT", f"{len(pieces)} responses")


async def says_unimplemented_for_a_method_that_it_has_not(service: _Subject) -> None:
    """Callers of a newer contract fall back when they see UNIMPLEMENTED, and on nothing else."""
    try:
        await service.call(f"/{SERVICE}/NoSuchMethod", b"")
    except grpc.aio.AioRpcError as error:
        _expect(error, grpc.StatusCode.UNIMPLEMENTED)
    else:
        raise Mismatch("UNIMPLEMENTED", "an answer")


async def outlives_callers_without_patience(service: _Subject) -> None:
    """Callers give up; whatever they leave behind must not block those who come after them."""
    request = service.request("hello")
    for _ in range(20):
        try:
            await service.nlp.GenerateReply(request, timeout=_IMPATIENT_S)
        except grpc.aio.AioRpcError as error:
            _expect(error, grpc.StatusCode.DEADLINE_EXCEEDED)
        service.nlp.StreamReply(StreamReplyRequest(request=request), timeout=service.timeout_s).cancel()
    await service.answers("hello")


async def _refused(service: _Subject, request: GenerateReplyRequest) -> grpc.aio.AioRpcError:
    try:
        await service.nlp.GenerateReply(request, timeout=service.timeout_s)
    except grpc.aio.AioRpcError as error:
        _expect(error, grpc.StatusCode.INVALID_ARGUMENT)
        return error
    raise Mismatch("INVALID_ARGUMENT", "an answer")


def _expect(error: grpc.aio.AioRpcError, code: grpc.StatusCode) -> None:
    if error.code() != code:
        raise Mismatch(code.name, f"{error.code().name}: {error.details()}") from None


CHECKS: tuple[Check[_Subject], ...] = (
    reports_its_health,
    offers_reflection,
    describes_itself,
    answers_english,
    answers_chinese,
    names_what_answered,
    answers_after_a_long_history,
    answers_a_history_of_any_content,
    takes_any_kind_of_content,
    answers_unusual_characters,
    answers_a_huge_text,
    answers_a_repeated_turn,
    answers_many_at_once,
    goes_on_with_its_own_state,
    bears_the_state_of_another_engine,
    ignores_fields_that_it_does_not_know,
    proposes_no_skill_that_is_not_offered,
    proposes_skills_with_fitting_arguments,
    ends_its_rounds,
    words_the_result_of_any_skill,
    ends_a_stream_with_one_summary,
    streams_what_the_summary_says,
    refuses_a_request_without_a_message,
    says_why_it_refuses,
    refuses_a_stream_without_a_message,
    says_unimplemented_for_a_method_that_it_has_not,
    outlives_callers_without_patience,
)
"""In the order in which one would mend a service."""
