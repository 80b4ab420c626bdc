"""What happens to calls when servers are absent, killed, drained, foreign or many."""

import asyncio
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import grpc
import pytest
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

import assistant
from assistant import errors
from assistant.api.crypto.v1 import crypto_pb2, crypto_pb2_grpc
from assistant.api.crypto.v1.crypto_pb2 import (
    OpenCallbackRequest,
    OpenCallbackResponse,
    SealReplyRequest,
    SealReplyResponse,
)
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.client import connect
from assistant.server import Server

CRYPTO = crypto_pb2.DESCRIPTOR.services_by_name["CryptoService"]
both_ways = pytest.mark.parametrize("multiplex", [True, False], ids=["multiplexed", "plain"])


class Crypto:
    """Says which of several it is; waits for its gate, and as many seconds as the query says."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.running = 0
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def OpenCallback(self, request, call):
        self.calls += 1
        return OpenCallbackResponse(key_id=self.name)

    async def SealReply(self, request, call):
        self.calls += 1
        self.running += 1
        try:
            await self.gate.wait()
            await asyncio.sleep(float(request.query or 0))
            return SealReplyResponse(body=request.payload)
        finally:
            self.running -= 1


def served(crypto: Crypto, listen: str, drain_s: float = 0) -> Server:
    return Server({CRYPTO: crypto}, listen=listen, drain_s=drain_s)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def process(listen: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server that can be killed, ready to answer."""
    script = Path(__file__).with_name("killed_server.py")
    running = await asyncio.create_subprocess_exec(sys.executable, script, listen, stdout=asyncio.subprocess.PIPE)
    try:
        while b'"serving"' not in await asyncio.wait_for(running.stdout.readline(), 20):
            pass
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


@pytest.fixture
def address(tmp_path) -> str:
    """An address that outlives the server on it."""
    return f"unix:{tmp_path}/s"


# --- Restarts ---------------------------------------------------------------------------------------------


@both_ways
async def test_repeatable_calls_outlive_a_killed_server(address, multiplex):
    """Calls in flight when the server is killed are answered by the next one on the same address."""
    async with connect(address, multiplex=multiplex) as channel:
        stub = CryptoServiceStub(channel)
        async with process(address) as first:
            calls = [
                asyncio.ensure_future(stub.SealReply(SealReplyRequest(payload=b"%d" % number, query="0.5"), timeout=30))
                for number in range(50)
            ]
            await stub.SealReply(SealReplyRequest(), timeout=20)
            first.kill()
            await first.wait()
        async with process(address):
            answers = await asyncio.gather(*calls)
    assert [answer.body for answer in answers] == [b"%d" % number for number in range(50)]


@both_ways
async def test_other_calls_fail_at_once_with_a_killed_server(address, multiplex):
    """A call that may not be repeated fails with ServiceUnavailable when its server is killed; so does the next."""
    async with connect(address, multiplex=multiplex) as channel:
        check = HealthStub(channel).Check
        async with process(address) as server:
            await check(HealthCheckRequest(), timeout=20)
            server.send_signal(signal.SIGSTOP)
            call = asyncio.ensure_future(check(HealthCheckRequest(), timeout=600))
            await asyncio.sleep(0.05)
            assert not call.done()
            server.kill()
            with pytest.raises(errors.ServiceUnavailable):
                await asyncio.wait_for(call, 10)
        with pytest.raises(errors.ServiceUnavailable):
            await asyncio.wait_for(check(HealthCheckRequest(), timeout=600), 10)


@both_ways
async def test_a_repeatable_call_waits_for_its_server(address, multiplex):
    """A call made before its server starts is answered once it runs."""
    async with connect(address, multiplex=multiplex) as channel:
        call = asyncio.ensure_future(CryptoServiceStub(channel).OpenCallback(OpenCallbackRequest(), timeout=30))
        await asyncio.sleep(0.2)
        async with served(Crypto("late"), address):
            assert (await call).key_id == "late"


@both_ways
async def test_without_a_server_a_call_ends_in_time(address, multiplex):
    """If no server comes, a repeatable call fails at its deadline and names the target."""
    async with connect(address, multiplex=multiplex) as channel:
        began = monotonic()
        with pytest.raises(errors.ServiceUnavailable, match=address):
            await CryptoServiceStub(channel).OpenCallback(OpenCallbackRequest(), timeout=0.3)
        assert monotonic() - began >= 0.25


async def test_a_host_that_does_not_exist_is_named():
    """A name that cannot be resolved makes calls fail with ServiceUnavailable."""
    async with connect("no-such-host.invalid:7001") as channel:
        with pytest.raises(errors.ServiceUnavailable, match=r"no-such-host\.invalid"):
            await CryptoServiceStub(channel).OpenCallback(OpenCallbackRequest(), timeout=1)


