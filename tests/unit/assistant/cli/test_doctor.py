"""`doctor` where no mesh runs: it says so, and looks at everything else. A running one: tests/e2e/test_doctor.py."""

import datetime
import json
import os
import re
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from assistant import ports, tls
from assistant.cli.authority import Authority
from assistant.cli.doctor.processes import code_changed_at
from assistant.cli.envoy import development_certificate
from assistant.cli.language import language
from assistant.journal.migrations import digests
from gateway.inbox import MIGRATIONS

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

ACCOUNT = (
    *("--corpid", "ww0123456789abcdef", "--token", "abcdefghijklmnopqrstuvwxyz012345", "--secret", "theSecret"),
    *("--aeskey", "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG", "--agentid", "1000002"),
)


@dataclass
class Doctor:
    """The command on ports where nobody listens, with a home folder of its own."""

    cli: Cli
    home: Path
    offset: int

    def run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        variables = {"AI_ASSISTANT_PORT_OFFSET": str(self.offset), **environment}
        return self.cli("doctor", *arguments, environment=variables)

    def report(self, *arguments: str, **environment: str) -> dict[str, Any]:
        done = self.run("--json", *arguments, **environment)
        assert done.stderr == ""
        report: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (1 if report["status"] == "problem" else 0)
        return report

    def found(self, check: str, *arguments: str, **environment: str) -> list[dict[str, str]]:
        """What was found about something."""
        return [each for each in self.report(*arguments, **environment)["findings"] if each["check"] == check]

    def configure(self, *arguments: str) -> None:
        done = self.cli("config", "set", *arguments)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def doctor(cli: Cli, tmp_path: Path, reserve_ports: Callable[[], AbstractContextManager[int]]) -> Iterator[Doctor]:
    with reserve_ports() as offset:
        yield Doctor(cli, tmp_path, offset)


# --- The mesh ---------------------------------------------------------------------------------------------


def test_a_mesh_that_is_down_is_told_first(doctor: Doctor) -> None:
    """That nothing runs is the first finding, with what starts it; the rest is looked at all the same."""
    report = doctor.report()
    assert (report["status"], report["mesh"]) == ("problem", "down")
    first = report["findings"][0]
    assert (first["check"], first["severity"], first["command"]) == ("mesh.running", "problem", "ai-assistant-cli up")
    assert {"settings", "callbacks", "certificates", "machine"} <= {each["group"] for each in report["findings"]}


def test_looking_makes_nothing(doctor: Doctor) -> None:
    """Neither an account nor a certificate nor a folder comes from looking."""
    before = sorted(doctor.home.rglob("*"))
    doctor.report()
    assert sorted(doctor.home.rglob("*")) == before


def test_the_report_has_a_stable_form(doctor: Doctor) -> None:
    """Programs find the same keys in every finding."""
    report = doctor.report()
    assert set(report) == {"status", "mesh", "counts", "findings"}
    keys = {"check", "group", "subject", "severity", "title", "detail", "why", "mend", "command"}
    assert all(set(each) == keys for each in report["findings"])
    severities = [each["severity"] for each in report["findings"]]
    assert report["counts"] == {each: severities.count(each) for each in ("problem", "warning", "skipped", "ok")}


def test_whatever_is_wrong_matters_and_can_be_mended(doctor: Doctor) -> None:
    """A problem or a warning says why it matters, and what to do or to type."""
    doctor.configure("channels.wecom", *ACCOUNT, "--token", "short")
    found = [each for each in doctor.report()["findings"] if each["severity"] in ("problem", "warning")]
    assert found
    assert all(each["why"] and (each["mend"] or each["command"]) for each in found)


def test_a_port_that_somebody_has_is_named(doctor: Doctor) -> None:
    """With who has it, and the setting that moves it."""
    with socket.create_server(("127.0.0.1", doctor.offset + ports.NLP)):
        (busy,) = doctor.found("mesh.ports")
    assert busy["severity"] == "problem"
    assert str(doctor.offset + ports.NLP) in busy["title"]
    assert f"process {os.getpid()}" in busy["title"]
    assert "config set nlp.listen" in busy["command"]


