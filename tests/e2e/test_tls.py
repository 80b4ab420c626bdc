"""A mesh in production: mutual TLS between services, HTTPS at the edge, and the operator's way in."""

import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assistant import ports

GRPCURL = Path(sys.executable).parent / "grpcurl"
SERVICES = {
    "crypto.mesh": ("assistant.api.crypto.v1.CryptoService", "ListKeys"),
    "nlp.mesh": ("assistant.api.nlp.v1.NlpService", "DescribeModel"),
    "reply.mesh": ("assistant.api.reply.v1.ReplyService", "ListDeliveries"),
    "gateway.mesh": ("assistant.api.inbox.v1.InboxService", "ListMessages"),
}
ACCOUNT = json.dumps({"account": {"channel": "wecom", "name": "default"}})


@pytest.fixture(scope="module")
def production(make_mesh: Any) -> Iterator[Any]:
    """A mesh with certificates, in the production profile, that is up."""
    with make_mesh(AI_ASSISTANT_EDGE_PROFILE="production") as mesh:
        mesh.cli("certificates", "make")
        mesh.cli("config", "set", "tls.certificates", str(mesh.home / "certificates"))
        mesh.cli("config", "set", "edge.redirect_port", str(mesh.offset + ports.EDGE_HTTPS))
        mesh.cli("up")
        yield mesh


