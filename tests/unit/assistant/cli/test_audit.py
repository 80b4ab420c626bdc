"""`audit`, and what the command line itself records."""

import getpass
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assistant.audit import Audit

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def records(cli: Cli) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli("audit", "export").stdout.splitlines()]


def test_a_change_of_the_configuration_is_recorded(cli: Cli, tmp_path: Path) -> None:
    """Who changed which settings is known; values are not, since any of them may hold a secret."""
    cli("config", "set", "gateway.keep_days", "5")
    url = "postgresql://gateway:theDatabasePassword@db/gateway"
    cli("config", "set", "gateway.database", url, environment={"AI_ASSISTANT_ACTOR": "wang"})
    cli("--as", "zhao", "config", "set", "gateway.keep_days", "many")
    for _ in range(2):
        cli("config", "unset", "gateway.keep_days")
    user = getpass.getuser()
    told = [(record["actor"], record["action"], record["facts"]["settings"]) for record in records(cli)]
    assert told == [
        (user, "config.set", ["gateway.keep_days"]),
        (f"{user} as wang", "config.set", ["gateway.database"]),
        (user, "config.unset", ["gateway.keep_days"]),
    ]
    assert "theDatabasePassword" not in (tmp_path / "audit" / "cli.jsonl").read_text()


def test_the_configuration_is_not_changed_without_a_record(cli: Cli, tmp_path: Path) -> None:
    """Where the log cannot be written, or has been tampered with, the file stays as it is."""
    (tmp_path / "audit").write_text("in the way")
    refused = cli("config", "set", "gateway.keep_days", "5")
    assert refused.returncode == 1
    assert "audit log" in refused.stderr
    assert not (tmp_path / "config.toml").exists()
    (tmp_path / "audit").unlink()
    cli("config", "set", "gateway.keep_days", "5")
    cli("config", "set", "gateway.keep_days", "6")
    chain = tmp_path / "audit" / "cli.jsonl"
    chain.write_text(chain.read_text().splitlines()[0] + "\n")
    refused = cli("config", "set", "gateway.keep_days", "7")
    assert refused.returncode == 1
    assert "audit verify" in refused.stderr
    assert "keep_days = 6" in (tmp_path / "config.toml").read_text()


def test_a_change_that_could_not_be_written_is_recorded_as_such(cli: Cli, tmp_path: Path) -> None:
    """The record of an attempt is followed by that of its failure."""
    (tmp_path / "file").write_text("in the way")
    environment = {"AI_ASSISTANT_CONFIG": str(tmp_path / "file" / "config.toml")}
    refused = cli("config", "set", "gateway.keep_days", "5", environment=environment)
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    told = [(record["action"], record["facts"].get("reason")) for record in records(cli)]
    assert told == [("config.set", None), ("config.set.failed", "STORAGE_UNAVAILABLE")]


def test_certificates_are_recorded_when_they_are_made(cli: Cli) -> None:
    """Which were made, and the authority that signs them; nothing if nothing was made."""
    for _ in range(2):
        cli("certificates", "make")
    cli("certificates", "make", "--renew", "--days", "30")
    told = [(record["action"], len(record["facts"].get("names", []))) for record in records(cli)]
    assert told == [("certificates.make_authority", 0), ("certificates.make", 7), ("certificates.make", 7)]


def test_the_last_records_are_shown(cli: Cli) -> None:
    """`tail` knows how many and which."""
    assert cli("audit", "tail").stdout == "No records.\n"
    for days in range(5):
        cli("config", "set", "gateway.keep_days", str(days + 1))
    cli("certificates", "make")
    assert len(json.loads(cli("audit", "tail", "--limit", "3", "--json").stdout)) == 3
    shown = cli("audit", "tail", "--action", "config").stdout
    assert shown.count("config.set") == 5
    assert "certificates" not in shown


def test_a_copy_can_be_verified(cli: Cli, tmp_path: Path) -> None:
    """Chains that were brought from elsewhere are as good as our own."""
    folder = tmp_path / "brought"
    for chain in ("nlp_svc", "crypto_svc"):
        Audit(chain, folder).append("test", "nobody")
    shown = cli("audit", "verify", "--folder", str(folder)).stdout
    assert shown.startswith("crypto_svc: 1 record is whole. Head: crypto_svc:1:")
    assert cli("audit", "verify", "--folder", str(folder), str(folder / "nlp_svc.jsonl")).returncode == 2
    assert cli("audit", "verify", str(folder / "nlp_svc.jsonl")).stdout.startswith("nlp_svc: 1 record is whole")
    assert len(cli("audit", "export", "--folder", str(folder)).stdout.splitlines()) == 2


def test_tampering_is_said_with_exit_code_1(cli: Cli, tmp_path: Path) -> None:
    """A person reads where it is, a program that it is so."""
    for days in range(3):
        cli("config", "set", "gateway.keep_days", str(days + 1))
    chain = tmp_path / "audit" / "cli.jsonl"
    chain.write_text(chain.read_text().replace("keep_days", "keep_ways", 2))
    refused = cli("audit", "verify")
    assert refused.returncode == 1
    assert f"line 1 of {chain} was changed" in refused.stderr
    (told,) = json.loads(cli("audit", "verify", "--json").stdout)
    assert (told["chain"], told["records"], len(told["problems"])) == ("cli", 0, 1)


@pytest.mark.parametrize("head", ["cli", "cli:1:abc"])
def test_what_is_no_head_is_said(cli: Cli, head: str) -> None:
    """A head that was copied badly is not ignored."""
    refused = cli("audit", "verify", "--head", head)
    assert refused.returncode == 1
    assert "is no head" in refused.stderr