def test_texts_are_in_the_language_of_the_terminal(doctor: Doctor) -> None:
    """Chinese where the locale is, English everywhere else; no colours where nobody sees them."""
    assert "The mesh is down" in doctor.run(LANG="en_US.UTF-8").stdout
    chinese = doctor.run(LANG="zh_CN.UTF-8").stdout
    assert "服务未运行" in chinese
    assert "影响" in chinese
    assert "\x1b" not in chinese


def test_code_is_as_new_as_its_newest_file(tmp_path: Path) -> None:
    """Of the service, and of what all share; other services do not count."""
    for number, folder in enumerate(("assistant", "plugins/channels/wecom", "gateway", "nlp_svc")):
        file = tmp_path / folder / "service.py"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (number, 1000 + number))
    assert code_changed_at(tmp_path, "gateway") == 1002
    assert code_changed_at(tmp_path, "crypto_svc") == 1001


@pytest.mark.parametrize(
    ("variables", "spoken"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh-CN"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "C", "LC_ALL": "zh_CN"}, "zh-CN"),
        ({"LANG": "C", "LC_MESSAGES": "zh_CN"}, "zh-CN"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh-CN"),
    ],
)
def test_the_locale_is_read_as_posix_does(
    variables: dict[str, str], spoken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LC_ALL wins over LC_MESSAGES, which wins over LANG; an empty one counts as none."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language() == spoken


# --- Settings ---------------------------------------------------------------------------------------------


def test_a_file_that_is_no_toml_is_told(doctor: Doctor) -> None:
    """With the line, and the examination goes on."""
    (doctor.home / "config.toml").write_text("[gateway\n")
    report = doctor.report()
    (broken,) = [each for each in report["findings"] if each["check"] == "settings.file"]
    assert broken["severity"] == "problem"
    assert "line 1" in broken["detail"]
    assert any(each["group"] == "machine" for each in report["findings"])


def test_a_wrong_section_is_told(doctor: Doctor) -> None:
    """With the key and the fix that `config validate` names."""
    (doctor.home / "config.toml").write_text('[gateway]\nlissten = "127.0.0.1:7000"\n')
    (wrong,) = doctor.found("settings.sections")
    assert wrong["severity"] == "problem"
    assert "did you mean 'listen'" in wrong["detail"]
    assert "Remove or rename gateway.lissten" in wrong["mend"]
    (doctor.home / "config.toml").write_text("[gateway]\nhistory_turns = -1\n")
    (wrong,) = doctor.found("settings.sections")
    assert wrong["command"] == "ai-assistant-cli config set gateway.history_turns <value>"
    (doctor.home / "config.toml").unlink()
    (wrong,) = doctor.found("settings.sections", AI_ASSISTANT_GATEWAY_HISTORY_TURNS="many")
    assert wrong["command"] == "unset AI_ASSISTANT_GATEWAY_HISTORY_TURNS"


def test_a_wrong_account_is_told_by_its_channel(doctor: Doctor) -> None:
    """Once, in the words of the platform's console, without the value."""
    doctor.configure("channels.wecom", *ACCOUNT)
    file = doctor.home / "config.toml"
    file.write_text(file.read_text().replace("0123456789abcdefghijklmnopqrstuvwxyzABCDEFG", "tooShort"))
    report = doctor.report()
    (wrong,) = [each for each in report["findings"] if "channels.wecom" in each["subject"]]
    assert (wrong["check"], wrong["severity"]) == ("settings.aeskey", "problem")
    assert "channels.wecom --aeskey" in wrong["command"]
    assert "tooShort" not in json.dumps(report)


def test_what_only_the_settings_refuse_is_told_too(doctor: Doctor) -> None:
    """A channel without a doctor, and a setting that its doctor does not know."""
    (doctor.home / "config.toml").write_text('[channels.loopback]\ncompany = "demo"\nnonsense = 1\n')
    wrong = doctor.found("settings.account")
    assert {each["severity"] for each in wrong} == {"problem"}
    details = " ".join(each["detail"] for each in wrong)
    assert "nonsense" in details
    assert "channels.loopback.token is missing" in details
    assert "ai-assistant-cli config set channels.loopback --token …" in {each["command"] for each in wrong}


def test_a_file_that_others_may_read_is_a_problem(doctor: Doctor) -> None:
    """It holds secrets."""
    doctor.configure("channels.wecom", *ACCOUNT)
    file = doctor.home / "config.toml"
    file.chmod(0o644)
    (open_to_all,) = doctor.found("settings.permissions")
    assert (open_to_all["severity"], open_to_all["command"]) == ("problem", f"chmod 600 {file}")
    file.chmod(0o600)
    assert doctor.found("settings.permissions")[0]["severity"] == "ok"


def test_a_variable_that_hides_the_file_is_told(doctor: Doctor) -> None:
    """Only where it says something else, and never with a value."""
    doctor.configure("channels.wecom", *ACCOUNT)
    assert doctor.found("settings.hidden", WECOM_SECRET="theSecret") == []
    (hidden,) = doctor.found("settings.hidden", WECOM_SECRET="another")
    assert (hidden["severity"], hidden["command"]) == ("warning", "unset WECOM_SECRET")
    assert "channels.wecom.secret" in hidden["title"]
    assert "another" not in json.dumps(hidden)
    mounted = doctor.home / "mounted"
    mounted.write_text("theSecret\n")
    assert doctor.found("settings.hidden", WECOM_SECRET_FILE=str(mounted)) == []
    mounted.write_text("another\n")
    (hidden,) = doctor.found("settings.hidden", WECOM_SECRET_FILE=str(mounted))
    assert hidden["command"] == "unset WECOM_SECRET_FILE"


# --- Callbacks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["https://bot.example.com", "https://bot.example.com/", "https://bot.example.com/wx"])
def test_a_url_without_its_path_is_told(doctor: Doctor, url: str) -> None:
    """With the one that belongs into the console."""
    doctor.configure("channels.wecom", *ACCOUNT)
    (wrong,) = doctor.found("url.path", "--url", url)
    assert wrong["severity"] == "problem"
    assert "https://bot.example.com/wecom" in wrong["mend"]


def test_a_further_account_has_a_path_of_its_own(doctor: Doctor) -> None:
    """`/wecom/branch` is right where there is a branch. That the name is unknown is told next."""
    doctor.configure("channels.wecom", *ACCOUNT)
    doctor.configure("channels.wecom", *ACCOUNT, "--account", "branch")
    report = doctor.report("--url", "https://nowhere.invalid/wecom/branch")
    by_check = {each["check"]: each for each in report["findings"]}
    assert by_check["url.path"]["severity"] == "ok"
    assert by_check["url.dns"]["severity"] == "problem"
    assert "nowhere.invalid" in by_check["url.dns"]["mend"]


def test_the_public_url_may_be_configured(doctor: Doctor) -> None:
    """Then each account's path is added to it."""
    doctor.configure("channels.wecom", *ACCOUNT)
    doctor.configure("edge.public_url", "https://nowhere.invalid")
    (path,) = doctor.found("url.path")
    assert path["subject"] == "https://nowhere.invalid/wecom"


# --- Databases --------------------------------------------------------------------------------------------


@pytest.fixture
def database(doctor: Doctor) -> Path:
    """The gateway's, as a service leaves it."""
    path = doctor.home / "data" / "gateway.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE migrations (digest TEXT PRIMARY KEY, applied_at REAL NOT NULL)")
        connection.executemany(
            "INSERT INTO migrations VALUES (?, 0.0)", [(digest,) for digest in digests(MIGRATIONS, shared=False)]
        )
        connection.execute("CREATE TABLE filler (words TEXT)")
        connection.executemany("INSERT INTO filler VALUES (?)", [("x" * 500,)] * 1000)
        connection.commit()
    return path


def of_the_gateway(found: list[dict[str, str]]) -> dict[str, str]:
    (finding,) = [each for each in found if each["subject"] == "gateway"]
    return finding


def test_a_whole_database_is_well(doctor: Doctor, database: Path) -> None:
    """And is not changed by looking."""
    before = database.read_bytes()
    assert of_the_gateway(doctor.found("database.whole"))["severity"] == "ok"
    assert database.read_bytes() == before


def test_a_damaged_database_is_a_problem(doctor: Doctor, database: Path) -> None:
    """With the command that saves what can be read."""
    content = bytearray(database.read_bytes())
    content[40960:81920] = os.urandom(40960)  # of a table that is not looked into otherwise
    database.write_bytes(content)
    damaged = of_the_gateway(doctor.found("database.whole"))
    assert damaged["severity"] == "problem"
    assert f"sqlite3 {database}.damaged .recover" in damaged["command"]


def test_a_file_that_is_no_database_is_a_problem(doctor: Doctor, database: Path) -> None:
    """Whatever it is."""
    database.write_text("not a database, but long enough to be looked at " * 100)
    assert of_the_gateway(doctor.found("database.whole"))["severity"] == "problem"


def test_a_schema_that_lacks_steps_is_told(doctor: Doctor, database: Path) -> None:
    """A start brings it up to date."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM migrations WHERE digest = ?", digests(MIGRATIONS, shared=False)[-1:])
    behind = of_the_gateway(doctor.found("database.schema"))
    assert (behind["severity"], behind["command"]) == ("warning", "ai-assistant-cli up")


def test_a_schema_of_the_future_is_told(doctor: Doctor, database: Path) -> None:
    """After a downgrade."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO migrations VALUES ('of tomorrow', 0.0)")
    ahead = of_the_gateway(doctor.found("database.schema"))
    assert ahead["severity"] == "warning"
    assert "newer" in ahead["title"]


