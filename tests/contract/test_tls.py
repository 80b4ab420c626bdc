"""Who may call whom, over mutual TLS; whichever way a call travels."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from assistant import tls
from assistant.api.crypto.v1 import crypto_pb2
from assistant.api.crypto.v1.crypto_pb2 import AddKeyRequest, AddKeyResponse, OpenCallbackRequest, OpenCallbackResponse
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.api.reply.v1 import reply_pb2
from assistant.api.reply.v1.reply_pb2 import FetchMediaRequest, FetchMediaResponse, UploadMediaRequest
from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceStub
from assistant.cli.authority import Authority
from assistant.client import Channel, connect
from assistant.errors import CallerNotPermitted, InvalidSetting, ServiceUnavailable
from assistant.server import Call, Server
from assistant.tls import Identity

CRYPTO = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]
REPLY = reply_pb2.DESCRIPTOR.services_by_name["ReplyService"]
CALLERS = {CRYPTO.full_name: "gateway, operator", f"{CRYPTO.full_name}.AddKey": "operator", REPLY.full_name: "gateway"}
DAY = datetime.timedelta(days=1)

Issue = Callable[..., Identity]
Connect = Callable[..., Channel]


class Crypto:
    def OpenCallback(self, request: OpenCallbackRequest, call: Call) -> OpenCallbackResponse:
        return OpenCallbackResponse(payload=request.body, key_id=call.caller)

    async def AddKey(self, request: AddKeyRequest, call: Call) -> AddKeyResponse:
        return AddKeyResponse()


class Reply:
    async def FetchMedia(self, request: FetchMediaRequest, call: Call) -> AsyncIterator[FetchMediaResponse]:
        yield FetchMediaResponse(chunk=b"x")

    async def UploadMedia(
        self, requests: AsyncIterator[UploadMediaRequest], call: Call
    ) -> reply_pb2.UploadMediaResponse:
        return reply_pb2.UploadMediaResponse(media_id=str([request async for request in requests]))


@pytest.fixture
def issue(tmp_path: Path) -> Issue:
    """Make, or make anew, the certificate of a process."""

    def make(name: str, *, host: str = "", authority: str = "ca", uri: str = "") -> Identity:
        folder = tmp_path / name
        known = host or tls.host(name)
        Authority.open(tmp_path / authority).issue(folder, [known], uri or tls.uri(name), DAY)
        return Identity(folder)

    return make


@pytest.fixture
async def server(issue: Issue) -> AsyncIterator[Server]:
    servicers = {CRYPTO: Crypto(), REPLY: Reply()}
    async with Server(
        servicers, listen="127.0.0.1:0", drain_s=0, identity=issue("crypto_svc"), callers=CALLERS
    ) as running:
        yield running


@pytest.fixture(params=[True, False], ids=["multiplexed", "plain"])
async def channel(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Connect]:
    """Connect as whoever has this identity."""
    opened: list[Channel] = []

    def open_as(identity: Identity | None, name: str = "crypto_svc") -> Channel:
        opened.append(connect(f"127.0.0.1:{server.port}", multiplex=request.param, identity=identity, server=name))
        return opened[-1]

    yield open_as
    for one in opened:
        await one.close()


async def test_a_service_is_told_who_calls(issue: Issue, channel: Connect) -> None:
    """For its records it knows the name in the caller's certificate."""
    for name in ("gateway", "operator"):
        assert (await ask(channel(issue(name)))).key_id == name


async def test_a_caller_without_a_certificate_is_told_by_where_it_is(tmp_path: Path) -> None:
    """In plaintext nobody has a name."""
    for listen in (f"unix:{tmp_path}/crypto.sock", "127.0.0.1:0"):
        async with Server({CRYPTO: Crypto()}, listen=listen, drain_s=0) as server:
            target = f"127.0.0.1:{server.port}" if listen.endswith(":0") else listen
            for multiplex in (True, False):
                async with connect(target, multiplex=multiplex) as channel:
                    assert (await ask(channel)).key_id == "unauthenticated (loopback)"


async def ask(channel: Channel, timeout_s: float = 5) -> OpenCallbackResponse:
    return await CryptoServiceStub(channel).OpenCallback(OpenCallbackRequest(body=b"hello"), timeout=timeout_s)


async def test_a_permitted_caller_is_answered(channel: Connect, issue: Issue) -> None:
    """Both sides show their certificates, and the call goes through."""
    assert (await ask(channel(issue("gateway")))).payload == b"hello"


async def test_another_process_of_the_mesh_is_refused(channel: Connect, issue: Issue) -> None:
    """A certificate of ours alone permits nothing: its name has to be among the callers."""
    with pytest.raises(CallerNotPermitted, match="nlp_svc may not call"):
        await ask(channel(issue("nlp_svc")))


async def test_a_method_has_callers_of_its_own(channel: Connect, issue: Issue) -> None:
    """Who may call a service need not be permitted all its methods."""
    with pytest.raises(CallerNotPermitted, match="AddKey"):
        await CryptoServiceStub(channel(issue("gateway"))).AddKey(AddKeyRequest(), timeout=5)
    await CryptoServiceStub(channel(issue("operator"))).AddKey(AddKeyRequest(), timeout=5)


