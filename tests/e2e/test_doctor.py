"""`doctor` beside a running mesh, parts of which are broken on purpose: what it finds, and what mends it."""

import json
import os
import re
import signal
import sqlite3
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from assistant import ports


class Patient:
    """A mesh, and what `doctor` says of it."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh

    def report(self, *arguments: str, **environment: str) -> dict[str, Any]:
        before = dict(self.mesh.environment)
        self.mesh.environment |= environment
        try:
            done = self.mesh.cli("doctor", "--json", *arguments, check=False)
        finally:
            self.mesh.environment.clear()
            self.mesh.environment |= before
        report: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (1 if report["status"] == "problem" else 0)
        return report

    def found(self, check: str, *arguments: str, **environment: str) -> list[dict[str, str]]:
        return [each for each in self.report(*arguments, **environment)["findings"] if each["check"] == check]

    def until(self, check: str, severity: str, subject: str = "") -> dict[str, str]:
        """The finding, once it is as bad as this: metrics and what a platform said are some seconds old."""

        def asked() -> dict[str, str] | None:
            found = (each for each in self.found(check) if each["severity"] == severity)
            return next((each for each in found if subject in each["subject"]), None)

        answer: dict[str, str] = self.mesh.until(asked)
        return answer

    def simulator(self, method: str, path: str, body: Any = None) -> Any:
        url = f"{self.mesh.simulator}/simulator/{path}"
        request = urllib.request.Request(url, json.dumps(body or {}).encode(), method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def faults(self, **faults: Any) -> None:
        self.simulator("PUT", "faults", faults)


@pytest.fixture
def patient(healthy_mesh: Any) -> Iterator[Patient]:
    """The shared mesh; whatever the platform was told to do wrong ends with the test."""
    patient = Patient(healthy_mesh)
    yield patient
    patient.faults()


def test_a_healthy_mesh_has_no_problem(patient: Patient) -> None:
    """Everything is looked at, through every service, and the exit code says so."""
    patient.until("platform.account", "ok")
    patient.until("platform.clock", "ok")
    report = patient.report()
    by_severity = {
        severity: [each["check"] for each in report["findings"] if each["severity"] == severity]
        for severity in ("problem", "warning", "skipped", "ok")
    }
    assert set(by_severity["problem"]) <= {"callback.opened"}  # other tests have played strangers
    assert {"url.path"} == set(by_severity["skipped"])
    well = {
        *(
            "mesh.running",
            "mesh.service",
            "mesh.edge",
            "mesh.code",
            "settings.sections",
            "keys.age",
            "callback.answered",
        ),
        *("platform.account", "platform.clock", "engine.ready", "database.whole"),
        *("certificate.edge", "certificate.mesh", "machine.disk", "machine.memory"),
    }
    assert well <= set(by_severity["ok"])
    answered = next(each for each in report["findings"] if each["check"] == "callback.answered")
    assert " ms" in answered["title"]


def test_it_speaks_as_the_terminal_does(patient: Patient) -> None:
    """In Chinese where the locale is, for people and for programs."""
    assert any("服务正在运行" in each["title"] for each in patient.found("mesh.running", LANG="zh_CN.UTF-8"))


def test_an_untrusted_address_is_named(patient: Patient) -> None:
    """60020: the address to add, and where."""
    patient.faults(error_code=60020, error_calls=100_000)
    refused = patient.until("platform.account", "problem")
    assert "60020" in refused["title"]
    assert "127.0.0.1" in refused["detail"]
    assert "企业可信IP" in refused["mend"]
    patient.faults()
    assert patient.until("platform.account", "ok")


def test_a_clock_that_is_wrong_is_told(patient: Patient) -> None:
    """By the platform's date and by nothing else; how bad it is says the freshness window."""
    patient.faults(date_late_s=60)
    slightly = patient.until("platform.clock", "warning")
    assert slightly["command"] == "timedatectl set-ntp true"
    patient.faults(date_late_s=400)
    badly = patient.until("platform.clock", "problem")["title"]
    assert re.search(r"is 4\d\d s ahead", badly)
    patient.faults()
    assert patient.until("platform.clock", "ok")


