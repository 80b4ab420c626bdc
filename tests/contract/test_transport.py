"""What a call promises, whichever way it travels: as a plain gRPC call or as an operation on a stream."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client import REGISTRY

from assistant import errors, telemetry, wire
from assistant.api.crypto.v1 import crypto_pb2
from assistant.api.crypto.v1.crypto_pb2 import (
    ListKeysRequest,
    OpenCallbackRequest,
    OpenCallbackResponse,
    SealReplyRequest,
    SealReplyResponse,
)
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.api.reply.v1 import reply_pb2
from assistant.api.reply.v1.reply_pb2 import FetchMediaRequest, FetchMediaResponse, UploadMediaRequest
from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceStub
from assistant.client import Channel, connect
from assistant.errors import BY_REASON, AssistantError
from assistant.server import Call, Server

CRYPTO = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]
REPLY = reply_pb2.DESCRIPTOR.services_by_name["ReplyService"]


class Crypto:
    """One method that computes, one that may wait; the tests say what they do. ListKeys and others are missing."""

    def __init__(self) -> None:
        self.compute: Callable[[OpenCallbackRequest, Call], OpenCallbackResponse]
        self.wait: Callable[[SealReplyRequest, Call], Awaitable[SealReplyResponse]]

    def OpenCallback(self, request: OpenCallbackRequest, call: Call) -> OpenCallbackResponse:
        return self.compute(request, call)

    async def SealReply(self, request: SealReplyRequest, call: Call) -> SealReplyResponse:
        return await self.wait(request, call)


class Reply:
    """Streams: so many chunks as `media_id` says; joins what is uploaded."""

    def __init__(self) -> None:
        self.abandoned = asyncio.Event()

    async def FetchMedia(self, request: FetchMediaRequest, call: Call) -> AsyncIterator[FetchMediaResponse]:
        if request.media_id == "missing":
            raise errors.UnknownMedia("no such file")
        try:
            for number in range(int(request.media_id)):
                yield FetchMediaResponse(chunk=bytes([number % 256]) * 1000)
                await asyncio.sleep(0)
        finally:
            self.abandoned.set()

    async def UploadMedia(
        self, requests: AsyncIterator[UploadMediaRequest], call: Call
    ) -> reply_pb2.UploadMediaResponse:
        chunks = [request.chunk async for request in requests]
        if not chunks:
            raise errors.InvalidMedia("an empty file")
        return reply_pb2.UploadMediaResponse(media_id=str(sum(map(len, chunks))))


@pytest.fixture
def crypto() -> Crypto:
    return Crypto()


@pytest.fixture
def reply() -> Reply:
    return Reply()


@pytest.fixture
async def server(crypto, reply) -> AsyncIterator[Server]:
    async with Server({CRYPTO: crypto, REPLY: reply}, listen="127.0.0.1:0", drain_s=0) as running:
        yield running


@pytest.fixture(params=[True, False], ids=["multiplexed", "plain"])
async def channel(request, server) -> AsyncIterator[Channel]:
    async with connect(f"127.0.0.1:{server.port}", multiplex=request.param) as opened:
        yield opened


@pytest.fixture
def stub(channel) -> CryptoServiceStub:
    return CryptoServiceStub(channel)


def raising(error: BaseException) -> Callable[[object, Call], object]:
    def method(request: object, call: Call) -> object:
        raise error

    return method


# --- Answers and errors -----------------------------------------------------------------------------------


async def test_a_method_that_computes_is_answered(stub, crypto):
    """A plain `def` method's response arrives."""
    crypto.compute = lambda request, call: OpenCallbackResponse(payload=request.body, key_id="k1")
    answer = await stub.OpenCallback(OpenCallbackRequest(body=b"hello"), timeout=5)
    assert (answer.payload, answer.key_id) == (b"hello", "k1")


async def test_a_method_that_waits_is_answered(stub, crypto):
    """An `async def` method's response arrives."""

    async def wait(request, call):
        await asyncio.sleep(0.01)
        return SealReplyResponse(body=request.payload)

    crypto.wait = wait
    assert (await stub.SealReply(SealReplyRequest(payload=b"hello"), timeout=5)).body == b"hello"


