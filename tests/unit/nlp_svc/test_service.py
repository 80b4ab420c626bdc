"""The NLP service: what it refuses, what it passes on, and how it waits for its engine."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from assistant.api.message.v1.message_pb2 import Content, Text
from assistant.api.nlp.v1 import nlp_pb2
from assistant.api.nlp.v1.nlp_pb2 import (
    DescribeModelRequest,
    DescribeModelResponse,
    GenerateReplyRequest,
    GenerateReplyResponse,
    Role,
    StreamReplyRequest,
    StreamReplyResponse,
)
from assistant.api.nlp.v1.nlp_pb2_grpc import NlpServiceStub
from assistant.errors import DeadlineExceeded, EngineUnavailable, Internal, InvalidRequest, InvalidSetting
from assistant.plugin import Engine
from assistant.settings import Source
from nlp_svc import router
from nlp_svc.router import Router
from nlp_svc.service import NlpService

NLP = nlp_pb2.DESCRIPTOR.services_by_name["NlpService"]


class Parrot(Engine):
    """Repeats what it hears; misbehaves on demand."""

    def __init__(self, settings: Any = None) -> None:
        self.loads_after = asyncio.Event()
        self.failures = 0

    async def load(self) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("the model is not mounted yet")
        await self.loads_after.wait()

    def describe(self) -> DescribeModelResponse:
        return DescribeModelResponse(provider="test", model="parrot", version="1")

    async def generate(self, request: GenerateReplyRequest) -> GenerateReplyResponse:
        text = request.message.content[0].text.text
        if text == "fail":
            raise KeyError("a secret of the member")
        if text == "ponder":
            await asyncio.sleep(60)
        return GenerateReplyResponse(content=[Content(text=Text(text=text))], model="parrot/1")

    async def stream(self, request: GenerateReplyRequest) -> AsyncIterator[str | GenerateReplyResponse]:
        whole = await self.generate(request)
        for word in whole.content[0].text.text.split():
            yield word
        if whole.content[0].text.text != "break off":
            yield whole
        if whole.content[0].text.text == "go on":
            yield "and on"


def said(text: str) -> GenerateReplyRequest:
    request = GenerateReplyRequest(turn_id="t")
    request.message.content.add().text.text = text
    return request


@pytest.fixture
def engine() -> Parrot:
    return Parrot()


@pytest.fixture
async def loaded(engine: Parrot) -> Router:
    engine.loads_after.set()
    loaded = Router(engine)
    await loaded.load()
    return loaded


@pytest.fixture
async def nlp(serve: Any, loaded: Router) -> NlpServiceStub:
    return NlpServiceStub(await serve(NLP, NlpService(loaded)))


async def test_the_engine_answers(nlp: NlpServiceStub) -> None:
    """A request reaches the engine, and its answer the caller, unchanged."""
    response = await nlp.GenerateReply(said("你好"), timeout=5)
    assert response.content[0].text.text == "你好"
    assert response.model == "parrot/1"


def no_role() -> GenerateReplyRequest:
    request = said("hello")
    request.history.add(role=Role.ROLE_MEMBER)
    request.history.add()
    return request


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GenerateReplyRequest(), "turn_id"),
        (GenerateReplyRequest(turn_id="t"), r"message\.content"),
        (no_role(), r"history\[1\]\.role"),
    ],
)
async def test_an_incomplete_request_is_refused_by_name(
    nlp: NlpServiceStub, request_: GenerateReplyRequest, field: str
) -> None:
    """The error names the field, for a single answer and for a stream."""
    with pytest.raises(InvalidRequest, match=field):
        await nlp.GenerateReply(request_, timeout=5)
    with pytest.raises(InvalidRequest, match=field):
        await drained(nlp, request_)


async def drained(nlp: NlpServiceStub, request: GenerateReplyRequest) -> list[StreamReplyResponse]:
    return [piece async for piece in nlp.StreamReply(StreamReplyRequest(request=request), timeout=5)]


async def test_a_stream_is_deltas_and_then_the_whole(nlp: NlpServiceStub) -> None:
    """Words travel as they come, and the summary is the last response whatever the engine does after it."""
    assert [piece.text_delta for piece in (await drained(nlp, said("one two")))[:-1]] == ["one", "two"]
    pieces = await drained(nlp, said("go on"))
    assert [piece.WhichOneof("kind") for piece in pieces] == ["text_delta", "text_delta", "summary"]


async def test_a_stream_without_the_whole_answer_fails(nlp: NlpServiceStub) -> None:
    """An engine that breaks off does not leave its caller with half an answer taken for a whole one."""
    with pytest.raises(Internal):
        await drained(nlp, said("break off"))


async def test_a_failure_of_the_engine_tells_nothing(nlp: NlpServiceStub) -> None:
    """An unexpected error is INTERNAL with a fixed text, which holds nothing of the message."""
    with pytest.raises(Internal) as caught:
        await nlp.GenerateReply(said("fail"), timeout=5)
    assert "secret" not in str(caught.value)


async def test_a_slow_engine_is_ended_at_the_deadline(nlp: NlpServiceStub) -> None:
    """The caller's time is the engine's time, and the service goes on afterwards."""
    with pytest.raises(DeadlineExceeded):
        await nlp.GenerateReply(said("ponder"), timeout=0.1)
    await nlp.GenerateReply(said("hello"), timeout=5)


async def test_until_it_is_loaded_the_engine_is_not_asked(serve: Any, engine: Parrot) -> None:
    """While it loads, DescribeModel says so and requests fail with the time to ask again."""
    loading = Router(engine)
    nlp = NlpServiceStub(await serve(NLP, NlpService(loading)))
    task = asyncio.create_task(loading.load())
    assert not (await nlp.DescribeModel(DescribeModelRequest(), timeout=5)).ready
    with pytest.raises(EngineUnavailable) as caught:
        await nlp.GenerateReply(said("hello"), timeout=0.1)
    assert caught.value.retry_after_s
    engine.loads_after.set()
    await task
    description = await nlp.DescribeModel(DescribeModelRequest(), timeout=5)
    assert description.ready
    assert description.HasField("load_time")
    assert description.model == "parrot"


async def test_an_engine_that_does_not_load_is_tried_again(engine: Parrot) -> None:
    """The cause may lie outside and pass, so loading is repeated until it succeeds."""
    engine.failures = 1
    engine.loads_after.set()
    patient = Router(engine, retry_s=(0.01,))
    await patient.load()
    assert patient.engine() is engine


def test_an_engine_is_created_by_name() -> None:
    """The default engine is there without any setting."""
    assert router.create("embedded", Source({}, {}, "test")).describe().provider == "embedded"


def test_an_unknown_engine_stops_the_start() -> None:
    """The error names the setting, what it says, and what is installed."""
    with pytest.raises(InvalidSetting, match=r"nlp\.provider is 'oracle'.*embedded"):
        router.create("oracle", Source({}, {}, "test"))
