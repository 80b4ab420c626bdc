"""The mesh with one container per process, as `docker compose up` starts it."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from assistant import plugin, tls
from assistant.cli.authority import Authority

SERVICES = ("envoy", "mesh", "gateway", "crypto-svc", "nlp-svc", "reply-svc")
ONCE = ("account", "certificates")
"""They end when they have done their work."""
PROCESSES = ("gateway", "crypto_svc", "nlp_svc", "reply_svc", "operator", "mesh", "edge")
BASE = "docker-compose.yml"
SECRETS = {
    "WECOM_SECRET": "theSecretOfTheApplication",
    "WECOM_TOKEN": "theTokenOfTheCallback",
    "WECOM_AESKEY": "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG",
}
KNOWN_TO = {
    "WECOM_SECRET": {"reply-svc", "cli"},
    "WECOM_TOKEN": {"crypto-svc", "cli"},
    "WECOM_AESKEY": {"crypto-svc", "cli"},
}
ACCOUNT = {
    "WECOM_CORPID": "ww0123456789abcdef",
    "WECOM_AGENTID": "1000002",
    "WECOM_API_BASE": "http://127.0.0.1:1",  # nobody is there
    "SIMULATORS": "0",
}
PASSWORDS = {
    f"{name}_PASSWORD": f"passwordOf{name.title()}"
    for name in ("POSTGRES", "GATEWAY_DATABASE", "NLP_DATABASE", "REPLY_DATABASE")
}

MakeStack = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def stack(make_stack: MakeStack) -> Iterator[Any]:
    """What somebody has who typed nothing but `docker compose up`."""
    with make_stack(BASE) as stack:
        stack.up()
        yield stack


# Tries whatever way out there is, to the port that Envoy publishes on the engine's own machine.
TRY_THE_WAY_OUT = """
import socket, sys
for route in open("/proc/net/route").read().splitlines()[1:]:
    _, destination, gateway, *_ = route.split()
    if destination == "00000000":
        address = socket.inet_ntoa(bytes.fromhex(gateway)[::-1])
        try:
            socket.create_connection((address, int(sys.argv[1])), 2)
            print("out")
        except OSError:
            pass
"""


def has_a_way_out(stack: Any, service: str) -> bool:
    return bool(stack.inside(service, "python", "-S", "-c", TRY_THE_WAY_OUT, str(stack.http)).strip())


def finds(stack: Any, service: str, other: str) -> bool:
    question = f"import socket\ntry: print(socket.gethostbyname({other!r}))\nexcept OSError: pass"
    return bool(stack.inside(service, "python", "-S", "-c", question).strip())


def test_doctor_tells_what_it_sees_and_what_it_cannot_see(stack: Any) -> None:
    """From the networks of the operator's container: no problem, and a reason for whatever is left out."""
    report = json.loads(stack.cli("doctor", "--json"))
    found = {(each["check"], each["subject"]): each for each in report["findings"]}
    assert report["counts"]["problem"] == 0
    assert found["callback.answered", "channels.wecom"]["severity"] == "ok"
    assert found["mesh.service", "reply_svc"]["severity"] == "ok"
    assert found["mesh.service", "crypto_svc"]["severity"] == "skipped"
    assert "the gateway says" in found["mesh.service", "crypto_svc"]["title"]
    assert not [each for each in report["findings"] if each["check"] == "doctor.unfinished"]


def test_no_container_can_do_more_than_it_must(stack: Any) -> None:
    """Every process is without root, capabilities and a writable root."""
    for service in (*SERVICES, "simulator", "renewal"):
        status = stack.inside(service, "cat", "/proc/self/status")
        facts = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("Cap", "Uid", "NoNew")))
        assert {facts[name].strip("0") for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}, service
        assert facts["NoNewPrivs"] == "1", service
        assert set(facts["Uid"].split()) == {"10001"}, service
        tried = stack.inside(service, "sh", "-c", "touch /app/x /usr/x 2>&1 || true")
        assert tried.count("Read-only file system") == 2, service


def test_the_whole_stack_stays_within_its_limits(stack: Any) -> None:
    """All containers together may use 1.5 CPUs and 3072 MB, and each has a limit."""
    limits = [one["HostConfig"] for name, one in stack.containers().items() if not name.startswith(ONCE)]
    assert all(limit["NanoCpus"] and limit["Memory"] and limit["PidsLimit"] for limit in limits)
    assert sum(limit["NanoCpus"] for limit in limits) <= 1.5e9
    assert sum(limit["Memory"] for limit in limits) <= 3072 * 2**20


def test_networks_are_the_arrows_of_the_picture(stack: Any) -> None:
    """Only reply_svc has a way to the platforms, and services that have nothing to say to each other cannot meet."""
    ways_in = {"envoy", "mesh"}  # they publish ports
    assert {name for name in SERVICES if has_a_way_out(stack, name)} == {*ways_in, "reply-svc"}
    meets = {one: {other for other in SERVICES if other != one and finds(stack, one, other)} for one in SERVICES}
    assert meets == {
        "envoy": {"mesh", "gateway"},  # both Envoys are in the network in which ports are published
        "mesh": {"envoy", "gateway", "crypto-svc", "nlp-svc", "reply-svc"},
        "gateway": {"envoy", "mesh", "crypto-svc", "nlp-svc", "reply-svc"},
        "crypto-svc": {"mesh", "gateway"},
        "nlp-svc": {"mesh", "gateway"},
        "reply-svc": {"mesh", "gateway"},
    }
    assert stack.inside("renewal", "cat", "/proc/net/route").count("\n") == 1  # it holds the authority's key