@pytest.mark.parametrize("reason", sorted(BY_REASON.keys() - {"SERVICE_UNAVAILABLE"}))
async def test_every_error_arrives_as_it_was_raised(stub, crypto, reason):
    """Class, message, metadata and retry_after_s of an error reach the caller, from `def` and from `async def`."""
    raised = BY_REASON[reason]("用户 says: it's wrong", retry_after_s=1.5, error_code="40001")

    async def wait(request, call):
        raise raised

    crypto.compute, crypto.wait = raising(raised), wait
    for call in (
        stub.OpenCallback(OpenCallbackRequest(), timeout=10),
        stub.SealReply(SealReplyRequest(), timeout=10),
    ):
        with pytest.raises(type(raised)) as caught:
            await call
        assert type(caught.value) is type(raised)
        assert caught.value.message == raised.message
        assert caught.value.retry_after_s == 1.5
        assert caught.value.metadata == {"error_code": "40001"}


async def test_a_long_message_is_cut_and_not_lost(stub, crypto):
    """An error with a very long message arrives as itself, with the message's beginning."""
    crypto.compute = raising(errors.InvalidArguments("错" * 100_000))
    with pytest.raises(errors.InvalidArguments, match=r"^错{1000}$"):
        await stub.OpenCallback(OpenCallbackRequest(), timeout=10)


async def test_service_unavailable_is_repeated(stub, crypto):
    """A repeatable call whose server says ServiceUnavailable is made again, and only that is."""
    failures = [errors.ServiceUnavailable(), errors.ServiceUnavailable()]

    def compute(request, call):
        if failures:
            raise failures.pop()
        return OpenCallbackResponse(key_id="third")

    crypto.compute = compute
    assert (await stub.OpenCallback(OpenCallbackRequest(), timeout=10)).key_id == "third"
    failures = [errors.StorageUnavailable()]
    with pytest.raises(errors.StorageUnavailable):
        await stub.OpenCallback(OpenCallbackRequest(), timeout=10)


async def test_an_unexpected_exception_does_not_leak(stub, crypto):
    """Of any other exception the caller learns only that something failed."""
    crypto.compute = raising(ValueError("the secret is 42"))
    with pytest.raises(errors.Internal) as caught:
        await stub.OpenCallback(OpenCallbackRequest(), timeout=5)
    assert "42" not in str(caught.value)


async def test_a_wrong_response_is_internal(stub, crypto):
    """A servicer that returns something else than a message fails the call and not the server."""
    crypto.compute = lambda request, call: None
    with pytest.raises(errors.Internal):
        await stub.OpenCallback(OpenCallbackRequest(), timeout=5)
    crypto.compute = lambda request, call: OpenCallbackResponse()
    await stub.OpenCallback(OpenCallbackRequest(), timeout=5)


async def test_a_missing_method_is_unimplemented(stub):
    """A method that the servicer lacks is refused by name."""
    with pytest.raises(errors.Unimplemented, match="ListKeys"):
        await stub.ListKeys(ListKeysRequest(), timeout=5)


async def test_an_unknown_service_is_unimplemented(channel):
    """So is a service that the server lacks."""
    call = channel.unary_unary("/foreign.v1.ForeignService/Call", bytes, bytes)
    with pytest.raises(errors.Unimplemented):
        await call(b"", timeout=5)


async def test_an_unreadable_request_is_refused(channel, crypto):
    """Bytes that are not the request's message are an InvalidRequest that names the method."""
    crypto.compute = lambda request, call: OpenCallbackResponse()
    call = channel.unary_unary("/assistant.api.crypto.v1.CryptoService/OpenCallback", bytes, bytes)
    with pytest.raises(errors.InvalidRequest, match="OpenCallback"):
        await call(b"\xff\xff\xff", timeout=5)


# --- Time -------------------------------------------------------------------------------------------------


async def test_a_timeout_is_required(stub):
    """A call without a timeout is a mistake of the program."""
    with pytest.raises(TypeError, match="timeout"):
        stub.OpenCallback(OpenCallbackRequest())


async def test_the_servicer_knows_the_time_left(stub, crypto):
    """`time_left_s` is the caller's timeout, less what is gone."""
    seen = []

    def compute(request, call):
        seen.append(call.time_left_s())
        return OpenCallbackResponse()

    crypto.compute = compute
    await stub.OpenCallback(OpenCallbackRequest(), timeout=7)
    assert 0 < seen[0] <= 7