@both_ways
async def test_a_client_that_goes_leaves_nothing_running(address, multiplex, caplog):
    """When a caller's connection ends, its calls are cancelled at the server, and that is no error in its log."""
    crypto = Crypto()
    async with served(crypto, address):
        async with connect(address, multiplex=multiplex) as channel:
            stub = CryptoServiceStub(channel)
            calls = [
                asyncio.ensure_future(stub.SealReply(SealReplyRequest(query="600"), timeout=600)) for _ in range(20)
            ]
            await until(lambda: crypto.running == 20)
        await until(lambda: crypto.running == 0)
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, errors.Cancelled)
    assert not caplog.records


async def test_ten_thousand_calls_at_once_are_answered_and_more_are_refused(address):
    """A connection carries 10,000 calls at once, answered in any order; the next one fails with Overloaded."""
    crypto = Crypto()
    crypto.gate.clear()
    async with served(crypto, address), connect(address) as channel:
        seal = CryptoServiceStub(channel).SealReply
        payloads = [b"%d" % number for number in range(10_000)]
        requests = (SealReplyRequest(payload=payload, query=str(random.random() / 2)) for payload in payloads)
        calls = [asyncio.ensure_future(seal(request, timeout=120)) for request in requests]
        await until(lambda: crypto.running == 10_000)
        with pytest.raises(errors.Overloaded):
            await seal(SealReplyRequest(), timeout=60)
        crypto.gate.set()
        answers = await asyncio.gather(*calls)
    assert [answer.body for answer in answers] == payloads


# --- Drain ------------------------------------------------------------------------------------------------


@both_ways
async def test_a_draining_server_answers_what_it_has_and_what_arrives(address, multiplex):
    """Calls in flight and calls that arrive during the drain are answered; then the server is gone."""
    crypto = Crypto()
    server = served(crypto, address, drain_s=0.3)
    await server.start()
    async with connect(address, multiplex=multiplex) as channel:
        stub = CryptoServiceStub(channel)
        early = asyncio.ensure_future(stub.SealReply(SealReplyRequest(payload=b"early", query="0.6"), timeout=20))
        await until(lambda: crypto.running == 1)
        stopping = asyncio.ensure_future(server.stop())
        await until(lambda: not server.health.serving(""))
        assert (await stub.SealReply(SealReplyRequest(payload=b"late"), timeout=20)).body == b"late"
        assert (await early).body == b"early"
        await stopping
        with pytest.raises(errors.ServiceUnavailable):
            await stub.SealReply(SealReplyRequest(), timeout=0.2)


async def test_sigterm_drains(address):
    """SIGTERM ends the process with 0 after what it began is answered."""
    async with connect(address) as channel, process(address) as server:
        call = asyncio.ensure_future(
            CryptoServiceStub(channel).SealReply(SealReplyRequest(payload=b"x", query="0.5"), timeout=20)
        )
        await CryptoServiceStub(channel).SealReply(SealReplyRequest(), timeout=20)
        server.terminate()
        assert (await call).body == b"x"
        assert await asyncio.wait_for(server.wait(), 10) == 0


async def test_open_watches_do_not_delay_the_stop(address):
    """A server with watchers of its health stops as fast as one without."""
    server = served(Crypto(), address)
    await server.start()
    async with connect(address) as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
        )
        states = watch(HealthCheckRequest(), timeout=60)
        assert (await anext(states)).status == HealthCheckResponse.SERVING
        await asyncio.wait_for(server.stop(), 5)
        await states.aclose()


# --- Replicas ---------------------------------------------------------------------------------------------


@both_ways
async def test_replicas_share_the_calls_and_a_drained_one_gets_none(tmp_path, multiplex):
    """Calls go to every replica that serves, and no longer to one that does not."""
    one, two = Crypto("one"), Crypto("two")
    addresses = [f"unix:{tmp_path}/1", f"unix:{tmp_path}/2"]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(served(one, addresses[0]))
        other = await stack.enter_async_context(served(two, addresses[1]))
        stub = CryptoServiceStub(await stack.enter_async_context(connect(",".join(addresses), multiplex=multiplex)))

        async def names() -> set[str]:
            calls = (stub.OpenCallback(OpenCallbackRequest(), timeout=10) for _ in range(20))
            return {answer.key_id for answer in await asyncio.gather(*calls)}

        async with asyncio.timeout(10):
            while await names() != {"one", "two"}:
                pass
            other.health.set(CRYPTO.full_name, False)
            while await names() != {"one"}:
                pass
        other.health.set(CRYPTO.full_name, True)
        async with asyncio.timeout(10):
            while await names() != {"one", "two"}:
                pass


