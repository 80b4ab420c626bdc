"""The certificates command, as an operator uses it."""

import datetime
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assistant import tls
from assistant.cli.authority import Authority, write_together
from assistant.cli.certificates import hosts

Cli = Callable[..., Any]


def made(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "certificates" / name / tls.CERTIFICATE).read_bytes() for name in hosts()}


def test_certificates_are_made_once(cli: Cli, tmp_path: Path) -> None:
    """What is there is kept, unless everything is to be renewed; the authority is always kept."""
    assert cli("certificates", "make").returncode == 0
    first, authority = made(tmp_path), (tmp_path / "certificates" / "ca" / tls.CERTIFICATE).read_bytes()
    assert cli("certificates", "make").returncode == 0
    assert made(tmp_path) == first
    assert cli("certificates", "make", "--renew").returncode == 0
    assert not made(tmp_path).items() & first.items()
    assert (tmp_path / "certificates" / "ca" / tls.CERTIFICATE).read_bytes() == authority


def test_every_certificate_fits_its_key_and_its_authority(cli: Cli, tmp_path: Path) -> None:
    """A folder is all that a process needs, and nobody else may read the key in it."""
    cli("certificates", "make")
    for name in hosts():
        identity = tls.Identity(tmp_path / "certificates" / name)
        ssl.create_default_context(cadata=identity.current().authorities.decode())
        assert (tmp_path / "certificates" / name / tls.KEY).stat().st_mode & 0o077 == 0


def test_what_ends_soon_is_renewed(cli: Cli, tmp_path: Path) -> None:
    """In the last third of its time a certificate is replaced, and so is one of another authority."""
    cli("certificates", "make")
    root, before = tmp_path / "certificates", made(tmp_path)
    Authority.open(root / "ca").issue(root / "gateway", [], tls.uri("gateway"), datetime.timedelta(hours=1))
    Authority.open(tmp_path / "other").issue(root / "nlp_svc", [], tls.uri("nlp_svc"), datetime.timedelta(days=90))
    old = made(tmp_path)
    said = cli("certificates", "make").stdout
    assert {name for name, certificate in made(tmp_path).items() if certificate != old[name]} == {"gateway", "nlp_svc"}
    assert "crypto_svc   kept" in said
    assert made(tmp_path)["crypto_svc"] == before["crypto_svc"]


def test_certificates_of_others_are_left_alone(cli: Cli, tmp_path: Path) -> None:
    """What somebody else put into a folder is not overwritten."""
    folder = tmp_path / "certificates" / "gateway"
    folder.mkdir(parents=True)
    (folder / tls.CERTIFICATE).write_text("theirs")
    assert "left as it is" in cli("certificates", "make", "--renew").stdout
    assert (folder / tls.CERTIFICATE).read_text() == "theirs"


def test_a_public_name_is_in_the_certificate_of_the_edge(cli: Cli) -> None:
    """`--host` adds a name by which the world knows Envoy."""
    cli("certificates", "make", "--host", "bot.example.com")
    rows = {row["name"]: row["hosts"].split() for row in json.loads(cli("certificates", "list", "--json").stdout)}
    assert "bot.example.com" in rows["edge"]
    assert "bot.example.com" not in rows["crypto_svc"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("list",), "certificates make"), (("make", "--days", "3650"), "fewer --days")],
    ids=["none there", "longer than the authority"],
)
def test_what_cannot_be_done_is_said(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """A failure names its mending."""
    if arguments[0] == "make":
        cli("certificates", "make")
    done = cli("certificates", *arguments)
    assert done.returncode == 1
    assert said in done.stderr


def test_a_certificate_that_ends_soon_is_complained_about(cli: Cli, tmp_path: Path) -> None:
    """`list` warns two weeks ahead, says what ended, and what to do: our own is renewed, another's replaced."""
    cli("certificates", "make")
    root = tmp_path / "certificates"
    assert cli("certificates", "list").stderr == ""
    for name, days in (("gateway", 13), ("nlp_svc", -1)):
        Authority.open(root / "ca").issue(root / name, [], tls.uri(name), datetime.timedelta(days=days, hours=12))
    for name in (tls.CERTIFICATE, tls.KEY, tls.AUTHORITIES):  # as somebody else would put it there
        text = (root / "gateway" / name).read_bytes()
        (root / "edge" / name).unlink()
        (root / "edge" / name).write_bytes(text)
    (root / "edge" / "..data").unlink()
    said = cli("certificates", "list").stderr
    assert "The certificate of gateway ends in 13 days. Renew it: ai-assistant-cli certificates make" in said
    assert "The certificate of nlp_svc ended at" in said
    assert f"Replace it in {root / 'edge'}" in said
    assert len(said.splitlines()) == 3


def test_files_are_exchanged_together(tmp_path: Path) -> None:
    """Readers find either all old files or all new ones, and no old one is left lying about."""
    write_together(tmp_path, {"a": "1", "b": "1"})
    write_together(tmp_path, {"a": "2", "b": "2"})
    assert [(tmp_path / name).read_text() for name in "ab"] == ["2", "2"]
    assert len([path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()]) == 1