async def test_a_deadline_ends_the_call_on_both_sides(stub, crypto):
    """When the time is over the caller gets DeadlineExceeded and the servicer is cancelled."""
    cancelled = asyncio.Event()

    async def wait(request, call):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    crypto.wait = wait
    with pytest.raises(errors.DeadlineExceeded):
        await stub.SealReply(SealReplyRequest(), timeout=0.1)
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_cancelled_caller_cancels_the_servicer(stub, crypto):
    """A servicer does not go on working for a caller who left."""
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(request, call):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    crypto.wait = wait
    caller = asyncio.ensure_future(stub.SealReply(SealReplyRequest(), timeout=30))
    await asyncio.wait_for(began.wait(), 5)
    caller.cancel()
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_timeout_of_the_servicers_own_is_internal(stub, crypto):
    """A TimeoutError while the caller has time left is a failure like any other."""
    crypto.compute = raising(TimeoutError())
    with pytest.raises(errors.Internal):
        await stub.OpenCallback(OpenCallbackRequest(), timeout=5)


# --- Request id -------------------------------------------------------------------------------------------


async def test_the_request_id_follows_the_call(stub, crypto):
    """The caller's request id is the call's and, inside the servicer, telemetry's."""

    def compute(request, call):
        return OpenCallbackResponse(key_id=f"{call.request_id} {telemetry.request_id.get()}")

    async def wait(request, call):
        return SealReplyResponse(content_type=f"{call.request_id} {telemetry.request_id.get()}")

    crypto.compute, crypto.wait = compute, wait
    telemetry.request_id.set("r-1")
    assert (await stub.OpenCallback(OpenCallbackRequest(), timeout=5)).key_id == "r-1 r-1"
    assert (await stub.SealReply(SealReplyRequest(), timeout=5)).content_type == "r-1 r-1"
    telemetry.request_id.set("")
    assert (await stub.OpenCallback(OpenCallbackRequest(), timeout=5)).key_id == " "


# --- Size and number --------------------------------------------------------------------------------------


async def test_the_largest_message_passes(stub, crypto):
    """A request and a response of almost a mebibyte travel unharmed, several at once."""
    crypto.compute = lambda request, call: OpenCallbackResponse(payload=request.body)
    bodies = [random.Random(number).randbytes(wire.MAX_MESSAGE_BYTES - 100) for number in range(4)]
    answers = await asyncio.gather(*(stub.OpenCallback(OpenCallbackRequest(body=body), timeout=10) for body in bodies))
    assert [answer.payload for answer in answers] == bodies


async def test_a_larger_request_is_refused(stub):
    """A request above the limit fails before it is sent."""
    with pytest.raises(errors.PayloadTooLarge, match=r"request of .*OpenCallback"):
        await stub.OpenCallback(OpenCallbackRequest(body=bytes(wire.MAX_MESSAGE_BYTES)), timeout=5)


async def test_a_larger_response_is_internal(stub, crypto):
    """A response above the limit fails its call alone."""
    crypto.compute = lambda request, call: OpenCallbackResponse(payload=bytes(wire.MAX_MESSAGE_BYTES))
    with pytest.raises(errors.Internal, match=r"response of .*OpenCallback"):
        await stub.OpenCallback(OpenCallbackRequest(), timeout=5)


async def test_calls_at_once_get_each_its_own_answer(channel, stub, crypto):
    """Answers that come in another order than their requests reach the right callers."""

    async def wait(request, call):
        await asyncio.sleep(random.random() / 10)
        return SealReplyResponse(body=request.payload)

    crypto.wait = wait
    payloads = [str(number).encode() for number in range(300)]
    answers = await asyncio.gather(*(stub.SealReply(SealReplyRequest(payload=p), timeout=20) for p in payloads))
    assert [answer.body for answer in answers] == payloads


# --- Health -----------------------------------------------------------------------------------------------