def test_a_postgresql_that_is_away_is_a_problem(doctor: Doctor) -> None:
    """Without the password that its URL holds."""
    doctor.configure("gateway.database", "postgresql://me:thePassword@127.0.0.1:1/messages")
    report = doctor.report()
    away = of_the_gateway([each for each in report["findings"] if each["check"] == "database.reached"])
    assert away["severity"] == "problem"
    assert "config set gateway.database" in away["command"]
    assert "thePassword" not in json.dumps(report)


def test_an_empty_postgresql_lacks_its_schema(doctor: Doctor, postgres_url: str) -> None:
    """A real one is asked for its version and its schema."""
    doctor.configure("gateway.database", postgres_url)
    assert of_the_gateway(doctor.found("database.schema"))["severity"] == "warning"


# --- Certificates -----------------------------------------------------------------------------------------


def test_an_ended_certificate_of_the_edge_is_a_problem(doctor: Doctor) -> None:
    """With the command that gives another one."""
    folder = doctor.home / "own"
    Authority.open(folder).issue(folder / "edge", ["localhost"], tls.uri("edge"), datetime.timedelta(hours=-1))
    certificate, key = folder / "edge" / tls.CERTIFICATE, folder / "edge" / tls.KEY
    doctor.configure("edge", "--certificate", str(certificate), "--private-key", str(key))
    (ended,) = doctor.found("certificate.edge")
    assert ended["severity"] == "problem"
    assert "ended" in ended["title"]
    assert "config set edge --certificate" in ended["command"]