def test_each_container_is_given_its_own_certificate_only(stack: Any) -> None:
    """The key of a process is mounted where that process runs; the authority's, where nobody can be told it."""
    given = {service: stack.inside(service, "ls", "/certificates").split() for service in SERVICES}
    keys = {
        service: {name for name in names if "tls.key" in stack.inside(service, "ls", f"/certificates/{name}")}
        for service, names in given.items()
    }
    assert keys == {
        "envoy": {"edge"},
        "mesh": {"mesh"},
        "gateway": {"gateway"},
        "crypto-svc": {"crypto_svc"},
        "nlp-svc": {"nlp_svc"},
        "reply-svc": {"reply_svc"},
    }
    assert set(stack.inside("renewal", "ls", "/certificates").split()) == {"ca", *PROCESSES}


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_that_dies_comes_back(stack: Any, service: str) -> None:
    """Its process is killed; the engine starts it again, and messages are answered as before."""
    stack.crash(f"{service}-1")
    stack.until(lambda: stack.well() and stack.serving())
    assert stack.ask("ping") == "pong"


def test_a_callback_outlives_its_gateway(stack: Any) -> None:
    """While the only gateway is made anew, callbacks wait for it: none is refused by an empty edge."""
    for _ in range(3):
        stack.compose("exec", "--no-TTY", "gateway", "sh", "-c", "kill -9 -1", check=False)
        for _ in range(5):
            assert stack.callback() == 400  # it is no envelope, which only a gateway can tell


def test_a_message_outlives_its_containers(stack: Any) -> None:
    """After all containers are made anew, what was answered before is still known."""
    stack.ask("ping")
    before = json.loads(stack.cli("inbox", "list", "--json"))
    stack.compose("down")
    stack.up()
    assert json.loads(stack.cli("inbox", "list", "--json")) == before
    assert stack.ask("ping") == "pong"


def test_containers_end_by_themselves(stack: Any) -> None:
    """`docker compose stop` lets every process finish; none has to be killed."""
    stack.compose("stop")
    codes = {name: one["State"]["ExitCode"] for name, one in stack.containers().items()}
    assert set(codes.values()) <= {0, 143}, codes  # 143: ended by the signal
    stack.compose("start")


def test_each_service_is_given_its_own_secrets_only(make_stack: MakeStack) -> None:
    """A secret is in the environment of the services that need it, and nowhere else in the whole project."""
    with make_stack(BASE, **ACCOUNT, **SECRETS) as stack:
        services = json.loads(stack.compose("--profile", "*", "config", "--format", "json"))["services"]
    for name, secret in SECRETS.items():
        assert {service for service, what in services.items() if secret in json.dumps(what)} == KNOWN_TO[name]
    files = {f"{name}_FILE": f"./{name}" for name in SECRETS}
    with make_stack(BASE, **ACCOUNT, **files) as stack:
        services = json.loads(stack.compose("--profile", "*", "config", "--format", "json"))["services"]
    for name in SECRETS:
        mounted = {
            service
            for service, what in services.items()
            for one in what.get("secrets", ())
            if one["source"] == name.lower()
        }
        assert mounted == KNOWN_TO[name]


def test_nlp_svc_gets_a_way_out_by_its_overlay(make_stack: MakeStack) -> None:
    """For an engine that asks a provider nlp-svc is let out, alone and not into another service's network."""
    with make_stack(BASE, "deploy/compose/nlp-egress.yml") as stack:
        configured = json.loads(stack.compose("config", "--format", "json"))
    assert set(configured["services"]["nlp-svc"]["networks"]) == {"nlp", "nlp-egress"}
    assert not configured["networks"]["nlp-egress"].get("internal")
    users = [name for name, what in configured["services"].items() if "nlp-egress" in what.get("networks", {})]
    assert users == ["nlp-svc"]


def test_own_credentials_and_certificate(make_stack: MakeStack, tmp_path: Path) -> None:
    """With an account and a certificate of one's own, from .env and files, nothing is simulated, and HTTPS answers."""
    tmp_path.chmod(0o755)
    files = {}
    for name, secret in SECRETS.items():
        (tmp_path / name).write_text(secret + "\n")
        files[f"{name}_FILE"] = str(tmp_path / name)
    shown = own_certificate(tmp_path / "own")
    files |= {"CERTIFICATES_EDGE": str(shown), "EDGE_PROFILE": "production"}
    with make_stack(BASE, **ACCOUNT, **files) as stack:
        stack.up()
        assert set(stack.containers()) == {f"{name}-1" for name in (*SERVICES, *ONCE, "renewal")}
        assert stack.ask("ping") == "pong"
        status, health = stack.health()
        assert (status, health["wecom"]) == (503, "disconnected")  # its platform is nowhere
        certificate = ssl.get_server_certificate(("localhost", stack.https))
        assert certificate.split() == (shown / tls.CERTIFICATE).read_text().split()
        assert "left as it is" in stack.compose("logs", "certificates")