def test_answers_that_were_given_up_are_told(patient: Patient) -> None:
    """With what the platform said, and what sends them after all."""
    mesh = patient.mesh
    mesh.cli("config", "set", "gateway.passive_budget_s", "0.0001")
    mesh.cli("up")
    try:
        patient.faults(error_code=81013, error_calls=100_000, only="message/send")
        patient.simulator("POST", "members/zhangsan/messages?wait=1", {"text": "ping"})
        given_up = patient.until("messages.outbox", "warning")
        assert "81013" in given_up["detail"]
        assert "visible range" in given_up["mend"]
        assert "deliveries retry" in given_up["command"]
        patient.faults()
        mesh.cli(*given_up["command"].removeprefix("ai-assistant-cli ").split())
        assert patient.until("messages.outbox", "ok")
    finally:
        mesh.cli("config", "set", "gateway.passive_budget_s", "4")
        assert patient.until("mesh.applied", "warning")["command"] == "ai-assistant-cli up"
        mesh.cli("up")
    assert patient.found("mesh.applied") == []


def test_a_message_that_was_given_up_is_told(patient: Patient) -> None:
    """With the command that tries it again."""
    mesh = patient.mesh
    mesh.cli("test", "wecom")
    mesh.until(lambda: json.loads(mesh.cli("inbox", "list", "--json").stdout)[0]["state"] == "answered")
    with closing(sqlite3.connect(mesh.home / "data" / "gateway.db", timeout=10)) as inbox, inbox:
        (state,) = inbox.execute("SELECT state FROM inbox ORDER BY seq DESC LIMIT 1").fetchone()
        dead = "UPDATE inbox SET state = ?, error = ? WHERE seq = (SELECT max(seq) FROM inbox)"
        inbox.execute(dead, (_dead(), "ENGINE_UNAVAILABLE"))
    try:
        (given_up,) = patient.found("messages.inbox")
        assert given_up["severity"] == "warning"
        assert "ENGINE_UNAVAILABLE" in given_up["detail"]
        assert "inbox retry wecom:default:" in given_up["command"]
    finally:
        with closing(sqlite3.connect(mesh.home / "data" / "gateway.db", timeout=10)) as inbox, inbox:
            inbox.execute(dead, (state, ""))


def _dead() -> int:
    from gateway.inbox import InboxState

    return int(InboxState.DEAD)


def test_other_keys_than_the_consoles_are_told(patient: Patient) -> None:
    """When the platform's callbacks are refused and no member's message comes, Token or EncodingAESKey differ."""
    mesh = patient.mesh
    mesh.kill("crypto_svc")  # so that nobody has written since its start
    mesh.until(mesh.is_healthy)
    patient.faults(wrong_signature=True)
    for _ in range(5):
        patient.simulator("POST", "members/lisi/messages?wait=1", {"text": "ping"})
    (refused,) = patient.found("callback.opened")
    assert refused["severity"] == "problem"
    assert "SIGNATURE_MISMATCH" in refused["title"]
    assert "channels.wecom --token --aeskey" in refused["command"]
    patient.faults()
    patient.simulator("POST", "members/lisi/messages?wait=1", {"text": "ping"})
    assert patient.found("callback.opened")[0]["severity"] == "warning"  # then strangers try


@pytest.mark.parametrize("name", ["nlp_svc", "reply_svc"])
def test_a_service_that_hangs_does_not_hang_it(patient: Patient, name: str) -> None:
    """A process that is stopped is named, and everything else is looked at, within seconds."""
    pid = patient.mesh.pid(name)
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        report = patient.report()
        took_s = time.monotonic() - began
    finally:
        os.kill(pid, signal.SIGCONT)
    assert took_s < 30
    (hangs,) = [each for each in report["findings"] if each["check"] == "mesh.service" and each["subject"] == name]
    assert hangs["severity"] == "problem"
    assert hangs["command"] == f"ai-assistant-cli logs {name} --lines 50"
    assert any(each["check"] == "database.whole" and each["severity"] == "ok" for each in report["findings"])
    patient.mesh.until(patient.mesh.is_healthy)


