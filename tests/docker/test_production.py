"""The mesh as a company runs it: HTTPS alone, two of every service over PostgreSQL, members who never pause.

The platform of tests/chaos sends the callbacks, as strictly as any: it repeats one only if it got no answer within
5 seconds or the connection broke, and at most twice. Its books say what every message came to.
"""

import asyncio
import base64
import json
import secrets
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from assistant import plugin, tls
from tests.chaos.books import PATIENCE_S
from tests.chaos.mesh import install_engine
from tests.chaos.platform import Platform
from tests.docker.conftest import ROOT, free_port, grpcurl
from tests.docker.test_compose import PASSWORDS

FILES = ("docker-compose.yml", "deploy/compose/scale.yml", "tests/docker/load.yml")
MEMBERS, MESSAGES_PER_S = 60, 15.0
CALM_S = 3.0
ACCOUNT = {"channel": "wecom", "name": "default"}
CRYPTO = "assistant.api.crypto.v1.CryptoService"
SERVICES = {
    "crypto.mesh": (CRYPTO, "ListKeys", {"account": ACCOUNT}),
    "nlp.mesh": ("assistant.api.nlp.v1.NlpService", "DescribeModel", {}),
    "reply.mesh": ("assistant.api.reply.v1.ReplyService", "CheckAccount", {"account": ACCOUNT}),
    "gateway.mesh": ("assistant.api.inbox.v1.InboxService", "ListMessages", {}),
}


@dataclass
class Company:
    """A stack in production, its account, and the certificates that an operator has copied out of it."""

    stack: Any
    credentials: dict[str, Any]
    api_port: int
    folder: Path

    def certificate(self, name: str) -> Path:
        """The folder with the certificate of a process."""
        found: Path = self.stack.certificates(name, self.folder)
        return found

    @property
    def authorities(self) -> Path:
        """Whom to trust."""
        return self.certificate("operator") / tls.AUTHORITIES

    def asks(self, authority: str, *words: str, identity: str | Path | None = "operator") -> Any:
        """grpcurl through the mesh listener."""
        shown = self.certificate(identity) if isinstance(identity, str) else identity
        address = f"localhost:{self.stack.mesh}"
        return grpcurl(*words, identity=shown, authorities=self.authorities, address=address, authority=authority)

    def on_every_crypto_svc(self, method: str, request: Mapping[str, Any], identity: str = "operator") -> list[Any]:
        """grpcurl to each replica, from the engine's own machine, which reaches all networks."""
        return [
            grpcurl(
                json.dumps(request),
                f"{CRYPTO}/{method}",
                identity=self.certificate(identity),
                authorities=self.authorities,
                address=f"{self.stack.address(name, 'crypto')}:7001",
                authority="crypto-svc",
            )
            for name in self.stack.containers()
            if name.startswith("crypto-svc")
        ]

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[Platform]:
        """Members write meanwhile; afterwards each of their messages has been answered, once and in order."""
        trust = ssl.create_default_context(cafile=self.authorities)
        platform = Platform(self.credentials, f"https://localhost:{self.stack.https}/wecom", 1, trust)
        async with (
            platform.desk.open("0.0.0.0", self.api_port),  # containers call it
            platform.writing(MEMBERS, MESSAGES_PER_S),
        ):
            await asyncio.sleep(CALM_S)
            yield platform
            await asyncio.sleep(CALM_S)
            platform.stop_writing()
            await platform.settled(PATIENCE_S)
        verdict = platform.books.close()
        print(verdict)
        assert verdict.broken == {}, platform.books.strange
        assert min(verdict.passive, verdict.active) > 0