async def test_streams_are_refused_as_well(channel: Connect, issue: Issue) -> None:
    """Calls that stream ask the same table."""

    async def chunks() -> AsyncIterator[UploadMediaRequest]:
        yield UploadMediaRequest(chunk=b"x")

    for name, permitted in (("gateway", True), ("operator", False)):
        stub = ReplyServiceStub(channel(issue(name)))
        if permitted:
            assert [part.chunk async for part in stub.FetchMedia(FetchMediaRequest(), timeout=5)] == [b"x"]
            assert (await stub.UploadMedia(chunks(), timeout=5)).media_id
            continue
        with pytest.raises(CallerNotPermitted):
            _ = [part async for part in stub.FetchMedia(FetchMediaRequest(), timeout=5)]
        with pytest.raises(CallerNotPermitted):
            await stub.UploadMedia(chunks(), timeout=5)


@pytest.mark.parametrize("uri", ["spiffe://elsewhere/gateway", "https://ai-assistant/gateway"])
async def test_a_name_of_another_house_is_none(channel: Connect, issue: Issue, uri: str) -> None:
    """A certificate of ours that names somebody by another scheme or domain permits nothing."""
    with pytest.raises(CallerNotPermitted):
        await ask(channel(issue("gateway", uri=uri)))


async def test_health_is_for_all_of_the_mesh(channel: Connect, issue: Issue) -> None:
    """Whoever has a certificate of ours may ask how a service is."""
    answer = await HealthStub(channel(issue("nlp_svc"))).Check(HealthCheckRequest(), timeout=5)
    assert answer.status == HealthCheckResponse.SERVING


async def test_a_strangers_certificate_is_refused(channel: Connect, issue: Issue, tmp_path: Path) -> None:
    """A certificate of another authority, whatever it says, does not even connect."""
    stranger = issue("gateway", authority="other")
    (tmp_path / "ca-of-ours").write_bytes((tmp_path / "ca" / tls.CERTIFICATE).read_bytes())
    trusting = stranger.current()._replace(authorities=(tmp_path / "ca-of-ours").read_bytes())
    stranger._certificates = trusting  # it knows whom to trust, and yet nobody trusts it
    with pytest.raises(ServiceUnavailable):
        await ask(channel(stranger), timeout_s=1)


async def test_nobody_calls_without_a_certificate(server: Server, channel: Connect, issue: Issue) -> None:
    """Neither plaintext nor TLS without a certificate is served."""
    with pytest.raises(ServiceUnavailable):
        await ask(channel(None), timeout_s=1)
    credentials = grpc.ssl_channel_credentials(issue("gateway").current().authorities)
    options = (("grpc.ssl_target_name_override", "crypto-svc"),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials, options) as naked:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await CryptoServiceStub(naked).OpenCallback(OpenCallbackRequest(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_knows_whom_it_calls(channel: Connect, issue: Issue) -> None:
    """A process of the mesh that listens where another one should be is told nothing."""
    with pytest.raises(ServiceUnavailable):
        await ask(channel(issue("gateway"), "reply_svc"), timeout_s=1)


async def test_certificates_change_under_calls(channel: Connect, issue: Issue) -> None:
    """Certificates of both sides are exchanged, the connection with them, and not one call fails."""
    gateway = issue("gateway")
    connected = channel(gateway)
    answered = 0
    changing = True

    async def calls() -> None:
        nonlocal answered
        while changing:
            await ask(connected)
            answered += 1
            await asyncio.sleep(0.001)

    callers = [asyncio.create_task(calls()) for _ in range(5)]
    try:
        for _ in range(2):
            seen = gateway.current()
            issue("crypto_svc")
            issue("gateway")
            until = answered + 50
            while gateway.current() is seen or answered < until:
                await asyncio.sleep(0.01)
                assert not any(task.done() for task in callers)
            assert connected._opened is not None
            async with asyncio.timeout(20):
                while {shown for _, shown in connected._opened._connected} != {gateway.current()}:
                    await asyncio.sleep(0.05)
    finally:
        changing = False
        await asyncio.gather(*callers)


async def test_a_new_connection_sees_the_new_certificate(server: Server, issue: Issue) -> None:
    """A server shows its newest certificate from the next connection on."""
    import ssl

    async def shown() -> bytes | None:
        context = ssl.create_default_context(cadata=issue("probe").current().authorities.decode())
        context.check_hostname = False
        context.load_cert_chain(issue_folder / tls.CERTIFICATE, issue_folder / tls.KEY)
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
        certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return certificate

    issue_folder = issue("gateway")._folder
    first = await shown()
    assert await shown() == first
    issue("crypto_svc")
    assert await shown() != first


def test_certificates_that_do_not_fit_are_not_taken(issue: Issue, tmp_path: Path) -> None:
    """A broken exchange leaves the old certificates in use; a process without any does not start."""
    gateway = issue("gateway")
    before = gateway.current()
    other = issue("operator").current()
    (tmp_path / "gateway" / "..data" / tls.CERTIFICATE).write_bytes(other.chain)
    assert gateway.current() is before
    with pytest.raises(InvalidSetting, match="certificates make"):
        Identity(tmp_path / "gateway")
    with pytest.raises(InvalidSetting, match="certificates make"):
        Identity(tmp_path / "nobody")
    issue("gateway")
    assert gateway.current() != before