async def test_calls_move_on_when_a_replica_is_killed(tmp_path):
    """With two replicas and one of them killed, every repeatable call succeeds without waiting for its return."""
    survivor = Crypto("survivor")
    addresses = [f"unix:{tmp_path}/1", f"unix:{tmp_path}/2"]
    async with served(survivor, addresses[0]), connect(",".join(addresses)) as channel:
        stub = CryptoServiceStub(channel)
        async with process(addresses[1]) as victim:

            def calls(seconds: float) -> list[asyncio.Future[SealReplyResponse]]:
                requests = [SealReplyRequest(payload=b"%d" % number, query=str(seconds)) for number in range(100)]
                return [asyncio.ensure_future(stub.SealReply(request, timeout=30)) for request in requests]

            async with asyncio.timeout(10):
                while not 0 < survivor.calls % 100 < 100:
                    await asyncio.gather(*calls(0))
            survivor.calls = 0
            last = calls(0.3)
            await until(lambda: survivor.running > 0)
            victim.kill()
            answers = await asyncio.gather(*last)
    assert [answer.body for answer in answers] == [b"%d" % number for number in range(100)]
    assert survivor.calls == 100


async def test_a_name_of_two_families_is_one_server():
    """`localhost`, which may have an IPv4 and an IPv6 address, reaches the server on either."""
    async with served(Crypto("here"), "127.0.0.1:0") as server:
        for target in (f"localhost:{server.port}", f"dns:///localhost:{server.port}"):
            async with connect(target) as channel:
                answer = await CryptoServiceStub(channel).OpenCallback(OpenCallbackRequest(), timeout=10)
                assert answer.key_id == "here"