@pytest.fixture(scope="module")
def company(
    make_stack: Callable[..., AbstractContextManager[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Company]:
    installed = tmp_path_factory.mktemp("installed")
    install_engine(installed)
    shutil.copytree(ROOT / "tests/chaos/scripted", installed / "tests/chaos/scripted")
    for path in (installed, *installed.rglob("*")):
        path.chmod(0o755)  # for user 10001
    credentials = plugin.load("channels", "wecom", "simulator").credentials()
    api_port = free_port()
    account = {f"WECOM_{name.upper()}": str(value) for name, value in credentials.items()}
    environment = {
        **account,
        **PASSWORDS,
        "WECOM_API_BASE": f"http://host.docker.internal:{api_port}",
        "SIMULATORS": "0",
        "EDGE_PROFILE": "production",
        "INSTALLED": str(installed),
    }
    with make_stack(*FILES, **environment) as stack:
        stack.up()
        yield Company(stack, credentials, api_port, tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("authority", SERVICES)
def test_an_operator_calls_every_service(company: Company, authority: str) -> None:
    """Through the mesh listener every service lists and describes itself, tells its health, and answers."""
    service, method, request = SERVICES[authority]
    company.stack.until(lambda: "SERVING" in company.asks(authority, "grpc.health.v1.Health/Check").stdout)
    assert service in company.asks(authority, "list").stdout.split()
    assert f"rpc {method} (" in company.asks(authority, "describe", service).stdout
    answer = company.asks(authority, json.dumps(request), f"{service}/{method}")
    assert answer.returncode == 0, answer.stderr
    json.loads(answer.stdout)


def test_the_mesh_listener_knows_who_is_well(company: Company) -> None:
    """While a replica is dead, every call goes to the other one, and when it is back, to both."""
    request = json.dumps({"account": ACCOUNT})
    with company.stack.without("crypto-svc-1"):
        answers = [company.asks("crypto.mesh", request, f"{CRYPTO}/ListKeys") for _ in range(10)]
    assert {answer.returncode for answer in answers} == {0}
    company.stack.until(lambda: _healthy_replicas(company) == 8)


def test_nobody_but_an_operator_gets_in(company: Company, tmp_path: Path) -> None:
    """The mesh listener refuses who shows no certificate, another process's, or one of another authority."""
    assert company.asks("crypto.mesh", "list").returncode == 0
    for identity in (None, "gateway", "nlp_svc", "edge"):
        assert company.asks("crypto.mesh", "list", identity=identity).returncode != 0, identity
    subprocess.run(
        ["ai-assistant-cli", "certificates", "make", "--folder", tmp_path],
        check=True,
        capture_output=True,
        env={"PATH": f"{ROOT}/.venv/bin", "AI_ASSISTANT_HOME": str(tmp_path)},
    )
    assert company.asks("crypto.mesh", "list", identity=tmp_path / "operator").returncode != 0


def test_a_process_calls_whom_it_must_and_nobody_else(company: Company) -> None:
    """Were nlp-svc in the network of crypto-svc, its certificate would not help it, nor would the edge's."""
    refused = [
        *company.on_every_crypto_svc("OpenCallback", {"account": ACCOUNT}, identity="nlp_svc"),
        *company.on_every_crypto_svc("OpenCallback", {"account": ACCOUNT}, identity="edge"),
        *company.on_every_crypto_svc("ListKeys", {"account": ACCOUNT}, identity="gateway"),
    ]
    assert len(refused) == 6
    for answer in refused:
        assert "PermissionDenied" in answer.stderr
        assert "CALLER_NOT_PERMITTED" in answer.stderr
    for answer in company.on_every_crypto_svc("OpenCallback", {"account": ACCOUNT}, identity="gateway"):
        assert "PermissionDenied" not in answer.stderr  # but that this is no callback


def test_http_is_sent_to_https(company: Company) -> None:
    """HTTP answers /health; whatever else comes is sent on, with its path and query, to the port that is published."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    visitor = urllib.request.build_opener(Stay)
    assert company.stack.health("http")[0] in (200, 503)
    with pytest.raises(urllib.error.HTTPError) as redirected:
        visitor.open(f"http://127.0.0.1:{company.stack.http}/wecom?msg_signature=1", data=b"<xml/>")
    assert redirected.value.status == 308
    assert redirected.value.headers["location"] == f"https://127.0.0.1:{company.stack.https}/wecom?msg_signature=1"


async def test_no_message_is_lost_while_containers_are_killed(company: Company) -> None:
    """Each container is killed in turn: every message is answered once, and no callback gets anything but 200."""
    async with company.under_load():
        for name in _long_lived(company):
            # PostgreSQL is process 1 of its container, which nobody inside can kill.
            kill = company.stack.kill if name.startswith("postgres") else company.stack.crash
            await asyncio.to_thread(kill, name)


async def test_no_message_is_lost_in_a_rolling_restart(company: Company) -> None:
    """Each container is stopped and started in turn, as an update does it."""
    async with company.under_load():
        for name in _long_lived(company):
            await asyncio.to_thread(company.stack.restart, name)


async def test_no_message_is_lost_while_gateways_come_and_go(company: Company) -> None:
    """A third gateway is added, and taken away again."""
    async with company.under_load():
        for count in ("3", "2"):
            await asyncio.to_thread(company.stack.up, "--no-recreate", "--scale", f"gateway={count}")


async def test_no_message_is_lost_while_certificates_are_renewed(company: Company) -> None:
    """All certificates are exchanged, at HTTPS and between services, and the old authority's stay trusted."""

    def shown() -> set[str]:
        return {ssl.get_server_certificate(("localhost", port)) for port in (company.stack.https, company.stack.mesh)}

    async with company.under_load():
        before = await asyncio.to_thread(shown)
        await asyncio.to_thread(company.stack.inside, "renewal", "ai-assistant-cli", "certificates", "make", "--renew")
        await asyncio.to_thread(company.stack.until, lambda: not before & shown())
    changed = company.stack.compose("logs", "--no-log-prefix")
    services = {json.loads(line)["service"] for line in changed.splitlines() if '"certificates_changed"' in line}
    assert services == {"gateway", "crypto_svc", "nlp_svc", "reply_svc"}


async def test_no_message_is_lost_while_keys_are_rotated(company: Company) -> None:
    """A new Token and EncodingAESKey are added, the platform goes over to them, and the old ones are retired."""
    renewed = {
        "token": secrets.token_hex(16),
        "aeskey": base64.b64encode(secrets.token_bytes(32)).decode().rstrip("="),
    }
    key = {"account": ACCOUNT, "key_id": "renewed", "material": renewed}

    def add() -> None:
        answer = company.asks("crypto.mesh", json.dumps(key), f"{CRYPTO}/AddKey")
        assert answer.returncode == 0, answer.stderr
        assert {answer.returncode for answer in company.on_every_crypto_svc("AddKey", key)} == {0}

    def retire() -> None:
        old = {"account": ACCOUNT, "key_id": "configured"}
        assert {answer.returncode for answer in company.on_every_crypto_svc("RetireKey", old)} == {0}

    async with company.under_load() as platform:
        await asyncio.to_thread(add)
        company.credentials.update(renewed)
        platform.seal_with(company.credentials)
        await platform.acknowledged()
        await asyncio.sleep(CALM_S)
        await asyncio.to_thread(retire)


def _healthy_replicas(company: Company) -> int:
    """Of the four services, as the mesh listener's Envoy knows them."""
    question = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9901/clusters').read().decode())"
    lines = company.stack.inside("mesh", "python", "-S", "-c", question).splitlines()
    services = ("crypto_svc::", "nlp_svc::", "reply_svc::", "inbox::")
    return sum(line.endswith("::health_flags::healthy") and line.startswith(services) for line in lines)


def _long_lived(company: Company) -> list[str]:
    """All containers that serve somebody."""
    return sorted(
        name for name in company.stack.containers() if not name.startswith(("account", "certificates", "renewal"))
    )