def grpcurl(
    mesh: Any, *words: str, port: int = ports.EDGE_MESH, identity: Path | None = None, authority: str = "crypto.mesh"
) -> subprocess.CompletedProcess[str]:
    """Run grpcurl as an operator, or with the certificate in another folder."""
    ours = mesh.home / "certificates"
    folder = identity or ours / "operator"
    shown = ("-cert", folder / "tls.crt", "-key", folder / "tls.key") if folder.exists() else ()
    flags = [word for word in words if word.startswith(("-d", "{"))]
    command = [GRPCURL, "-cacert", ours / "ca" / "tls.crt", *shown, "-connect-timeout", "3", "-authority", authority]
    rest = [word for word in words if word not in flags]
    return subprocess.run(
        [*map(str, command), *flags, f"127.0.0.1:{mesh.offset + port}", *rest],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("authority", SERVICES)
def test_an_operator_calls_every_service(production: Any, authority: str) -> None:
    """Through the mesh listener every service lists and describes itself, tells its health, and answers."""
    service, method = SERVICES[authority]
    serving = production.until(
        lambda: "SERVING" in grpcurl(production, "grpc.health.v1.Health/Check", authority=authority).stdout
    )
    assert serving
    assert service in grpcurl(production, "list", authority=authority).stdout.split()
    assert f"rpc {method} (" in grpcurl(production, "describe", service, authority=authority).stdout
    content = ACCOUNT if method == "ListKeys" else "{}"
    answer = grpcurl(production, "-d", content, f"{service}/{method}", authority=authority)
    assert answer.returncode == 0, answer.stderr
    json.loads(answer.stdout)


def test_the_mesh_listener_knows_who_is_well(production: Any) -> None:
    """It asks every service for its health, and is answered."""

    def healthy() -> set[str]:
        url = f"http://127.0.0.1:{production.offset + ports.ENVOY_ADMIN}/clusters"
        with urllib.request.urlopen(url) as answer:
            lines = answer.read().decode().splitlines()
        return {line.partition("::")[0] for line in lines if line.endswith("::health_flags::healthy")}

    production.until(lambda: {"crypto_svc", "nlp_svc", "reply_svc", "inbox"} <= healthy())


@pytest.mark.parametrize("name", ["gateway", "nlp_svc", "edge"])
def test_the_mesh_listener_is_for_operators(production: Any, name: str) -> None:
    """Another certificate of the same authority does not get in there."""
    assert grpcurl(production, "list", identity=production.home / "certificates" / name).returncode != 0


def test_the_mesh_listener_wants_a_certificate(production: Any, tmp_path: Path) -> None:
    """Neither nobody nor a stranger gets in there, though the stranger calls itself an operator."""
    assert grpcurl(production, "list", identity=tmp_path / "nobody").returncode != 0
    production.cli("certificates", "make", "--folder", str(tmp_path))
    assert grpcurl(production, "list", identity=tmp_path / "operator").returncode != 0
    assert grpcurl(production, "list").returncode == 0


def test_a_service_of_the_mesh_may_not_call_every_other(production: Any) -> None:
    """nlp_svc may not ask crypto_svc for anything, nor the gateway for its keys."""
    for name, method in (("nlp_svc", "OpenCallback"), ("gateway", "ListKeys")):
        answer = grpcurl(
            production,
            "-d",
            ACCOUNT,
            f"assistant.api.crypto.v1.CryptoService/{method}",
            identity=production.home / "certificates" / name,
            authority="crypto-svc",
            port=ports.CRYPTO,
        )
        assert "PermissionDenied" in answer.stderr
        assert "CALLER_NOT_PERMITTED" in answer.stderr


def ask_gateway(mesh: Any, method: str, name: str, request: str = "{}") -> subprocess.CompletedProcess[str]:
    """Call a method of the inbox directly, with the certificate of this process."""
    return grpcurl(
        mesh,
        "-d",
        request,
        f"assistant.api.inbox.v1.InboxService/{method}",
        identity=mesh.home / "certificates" / name,
        authority="gateway",
        port=ports.GATEWAY_GRPC,
    )


def test_the_inbox_is_for_operators(production: Any, tmp_path: Path) -> None:
    """Members' words are shown to the operator's certificate, and to no service, stranger or plaintext."""
    told = json.loads(production.cli("test", "wecom", "--message", "ping").stdout)
    key = json.dumps({"key": f"wecom:default:{told['message_id']}"})
    shown = ask_gateway(production, "GetMessage", "operator", key)
    assert json.loads(shown.stdout)["message"]["content"][0]["text"]["text"] == "ping"
    for name in ("gateway", "crypto_svc", "nlp_svc", "reply_svc", "edge"):
        for method, request in (("ListMessages", "{}"), ("GetMessage", key), ("RetryMessage", key)):
            refused = ask_gateway(production, method, name, request)
            assert "CALLER_NOT_PERMITTED" in refused.stderr, (name, method)
            assert "ping" not in refused.stdout + refused.stderr
    production.cli("certificates", "make", "--folder", str(tmp_path))
    for identity in (tmp_path / "operator", tmp_path / "nobody"):
        assert grpcurl(production, "list", identity=identity, authority="gateway", port=ports.GATEWAY_GRPC).returncode
    address = f"127.0.0.1:{production.offset + ports.GATEWAY_GRPC}"
    plaintext = [str(GRPCURL), "-plaintext", "-connect-timeout", "3", address, "list"]
    assert subprocess.run(plaintext, capture_output=True, timeout=30, check=False).returncode


def test_operators_look_into_the_inbox(production: Any) -> None:
    """`ai-assistant-cli inbox` shows the operator's certificate; without it, it says what is missing."""
    told = json.loads(production.cli("test", "wecom", "--message", "ping").stdout)
    key = f"wecom:default:{told['message_id']}"
    assert key in production.cli("inbox", "list").stdout
    assert json.loads(production.cli("inbox", "show", key).stdout)["text"] == ["ping"]
    production.until(lambda: '"answered"' in production.cli("inbox", "show", key).stdout)
    refused = production.cli("inbox", "retry", key, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "answered: only a dead or unconfirmed message is tried again" in refused.stderr
    certificates = production.home / "certificates"
    (certificates / "operator").rename(certificates / "away")
    try:
        refused = production.cli("inbox", "list", check=False)
        assert refused.returncode == 1
        assert "certificates make" in refused.stderr
    finally:
        (certificates / "away").rename(certificates / "operator")


def test_http_is_sent_to_https(production: Any) -> None:
    """HTTP answers health; whatever else comes is sent on, with its path and query."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    visitor = urllib.request.build_opener(Stay)
    with visitor.open(f"{production.edge}/health") as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as redirected:
        visitor.open(f"{production.edge}/wecom?msg_signature=1", data=b"<xml/>")
    assert redirected.value.status == 308
    https = f"https://127.0.0.1:{production.offset + ports.EDGE_HTTPS}"
    assert redirected.value.headers["location"] == f"{https}/wecom?msg_signature=1"
    trusting = ssl.create_default_context(cafile=production.home / "certificates" / "ca" / "tls.crt")
    with urllib.request.urlopen(f"{https}/health", context=trusting) as answer:
        assert answer.status == 200


def test_certificates_are_renewed_under_callbacks(production: Any) -> None:
    """All certificates are exchanged while messages come, and each message is answered."""
    answered, failed = 0, []
    over = threading.Event()

    def write() -> None:
        nonlocal answered
        while not over.is_set():
            done = production.cli("test", "wecom", "--message", "ping", check=False)
            if done.returncode:
                failed.append(done.stderr)
            answered += not done.returncode

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", production.offset + ports.EDGE_HTTPS))

    before, pids = shown(), production.pids()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        production.until(lambda: answered)
        production.cli("certificates", "make", "--renew")
        production.until(lambda: shown() != before)
        time.sleep(3)  # the gateway looks every two seconds
        until = answered + 2
        production.until(lambda: answered >= until)
    finally:
        over.set()
        writer.join()
    assert failed == []
    assert production.pids() == pids
    changed = [
        line
        for log in (production.home / "logs").glob("*.log")
        for line in log.read_text().splitlines()
        if "certificates_changed" in line
    ]
    assert {json.loads(line)["service"] for line in changed} == {"gateway", "crypto_svc", "nlp_svc", "reply_svc"}
    assert "SERVING" in grpcurl(production, "grpc.health.v1.Health/Check").stdout


def test_doctor_speaks_as_the_operator(production: Any) -> None:
    """With its certificate every service answers it; without, that is what is wrong, and no service is blamed."""

    def problems() -> list[tuple[str, str, str]]:
        findings = json.loads(production.cli("doctor", "--json", check=False).stdout)["findings"]
        return [(each["check"], each["subject"], each["command"]) for each in findings if each["severity"] == "problem"]

    production.until(production.is_healthy)
    assert problems() == []
    certificates = production.home / "certificates"
    (certificates / "operator").rename(certificates / "away")
    try:
        assert problems() == [("certificate.mesh", "operator", "ai-assistant-cli certificates make")]
    finally:
        (certificates / "away").rename(certificates / "operator")


def test_certificates_are_listed(production: Any) -> None:
    """Each has a name, an end, and somebody whose it is."""
    rows = {row["name"]: row for row in json.loads(production.cli("certificates", "list", "--json").stdout)}
    assert rows["crypto_svc"]["identity"] == "spiffe://ai-assistant/crypto_svc"
    assert 80 <= rows["gateway"]["days_left"] <= 90
    assert "crypto.mesh" in rows["mesh"]["hosts"].split()