def own_certificate(folder: Path) -> Path:
    """A certificate that somebody else made, with its key, readable to user 10001."""
    made = folder.with_name("made")
    Authority.open(made).issue(made / "edge", ["localhost"], tls.uri("edge"), timedelta(days=1))
    folder.mkdir()
    for name in (tls.CERTIFICATE, tls.KEY):
        (folder / name).write_bytes((made / "edge" / name).read_bytes())
    return folder


def test_two_of_every_service_share_the_work(make_stack: MakeStack) -> None:
    """With PostgreSQL, messages are answered whichever gateway, and whichever service of each kind, has died."""
    with make_stack(BASE, "deploy/compose/scale.yml", **PASSWORDS) as stack:
        stack.up()
        assert stack.ask("ping") == "pong"
        for service in ("gateway", "crypto-svc", "nlp-svc", "reply-svc"):
            for number in (1, 2):
                with stack.without(f"{service}-{number}"):
                    assert stack.ask("ping") == "pong", (service, number)
        for role, other in (("gateway", "reply"), ("reply", "nlp"), ("nlp", "gateway")):
            refused = stack.compose(
                *(
                    "exec",
                    "--no-TTY",
                    "postgres",
                    "psql",
                    "--username",
                    role,
                    "--dbname",
                    other,
                    "--command",
                    "select 1",
                ),
                check=False,
            )
            assert refused == ""


@contextmanager
def members_write(stack: Any) -> Iterator[list[dict[str, Any]]]:
    """Members who write one message after the other. What came of each is in the list."""
    over, written = threading.Event(), []

    def write(member: str) -> None:
        while not over.is_set():
            written.append(stack.simulated("POST", f"/members/{member}/messages?wait=1", {"text": "ping"}))

    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(write, member) for member in ("lisi", "wangwu", "zhangsan")]
        try:
            yield written
        finally:
            over.set()
    for each in writing:
        each.result()


def test_keys_are_changed_on_every_replica(make_stack: MakeStack) -> None:
    """While members write, a key is changed on two replicas that share their keys: nothing is lost, all agree."""
    with make_stack(BASE, "deploy/compose/scale.yml", **PASSWORDS) as stack:
        stack.up()
        change = plugin.channels()["wecom"].key_change
        assert change
        key = dict(change.make())
        given = [part for name, value in key.items() for part in (f"--{name}", value)]
        with members_write(stack) as written:
            added = json.loads(stack.cli("keys", "add", "wecom", *given, "--key-id", "spring", "--json"))
            assert added["replicas"] == 2
            with_old = len(written)
            assert stack.simulated("PUT", "/key", key)["passed"]
            stack.until(lambda: len(written) > with_old + 50)
            stack.cli("keys", "retire", "wecom", "configured")
            with_new = len(written)
            stack.until(lambda: len(written) > with_new + 50)
        assert with_old > 20
        assert {(entry["state"], entry["attempts"], entry["problem"]) for entry in written} == {("answered", 1, "")}
        books = stack.simulated("GET", "/books")
        assert books["sent"] == books["acknowledged"] == books["answered_passively"] == len(written)
        assert not [name for name in ("answered_actively", "lost", "retried", "forged") if books[name]]
        for number in (1, 2):
            with stack.without(f"crypto-svc-{number}"):  # what is left knows the new key, after a restart as well
                said = stack.simulated("POST", "/members/zhangsan/messages?wait=1", {"text": "ping"})
                assert (said["reply"], said["problem"]) == ("pong", "")
        rows = {row["key_id"]: row for row in json.loads(stack.cli("keys", "list", "wecom", "--json"))}
        assert {key_id: (row["state"], row["replicas"]) for key_id, row in rows.items()} == {
            "spring": ("live", 2),
            "configured": ("retired", 2),
        }
        (chain,) = json.loads(stack.inside("crypto-svc", "ai-assistant-cli", "audit", "verify", "--json"))
        assert (chain["chain"], chain["records"], chain["problems"]) == ("crypto_svc", 3, [])
        told = [record["action"] for record in json.loads(stack.cli("audit", "tail", "--json"))]
        assert told == ["keys.add", "keys.retire"]


def test_another_nlp_service_answers(make_stack: MakeStack) -> None:
    """A service in another language, which knows nothing but protos/, takes the engine's place; skills stay."""
    with make_stack(BASE, "deploy/compose/own-nlp.yml") as stack:
        stack.up()
        assert stack.ask("hello") == "Node.js heard: hello"
        assert ":" in stack.ask("what time is it?")
        checked = json.loads(stack.cli("test", "nlp", "--target", "own-nlp:50051", "--json"))
        assert {result["outcome"] for result in checked} <= {"passed", "skipped"}
