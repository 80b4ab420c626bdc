"""The whole mesh, as a user runs it."""

import json
import os
import signal
import socket
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from assistant import ports

PROCESSES = ("crypto_svc", "nlp_svc", "reply_svc", "gateway", "envoy", "simulator")


def test_everything_runs(healthy_mesh: Any) -> None:
    """`up` starts every process and returns when all are ready."""
    standing = healthy_mesh.status()
    assert set(standing) == set(PROCESSES)
    assert all(process["ready"] for process in standing.values())


def test_ping_is_answered(healthy_mesh: Any) -> None:
    """An encrypted callback goes through Envoy and all services, and its answer comes back."""
    answer = json.loads(healthy_mesh.cli("test", "wecom", "--message", "ping").stdout)
    assert answer["content"] == "pong"
    assert answer["message_id"]
    row = next(
        row
        for row in json.loads(healthy_mesh.cli("inbox", "list", "--json").stdout)
        if answer["message_id"] in row["key"]
    )
    assert row["state"] == "answered"
    shown = json.loads(healthy_mesh.cli("inbox", "show", row["key"]).stdout)
    assert (shown["text"], shown["answer"]) == (["ping"], ["pong"])


@pytest.mark.parametrize("port", [ports.GATEWAY, ports.GATEWAY + ports.ADMIN_OFFSET])
def test_the_inbox_is_on_no_address_for_http(healthy_mesh: Any, port: int) -> None:
    """Who reaches the gateway by HTTP reads no member's words and retries nothing, whatever it asks for."""
    words = "只有运维人员才能看到"
    told = json.loads(healthy_mesh.cli("test", "wecom", "--message", words).stdout)
    key = f"wecom:default:{told['message_id']}"
    assert json.loads(healthy_mesh.cli("inbox", "show", key).stdout)["text"] == [words]
    for method, path in (
        ("GET", "/inbox"),
        ("GET", "/inbox?state=answered"),
        ("GET", f"/inbox/{key}"),
        ("GET", f"/inbox/{quote(key, safe='')}"),
        ("POST", f"/inbox/{key}/retry"),
        ("POST", "/assistant.api.inbox.v1.InboxService/ListMessages"),
    ):
        request = urllib.request.Request(f"http://127.0.0.1:{healthy_mesh.offset + port}{path}", method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 404, path
        assert words not in refused.value.read().decode()


def test_health_tells_of_the_platform(healthy_mesh: Any) -> None:
    """`/health` says that all is well and that the platform takes our credentials."""
    with urllib.request.urlopen(f"{healthy_mesh.edge}/health") as answer:
        health = json.load(answer)
    assert (health["status"], health["wecom"]) == ("ok", "connected")
    assert json.loads(healthy_mesh.cli("health").stdout) == health


def test_an_employee_of_the_simulated_company_is_answered(healthy_mesh: Any) -> None:
    """What is written in the simulator's chat is answered there."""
    request = urllib.request.Request(
        f"{healthy_mesh.simulator}/simulator/members/zhangsan/messages?wait=1",
        json.dumps({"text": "ping"}).encode(),
        {"content-type": "application/json"},
    )
    urllib.request.urlopen(request).close()

    def chat() -> str:
        with urllib.request.urlopen(f"{healthy_mesh.simulator}/simulator/members/zhangsan/messages") as answer:
            return str(answer.read().decode())

    assert healthy_mesh.until(lambda: "pong" in chat())


def test_up_again_changes_nothing(healthy_mesh: Any) -> None:
    """`up` on a running mesh restarts no process whose configuration is the same."""
    before = healthy_mesh.pids()
    healthy_mesh.cli("up")
    assert healthy_mesh.pids() == before


def test_up_applies_a_change_and_a_slow_answer_is_delivered(healthy_mesh: Any) -> None:
    """`up` restarts what a change concerns; an answer past the passive budget goes out by reply_svc."""
    before = healthy_mesh.pids()
    healthy_mesh.cli("config", "set", "gateway.passive_budget_s", "0.0001")
    try:
        healthy_mesh.cli("up")
        after = healthy_mesh.pids()
        assert [name for name in PROCESSES if before[name] != after[name]] == ["gateway"]
        told = json.loads(healthy_mesh.cli("test", "wecom", "--message", "ping").stdout)
        assert told["content"] == "pong"
        recorded = json.loads(healthy_mesh.cli("deliveries", "list", "--state", "recorded", "--json").stdout)
        ours = [delivery for delivery in recorded if delivery["request_id"].endswith(f":{told['message_id']}")]
        assert len(ours) == 1
        shown = json.loads(healthy_mesh.cli("deliveries", "show", ours[0]["delivery_id"]).stdout)
        assert shown["content"][0]["text"]["text"] == "pong"
    finally:
        healthy_mesh.cli("config", "set", "gateway.passive_budget_s", "4")
        healthy_mesh.cli("up")


@pytest.mark.parametrize("name", PROCESSES)
def test_a_killed_process_is_back_at_once(healthy_mesh: Any, name: str) -> None:
    """Whichever process is killed, another one takes its place, and messages are answered."""
    before = healthy_mesh.pid(name)
    healthy_mesh.kill(name)
    healthy_mesh.until(lambda: healthy_mesh.pids()[name] not in (None, before))
    healthy_mesh.until(lambda: healthy_mesh.status()[name]["ready"])
    assert json.loads(healthy_mesh.cli("test", "wecom").stdout)["content"] == "pong"


@pytest.mark.parametrize("name", ["crypto_svc", "nlp_svc", "reply_svc", "gateway"])
def test_a_callback_outlives_the_death_of_a_service(healthy_mesh: Any, name: str) -> None:
    """A message that comes just when a service has died is answered all the same."""
    healthy_mesh.kill(name)
    assert json.loads(healthy_mesh.cli("test", "wecom").stdout)["content"] == "pong"


def test_every_process_knows_its_own_part_only(healthy_mesh: Any) -> None:
    """Neither the file nor the environment of a process holds a secret that another one needs."""
    account = tomllib.loads((healthy_mesh.home / "simulator.toml").read_text())["wecom"]
    allowed = {"crypto_svc": {"token", "aeskey"}, "reply_svc": {"secret"}, "simulator": {"token", "aeskey", "secret"}}
    for name in PROCESSES:
        file = healthy_mesh.home / "run" / f"{name}.toml"
        known = file.read_text() if file.exists() else ""
        known += Path(f"/proc/{healthy_mesh.pid(name)}/environ").read_text()
        held = {setting for setting in ("token", "aeskey", "secret") if account[setting] in known}
        assert held == allowed.get(name, set()), name


def test_state_is_readable_to_its_owner_alone(healthy_mesh: Any) -> None:
    """No other user of the machine gets at configuration, state or logs."""
    assert healthy_mesh.home.stat().st_mode & 0o077 == 0
    folders = [healthy_mesh.home / name for name in ("run", "data", "logs", "edge")]
    assert {folder.name: oct(folder.stat().st_mode & 0o077) for folder in folders} == {
        folder.name: "0o0" for folder in folders
    }
    kept = [*(healthy_mesh.home / "data").iterdir(), *(healthy_mesh.home / "run").glob("*.toml")]
    assert {file.name for file in kept if file.stat().st_mode & 0o077} == set()


def test_a_bad_callback_is_refused_through_the_edge(healthy_mesh: Any) -> None:
    """A forged callback is refused, and so is one of a channel that is not configured."""
    for path, status in (("/wecom?msg_signature=0&timestamp=1&nonce=1", (400, 401)), ("/nobody", (404,))):
        request = urllib.request.Request(f"{healthy_mesh.edge}{path}", b"<xml><Encrypt>x</Encrypt></xml>")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code in status


def test_logs_are_kept_per_process(healthy_mesh: Any) -> None:
    """`logs` prints what the processes wrote, and knows their names."""
    assert "crypto_svc: " in healthy_mesh.cli("logs", "crypto_svc", "--lines", "1000").stdout
    unknown = healthy_mesh.cli("logs", "nobody", check=False)
    assert unknown.returncode == 1
    assert "gateway" in unknown.stderr


def test_a_busy_port_is_named_before_anything_starts(make_mesh: Any) -> None:
    """`up` names a port that is taken, who has it and what to do, and starts nothing."""
    with make_mesh() as mesh, socket.create_server(("127.0.0.1", mesh.offset + ports.NLP)):
        failed = mesh.cli("up", check=False)
        assert failed.returncode == 1
        for expected in (
            str(mesh.offset + ports.NLP),
            "nlp.listen",
            f"process {os.getpid()}",
            "AI_ASSISTANT_PORT_OFFSET",
        ):
            assert expected in failed.stderr
        assert mesh.processes() == []


def test_nothing_is_left_behind(make_mesh: Any) -> None:
    """`down` lets everybody say that they stop; neither it nor the supervisor's death leaves a process behind."""
    with make_mesh() as mesh:
        mesh.cli("up")
        mesh.cli("down")
        assert mesh.processes() == []
        assert mesh.cli("status", check=False).returncode == 1
        logs = mesh.home / "logs"
        assert b'"gateway_stopped"' in (logs / "gateway.log").read_bytes()
        assert all(
            b'"stopping"' in (logs / f"{name}.log").read_bytes() for name in ("crypto_svc", "nlp_svc", "reply_svc")
        )
        mesh.cli("up")
        supervisor = next(
            pid for pid in mesh.processes() if b"assistant.cli.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(supervisor, signal.SIGKILL)
        mesh.until(lambda: not mesh.processes())
        mesh.cli("up")
        assert json.loads(mesh.cli("test", "wecom").stdout)["content"] == "pong"


def test_own_credentials_replace_the_simulator(make_mesh: Any) -> None:
    """With an account of one's own no simulator runs, and a platform that is not reached is told by name."""
    with make_mesh(WECOM_SECRET="of the environment") as mesh:
        mesh.cli(
            *("config", "set", "channels.wecom", "--corpid", "ww0123456789abcdef", "--token", "aToken"),
            *("--aeskey", "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG", "--agentid", "1000002"),
            *("--api-base", "http://127.0.0.1:1"),
        )
        failed = mesh.cli("up", "--timeout", "15", check=False)
        assert failed.returncode == 1
        assert "not all is well" in failed.stderr
        assert "wecom" in failed.stderr
        assert set(mesh.status()) == set(PROCESSES) - {"simulator"}
        assert json.loads(mesh.cli("test", "wecom").stdout)["content"] == "pong"