def test_a_self_signed_certificate_is_a_problem_in_production(doctor: Doctor) -> None:
    """Platforms do not accept it."""
    certificate, key = development_certificate(doctor.home / "own")
    doctor.configure("edge", "--certificate", str(certificate), "--private-key", str(key), "--profile", "production")
    found = doctor.found("certificate.edge")
    assert [each["severity"] for each in found] == ["ok", "problem"]
    assert "self-signed" in found[1]["title"]


def test_a_key_that_does_not_fit_is_a_problem(doctor: Doctor) -> None:
    """As Envoy would find it, before Envoy does."""
    certificate, _ = development_certificate(doctor.home / "own")
    _, key = development_certificate(doctor.home / "other")
    doctor.configure("edge", "--certificate", str(certificate), "--private-key", str(key))
    (wrong,) = doctor.found("certificate.edge")
    assert wrong["severity"] == "problem"
    assert "cannot be used" in wrong["title"]


def test_certificates_of_processes_are_looked_at(doctor: Doctor) -> None:
    """Good ones are well; a missing one, one of another process, and another authority are problems."""
    root = doctor.home / "certificates"
    doctor.cli("certificates", "make", "--folder", str(root))
    doctor.configure("tls.certificates", str(root))
    assert {each["severity"] for each in doctor.found("certificate.mesh")} == {"ok"}
    shutil.rmtree(root / "nlp_svc")
    (missing,) = [each for each in doctor.found("certificate.mesh") if each["severity"] != "ok"]
    assert (missing["subject"], missing["command"]) == ("nlp_svc", "ai-assistant-cli certificates make")
    shutil.copytree(root / "gateway", root / "nlp_svc", symlinks=True)
    (stranger,) = [each for each in doctor.found("certificate.mesh") if each["severity"] != "ok"]
    assert "spiffe://ai-assistant/nlp_svc" in stranger["title"]
    assert stranger["command"].endswith("--renew")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_certificate_that_this_command_lacks_is_told(doctor: Doctor) -> None:
    """Without it no service answers the command; what it could not look at says what is missing and what makes it."""
    root = doctor.home / "certificates"
    doctor.cli("certificates", "make", "--folder", str(root))
    doctor.configure("tls.certificates", str(root))
    shutil.rmtree(root / "operator")
    variables = {"AI_ASSISTANT_HOME": str(doctor.home), ports.OFFSET_VARIABLE: str(doctor.offset)}
    with subprocess.Popen(
        [sys.executable, "-m", "crypto_svc"], env=os.environ | variables, stdout=subprocess.DEVNULL
    ) as crypto:
        try:
            while not listens(ports.CRYPTO + ports.ADMIN_OFFSET + doctor.offset):
                assert crypto.poll() is None
                time.sleep(0.05)
            report = doctor.report()
        finally:
            crypto.terminate()
    (keys,) = [each for each in report["findings"] if each["check"] == "keys.age"]
    assert keys["severity"] == "skipped"
    assert "the certificate of operator" in keys["title"]
    assert f"no usable certificates in {root / 'operator'}" in keys["detail"]
    (missing,) = [each for each in report["findings"] if each["subject"] == "operator"]
    assert "Services refuse this command" in missing["why"]
    assert {keys["command"], missing["command"]} == {"ai-assistant-cli certificates make"}
    assert "doctor.unfinished" not in {each["check"] for each in report["findings"]}