def test_a_process_that_ended_is_told(patient: Patient) -> None:
    """It is back, and somebody should look why it ended."""
    patient.mesh.kill("nlp_svc")
    patient.mesh.until(patient.mesh.is_healthy)
    ended = patient.until("mesh.process", "warning", "nlp_svc")
    assert ended["command"] == "ai-assistant-cli logs nlp_svc --lines 50"


def test_the_public_url_is_tried_step_by_step(patient: Patient) -> None:
    """A certificate that nobody trusts ends it; one that is trusted leads through every service."""
    url = f"https://localhost:{patient.mesh.offset + ports.EDGE_HTTPS}/wecom"
    (untrusted,) = patient.found("url.certificate", "--url", url)
    assert untrusted["severity"] == "problem"
    assert "config set edge --certificate" in untrusted["command"]
    trusted = {"SSL_CERT_FILE": str(patient.mesh.home / "edge" / "certificate.pem")}
    report = patient.report("--url", url, **trusted)
    severities = {each["check"]: each["severity"] for each in report["findings"] if each["check"].startswith("url.")}
    assert severities == {
        "url.path": "ok",
        "url.dns": "warning",
        "url.certificate": "ok",
        "url.reaches": "ok",
        "url.answered": "ok",
    }


def test_callbacks_that_are_not_taken_from_here_are_not_tried(patient: Patient) -> None:
    """That is as the operator wants it, and no problem."""
    mesh = patient.mesh
    mesh.cli("config", "set", "channels.wecom", "--callback-sources", "203.0.113.9")
    mesh.cli("up")
    try:
        (answered,) = patient.found("callback.answered")
        assert answered["severity"] == "skipped"
        assert "callback_sources" in answered["title"]
    finally:
        mesh.cli("config", "set", "channels.wecom", "--callback-sources", "")
        mesh.cli("up")


def test_a_wrong_secret_is_told(make_mesh: Any, patient: Patient) -> None:
    """40001 of a real refusal: the setting to give again. The callback is answered all the same."""
    account = tomllib.loads((patient.mesh.home / "simulator.toml").read_text())["wecom"] | {
        "secret": "wrong",
        "api_base": patient.mesh.simulator,
    }
    with make_mesh() as mesh:
        options = [word for key, value in account.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        mesh.cli("config", "set", "channels.wecom", *options)
        mesh.cli("up", "--timeout", "20", check=False)
        own = Patient(mesh)
        refused = own.until("platform.account", "problem")
        assert "40001" in refused["title"]
        assert refused["command"].startswith("ai-assistant-cli config set channels.wecom --secret")
        assert own.found("callback.answered")[0]["severity"] == "ok"
        _changed_keys_are_told(own)


def _changed_keys_are_told(own: Patient) -> None:
    """A token that was changed and not applied: crypto_svc refuses what is sealed with it."""
    own.mesh.cli("config", "set", "channels.wecom", "--token", "a" * 32)
    (refused,) = own.found("callback.answered")
    assert refused["severity"] == "problem"
    assert "401" in refused["title"]
    assert refused["command"] == "ai-assistant-cli up"


def test_what_is_printed_is_not_secret(patient: Patient) -> None:
    """Neither settings nor what members write are in the report."""
    account = tomllib.loads(Path(patient.mesh.home / "simulator.toml").read_text())["wecom"]
    said = patient.mesh.cli("doctor", check=False).stdout + json.dumps(patient.report())
    assert all(account[name] not in said for name in ("secret", "token", "aeskey"))