async def test_replicas_come_and_go_with_the_name(monkeypatch):
    """A replica that a host's name newly stands for gets calls; one that it no longer stands for gets none."""
    hosts = ["127.0.0.1"]
    real = socket.getaddrinfo

    def resolve(host, *arguments, **more):
        return [
            answer for name in hosts for answer in real(name if host == "replicas.test" else host, *arguments, **more)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    one, two = Crypto("one"), Crypto("two")
    async with (
        served(one, "127.0.0.1:0") as first,
        served(two, f"127.0.0.2:{first.port}"),
        connect(f"replicas.test:{first.port}") as channel,
        asyncio.timeout(60),
    ):
        stub = CryptoServiceStub(channel)

        async def names() -> set[str]:
            calls = (stub.OpenCallback(OpenCallbackRequest(), timeout=10) for _ in range(20))
            return {answer.key_id for answer in await asyncio.gather(*calls)}

        assert await names() == {"one"}
        last = asyncio.ensure_future(stub.SealReply(SealReplyRequest(payload=b"x", query="5"), timeout=60))
        hosts.append("127.0.0.2")
        while await names() != {"one", "two"}:
            await asyncio.sleep(0.05)
        hosts.remove("127.0.0.1")
        while await names() != {"two"}:
            await asyncio.sleep(0.05)
        assert (await last).body == b"x"
        assert one.calls


# --- Foreign servers and clients --------------------------------------------------------------------------


class ForeignCrypto(crypto_pb2_grpc.CryptoServiceServicer):
    """A servicer of plain gRPC, as somebody else would write it."""

    async def OpenCallback(self, request, context):
        metadata = dict(context.invocation_metadata())
        return OpenCallbackResponse(key_id=metadata.get("x-request-id", ""))

    async def SealReply(self, request, context):
        if request.query == "unavailable once" and not getattr(self, "failed", False):
            self.failed = True
            await context.abort(grpc.StatusCode.UNAVAILABLE, "try again")
        if request.query == "refused":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not like this")
        return SealReplyResponse(body=request.payload)


@asynccontextmanager
async def foreign(address: str, servicer: health.aio.HealthServicer | None = None) -> AsyncIterator[None]:
    server = grpc.aio.server()
    crypto_pb2_grpc.add_CryptoServiceServicer_to_server(ForeignCrypto(), server)
    if servicer is not None:
        add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@pytest.mark.parametrize("with_health", [True, False])
async def test_a_server_without_multiplexing_gets_plain_calls(address, with_health):
    """The first calls to a foreign server, made at once, are all answered; it need not even have health."""
    async with foreign(address, health.aio.HealthServicer() if with_health else None), connect(address) as channel:
        stub = CryptoServiceStub(channel)
        payloads = [b"%d" % number for number in range(100)]
        answers = await asyncio.gather(*(stub.SealReply(SealReplyRequest(payload=p), timeout=20) for p in payloads))
        assert [answer.body for answer in answers] == payloads


async def test_a_foreign_servers_status_decides(address):
    """UNAVAILABLE without details is repeated; other codes become our error of that code."""
    async with foreign(address), connect(address) as channel:
        stub = CryptoServiceStub(channel)
        await stub.SealReply(SealReplyRequest(query="unavailable once"), timeout=20)
        with pytest.raises(errors.InvalidRequest, match="not like this"):
            await stub.SealReply(SealReplyRequest(query="refused"), timeout=20)
        with pytest.raises(errors.Unimplemented):
            await stub.ListKeys(crypto_pb2.ListKeysRequest(), timeout=20)


async def test_a_foreign_server_can_be_replaced_by_ours(address):
    """After a foreign server is gone, ours on its address is used, multiplexed or not."""
    crypto = Crypto("ours")
    async with connect(address) as channel:
        stub = CryptoServiceStub(channel)
        async with foreign(address):
            assert (await stub.OpenCallback(OpenCallbackRequest(), timeout=20)).key_id == ""
        async with served(crypto, address):
            assert (await stub.OpenCallback(OpenCallbackRequest(), timeout=20)).key_id == "ours"


async def test_a_foreign_replica_that_does_not_serve_is_avoided(tmp_path):
    """Of two foreign replicas the one whose health says NOT_SERVING gets no calls."""
    state = health.aio.HealthServicer()
    await state.set("", HealthCheckResponse.NOT_SERVING)
    ours = Crypto("ours")
    addresses = [f"unix:{tmp_path}/1", f"unix:{tmp_path}/2"]
    async with (
        foreign(addresses[0], state),
        served(ours, addresses[1]),
        connect(",".join(addresses)) as channel,
    ):
        stub = CryptoServiceStub(channel)
        async with asyncio.timeout(10):
            while (await stub.OpenCallback(OpenCallbackRequest(), timeout=10)).key_id != "ours":
                pass
        before = ours.calls
        await asyncio.gather(*(stub.OpenCallback(OpenCallbackRequest(), timeout=10) for _ in range(20)))
        assert ours.calls == before + 20


async def test_plain_grpc_clients_are_served(address):
    """A generated stub on a channel of grpc itself gets answers, and errors with their reason as details."""
    async with served(Crypto("ours"), address), grpc.aio.insecure_channel(address) as channel:
        stub = CryptoServiceStub(channel)
        assert (await stub.OpenCallback(OpenCallbackRequest())).key_id == "ours"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListKeys(crypto_pb2.ListKeysRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "grpc-status-details-bin" in dict(caught.value.trailing_metadata())


# --- Processes --------------------------------------------------------------------------------------------


FORKING = """
import asyncio, os, sys
from assistant.api.crypto.v1 import crypto_pb2, crypto_pb2_grpc
from assistant.client import connect

stub = crypto_pb2_grpc.CryptoServiceStub(connect(sys.argv[1]))

async def call():
    return (await stub.OpenCallback(crypto_pb2.OpenCallbackRequest(), timeout=20)).key_id

children = []
for _ in range(2):
    child = os.fork()
    if not child:
        os._exit(0 if asyncio.run(call()) == "forked" else 1)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


async def test_a_channel_made_before_a_fork_works_after_it(address):
    """A channel and a stub made in a parent can be used in each of its forked children."""
    async with served(Crypto("forked"), address):
        parent = await asyncio.create_subprocess_exec(sys.executable, "-c", FORKING, address)
        assert await asyncio.wait_for(parent.wait(), 60) == 0


async def test_a_taken_address_is_named():
    """A server on an address where another process or socket listens does not start, and says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(errors.InvalidSetting, match=f"{listen}.*listen.*AI_ASSISTANT_PORT_OFFSET"):
            await served(Crypto(), listen).start()


async def test_two_servers_do_not_share_a_port():
    """A second server on the same port is refused, not given a part of the calls."""
    async with served(Crypto(), "127.0.0.1:0") as first:
        with pytest.raises(errors.InvalidSetting, match=str(first.port)):
            await served(Crypto(), f"127.0.0.1:{first.port}").start()


def test_no_service_config_sets_a_timeout():
    """gRPC ends calls seconds early by a timeout of a service config, so we have none: deadlines go with calls."""
    sources = [path.read_text("utf-8") for path in Path(assistant.__file__).parent.glob("*.py")]
    assert sources
    assert not any("service_config" in source for source in sources)