async def test_health_is_asked_through_the_same_channel(channel, server):
    """Each service, the whole server and `liveness` have a health; it follows what the service says of itself."""
    health = HealthStub(channel)

    async def status(service: str) -> int:
        return (await health.Check(HealthCheckRequest(service=service), timeout=5)).status

    names = ["", CRYPTO.full_name, REPLY.full_name, "liveness"]
    assert [await status(name) for name in names] == [HealthCheckResponse.SERVING] * 4
    server.health.set(REPLY.full_name, False)
    serving, not_serving = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
    assert [await status(name) for name in names] == [not_serving, serving, not_serving, serving]
    with pytest.raises(errors.UnknownService, match="foreign"):
        await status("foreign")


async def test_health_can_be_watched(channel, server):
    """A watch tells the state, then each change; of an unknown service, that it is unknown."""
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
    )
    states = watch(HealthCheckRequest(service=CRYPTO.full_name), timeout=10)
    assert (await anext(states)).status == HealthCheckResponse.SERVING
    server.health.set(CRYPTO.full_name, False)
    assert (await anext(states)).status == HealthCheckResponse.NOT_SERVING
    await states.aclose()
    unknown = watch(HealthCheckRequest(service="foreign"), timeout=10)
    assert (await anext(unknown)).status == HealthCheckResponse.SERVICE_UNKNOWN
    await unknown.aclose()


async def test_health_of_a_service_that_is_not_served_cannot_be_set(server):
    """A misspelt name is found at once."""
    with pytest.raises(ValueError, match="foreign"):
        server.health.set("foreign", True)


# --- Streams ----------------------------------------------------------------------------------------------


async def test_a_stream_of_responses_arrives_in_order(channel):
    """Every chunk of a streamed answer arrives, in order."""
    chunks = ReplyServiceStub(channel).FetchMedia(FetchMediaRequest(media_id="100"), timeout=10)
    assert [response.chunk[0] async for response in chunks] == list(range(100))


async def test_a_stream_of_responses_can_fail(channel):
    """An error of a streaming method arrives as it was raised."""
    with pytest.raises(errors.UnknownMedia, match="no such file"):
        await anext(ReplyServiceStub(channel).FetchMedia(FetchMediaRequest(media_id="missing"), timeout=10))


async def test_a_stream_that_is_left_is_ended_at_the_server(channel, reply):
    """Who stops reading stops the servicer."""
    chunks = ReplyServiceStub(channel).FetchMedia(FetchMediaRequest(media_id="100000000"), timeout=30)
    await anext(chunks)
    await chunks.aclose()
    await asyncio.wait_for(reply.abandoned.wait(), 5)


async def test_a_stream_ends_at_its_deadline(channel, reply):
    """The timeout covers the whole stream."""
    chunks = ReplyServiceStub(channel).FetchMedia(FetchMediaRequest(media_id="100000000"), timeout=0.2)
    with pytest.raises(errors.DeadlineExceeded):
        async for _ in chunks:
            pass
    await asyncio.wait_for(reply.abandoned.wait(), 5)


async def test_a_stream_of_requests_arrives(channel):
    """Every chunk of a streamed request arrives; an error comes back."""
    upload = ReplyServiceStub(channel).UploadMedia

    async def chunks(count: int) -> AsyncIterator[UploadMediaRequest]:
        for _ in range(count):
            yield UploadMediaRequest(chunk=bytes(1000))

    assert (await upload(chunks(50), timeout=10)).media_id == "50000"
    with pytest.raises(errors.InvalidMedia):
        await upload(chunks(0), timeout=10)


# --- Metrics ----------------------------------------------------------------------------------------------


async def test_calls_are_counted_by_method_and_code(stub, crypto):
    """Each call is counted once with its status."""

    def count(code: str) -> float:
        labels = {"method": "/assistant.api.crypto.v1.CryptoService/OpenCallback", "code": code}
        return REGISTRY.get_sample_value("assistant_call_seconds_count", labels) or 0

    before = count("OK"), count("UNAUTHENTICATED")
    crypto.compute = lambda request, call: OpenCallbackResponse()
    await stub.OpenCallback(OpenCallbackRequest(), timeout=5)
    crypto.compute = raising(errors.StaleCallback())
    with pytest.raises(AssistantError):
        await stub.OpenCallback(OpenCallbackRequest(), timeout=5)
    assert (count("OK"), count("UNAUTHENTICATED")) == (before[0] + 1, before[1] + 1)