def test_certificates_that_end_soon_are_told(doctor: Doctor) -> None:
    """Two weeks before."""
    root = doctor.home / "certificates"
    doctor.cli("certificates", "make", "--folder", str(root), "--days", "10")
    doctor.configure("tls.certificates", str(root))
    found = doctor.found("certificate.mesh")
    soon = {each["subject"] for each in found if each["severity"] == "warning"}
    assert {"gateway", "crypto_svc", "nlp_svc", "reply_svc", "operator"} <= soon


# --- The machine ------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_problem(doctor: Doctor, database: Path) -> None:
    """On a real file system of a few megabytes, where one can be mounted."""
    logs = doctor.home / "logs"
    logs.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(logs)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here, a full disk is NOT checked: run as root")
    try:
        full = next(each for each in doctor.found("machine.disk") if each["subject"] == str(logs))
    finally:
        subprocess.run(["umount", str(logs)], check=True)
    assert full["severity"] == "problem"
    assert "keep_days" in full["mend"]
    assert str(logs) in full["command"]


def test_a_database_that_cannot_be_written_is_a_problem(doctor: Doctor, database: Path) -> None:
    """Asked as the user that runs the mesh."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    database.chmod(stat.S_IRUSR)
    assert of_the_gateway(doctor.found("database.file"))["severity"] == "problem"


def test_the_command_needs_no_locale_and_no_terminal(doctor: Doctor) -> None:
    """As a timer or a container starts it."""
    done = subprocess.run(
        [sys.executable, "-m", "assistant.cli", "doctor"],
        env={"AI_ASSISTANT_HOME": str(doctor.home), "AI_ASSISTANT_PORT_OFFSET": str(doctor.offset), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert b"The mesh is down" in done.stdout
    assert done.stderr == b""


def test_the_page_names_every_check() -> None:
    """docs/doctor.md and its translation list what programs may look for."""
    root = Path(__file__).parents[4]
    named = re.compile(
        r'"((?:mesh|settings|keys|callback|url|platform|messages|engine|database|certificate|machine|doctor)\.[a-z]+)"'
    )
    emitted = {
        name
        for file in (root / "assistant/cli/doctor").glob("*.py")
        for name in named.findall(file.read_text())
        if not name.endswith(".pem")
    }
    assert len(emitted) > 25
    for page in ("doctor.md", "doctor.zh-CN.md"):
        text = (root / "docs" / page).read_text("utf-8")
        assert {name for name in emitted if f"`{name}`" not in text} == set()
