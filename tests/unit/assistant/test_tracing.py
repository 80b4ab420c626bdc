"""Tracing between two processes of ours, and what it costs where it is off: nothing."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from opentelemetry import trace

from assistant import tracing
from assistant.api.crypto.v1 import crypto_pb2
from assistant.api.crypto.v1.crypto_pb2 import OpenCallbackRequest, OpenCallbackResponse
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.client import connect
from assistant.errors import InvalidSetting, SignatureMismatch
from assistant.server import Call, Server
from gateway.loop import Answer, FutureExchange

CRYPTO = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]
OPEN = "assistant.api.crypto.v1.CryptoService/OpenCallback"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
KEPT, DROPPED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


class Crypto:
    """Says what it was told of the trace; refuses what has no body."""

    def OpenCallback(self, request: OpenCallbackRequest, call: Call) -> OpenCallbackResponse:
        if not request.body:
            raise SignatureMismatch
        assert tracing.tracer is not None
        return OpenCallbackResponse(payload=tracing.tracer.traceparent().encode())


@pytest.fixture
def tracer(collector: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Tracing is on."""
    collector.spans.clear()
    monkeypatch.setenv(tracing.ENDPOINT, collector.endpoint)
    tracing.start("here")
    yield tracing.tracer
    tracing.stop()


@pytest.fixture(params=[True, False], ids=["multiplexed", "plain"])
async def stub(tracer: Any, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A service of ours, by either transport."""
    async with (
        Server({CRYPTO: Crypto()}, listen="127.0.0.1:0", drain_s=0) as server,
        connect(f"127.0.0.1:{server.port}", multiplex=request.param) as channel,
    ):
        yield CryptoServiceStub(channel)


async def test_the_trace_follows_the_call(stub: Any, tracer: Any, collector: Any) -> None:
    """Caller and servicer have a span each, one below the other, in the trace that came from outside."""
    tracer.continues(KEPT)
    told = (await stub.OpenCallback(OpenCallbackRequest(body=b"x"), timeout=5)).payload.decode()
    tracing.stop()
    spans = {span.kind: span for span in collector.spans}
    assert {span.name for span in collector.spans} == {OPEN}
    assert (spans["client"].trace_id, spans["client"].parent_id) == (TRACE, CALLER)
    assert spans["server"].parent_id == spans["client"].span_id
    assert told == f"00-{TRACE}-{spans['server'].span_id}-01"


async def test_a_trace_that_is_not_kept_leaves_no_span(stub: Any, tracer: Any, collector: Any) -> None:
    """The edge decides: its word is passed on, and nobody makes a span."""
    tracer.continues(DROPPED)
    assert (await stub.OpenCallback(OpenCallbackRequest(body=b"x"), timeout=5)).payload.decode() == DROPPED
    tracing.stop()
    assert collector.spans == []


async def test_a_call_without_a_trace_begins_none(stub: Any, tracer: Any, collector: Any) -> None:
    """Nor does the call after one that had a trace belong to it."""
    tracer.continues(KEPT)
    await stub.OpenCallback(OpenCallbackRequest(body=b"x"), timeout=5)
    tracer.continues("")
    assert (await stub.OpenCallback(OpenCallbackRequest(body=b"x"), timeout=5)).payload == b""
    tracing.stop()
    assert len(collector.spans) == 2


async def test_whose_fault_it_was_is_marked(stub: Any, tracer: Any, collector: Any) -> None:
    """What the caller did wrong is an error of the caller's span alone; both name the status."""
    tracer.continues(KEPT)
    with pytest.raises(SignatureMismatch):
        await stub.OpenCallback(OpenCallbackRequest(), timeout=5)
    tracing.stop()
    spans = {span.kind: span for span in collector.spans}
    assert {span.attributes["rpc.response.status_code"] for span in spans.values()} == {"UNAUTHENTICATED"}
    assert (spans["client"].error, spans["server"].error) == ("SIGNATURE_MISMATCH", "")


async def test_a_foreign_service_is_told_by_metadata(tracer: Any) -> None:
    """A server that knows nothing of ours finds the caller's span where W3C Trace Context puts it."""
    told: list[dict[str, Any]] = []

    async def open_callback(request: OpenCallbackRequest, context: Any) -> OpenCallbackResponse:
        told.append(dict(context.invocation_metadata()))
        return OpenCallbackResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        open_callback, OpenCallbackRequest.FromString, OpenCallbackResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(CRYPTO.full_name, {"OpenCallback": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"127.0.0.1:{port}") as channel:
            tracer.continues(KEPT)
            await CryptoServiceStub(channel).OpenCallback(OpenCallbackRequest(), timeout=5)
    finally:
        await server.stop(0)
    version, trace_id, span_id, flags = told[0]["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert span_id != CALLER


class Hung(FutureExchange):
    """Whoever asked has gone."""

    @property
    def is_open(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("exchange", "status", "error"),
    [(FutureExchange, 200, ""), (FutureExchange, 401, ""), (FutureExchange, 503, "503"), (Hung, 200, "disconnected")],
)
async def test_an_exchange_is_a_span_until_it_is_answered(
    exchange: type[FutureExchange], status: int, error: str, tracer: Any, collector: Any
) -> None:
    """It ends with the answer, whatever is still done afterwards; our own failures are marked, and who went away."""
    ended: list[bool] = []

    async def take(query: str, headers: list[tuple[bytes, bytes]], body: bytes, asked: Any) -> None:
        asked.respond(Answer(b"", "text/plain", status))
        ended.append(not trace.get_current_span().is_recording())

    headers = [(b"traceparent", KEPT.encode()), (b"x-request-id", b"r-1")]
    await tracer.taking(take, "POST", {"http.route": "/loopback"})("", headers, b"", exchange())
    assert ended == [exchange is FutureExchange]
    tracing.stop()
    (span,) = collector.spans
    assert (span.name, span.kind, span.trace_id, span.parent_id) == ("POST /loopback", "server", TRACE, CALLER)
    assert (span.error, span.attributes["http.request.header.x-request-id"]) == (error, "r-1")
    assert span.attributes.get("http.response.status_code") == (status if exchange is FutureExchange else None)


CALL = """
import asyncio, sys
from assistant import tracing
from assistant.api.crypto.v1 import crypto_pb2
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.client import connect
from assistant.server import Server
import assistant.cli, crypto_svc.__main__, gateway.__main__, nlp_svc.__main__, reply_svc.__main__

class Crypto:
    def OpenCallback(self, request, call):
        return crypto_pb2.OpenCallbackResponse()

async def main():
    tracing.start("probe")
    service = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]
    async with Server({service: Crypto()}, listen="127.0.0.1:0", drain_s=0) as server:
        for multiplex in (True, False):
            async with connect(f"127.0.0.1:{server.port}", multiplex=multiplex) as channel:
                await CryptoServiceStub(channel).OpenCallback(crypto_pb2.OpenCallbackRequest(), timeout=5)
    print([name for name in sys.modules if name.startswith(("opentelemetry", "assistant.spans"))])

asyncio.run(main())
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, with no variable of OpenTelemetry but these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [{}, {tracing.ENDPOINT: ""}, {tracing.ENDPOINT: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}],
    ids=["unset", "empty", "disabled"],
)
def test_while_it_is_off_nothing_of_it_is_loaded(environment: dict[str, str]) -> None:
    """All services imported, calls made by either transport: no module of OpenTelemetry is there."""
    done = run(CALL, **environment)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_while_it_is_on_it_is_loaded() -> None:
    """What the test above looks for would be seen."""
    done = run(CALL, **{tracing.ENDPOINT: "http://127.0.0.1:1"})
    assert "assistant.spans" in done.stdout


def test_it_is_asked_for_but_not_installed() -> None:
    """The start fails at once, and says what to type."""
    missing = "import sys; sys.modules['opentelemetry'] = None; "
    program = missing + "sys.argv = ['ai-assistant-cli', 'config', 'validate']; from assistant.cli import main; main()"
    done = run(program, **{tracing.ENDPOINT: "http://127.0.0.1:4318"})
    assert done.returncode == 1
    assert "pip install 'ai-assistant[otel]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        (tracing.ENDPOINT, "collector:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "5%"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str) -> None:
    """What cannot be done is refused at the start, by name."""
    environment = {tracing.ENDPOINT: "http://127.0.0.1:4318", "OTEL_TRACES_SAMPLER": "traceidratio", variable: value}
    with pytest.raises(InvalidSetting, match=f"{variable} is '{value}'"):
        tracing.check(environment)


def test_the_share_of_traces() -> None:
    """As OpenTelemetry's variables have it; everything, unless they say otherwise."""
    assert tracing.sampled_ratio({}) == 1.0
    assert tracing.sampled_ratio({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}) == 0.0
    assert tracing.sampled_ratio({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.05"}) == 0.05
