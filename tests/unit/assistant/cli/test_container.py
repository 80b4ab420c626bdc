"""What containers of one process each are given, without an engine."""

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_simulated_account_is_made_once(cli: Cli) -> None:
    """It is complete, knows where its platform is, and does not change."""
    printed = [
        cli("container", "account", environment={"AI_ASSISTANT_SIMULATOR_LISTEN": "simulator:7050"}).stdout
        for _ in range(2)
    ]
    assert printed[0] == printed[1]
    account = tomllib.loads(printed[0])["channels"]["wecom"]
    assert account["api_base"] == "http://simulator:7050"
    assert {"corpid", "secret", "token", "aeskey", "agentid"} <= account.keys()


def test_nothing_is_simulated_beside_an_account_of_ones_own(cli: Cli) -> None:
    """The id of a company is enough to know that there is one: no secret is asked for."""
    done = cli("container", "account", environment={"WECOM_CORPID": "ww0123456789abcdef"})
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("content", "expected"), [("en\n", "en"), ("", "zh-TW")])
def test_an_empty_file_counts_as_none(cli: Cli, tmp_path: Path, content: str, expected: str) -> None:
    """A file that a variable names wins over the configuration; an empty one leaves it as it is."""
    (tmp_path / "locale").write_text(content)
    (tmp_path / "config.toml").write_text('[gateway]\nlocale = "zh-TW"\n')
    done = cli(
        "config", "get", "gateway.locale", environment={"AI_ASSISTANT_GATEWAY_LOCALE_FILE": str(tmp_path / "locale")}
    )
    assert done.stdout.strip() == expected


def test_the_container_of_envoy_becomes_envoy(cli: Cli, tmp_path: Path) -> None:
    """It writes Envoy's configuration, with the gateway by its name, and gives way to Envoy."""
    environment = {
        "AI_ASSISTANT_GATEWAY_LISTEN": "gateway.invalid:7000",
        "AI_ASSISTANT_GATEWAY_ADMIN": "gateway.invalid:7100",
        "AI_ASSISTANT_EDGE_HTTP": "192.0.2.1:1",  # nobody can listen there: Envoy ends at once
    }
    done = cli("container", "envoy", environment=environment)
    assert "cannot bind '192.0.2.1:1'" in done.stderr
    assert "gateway.invalid" in (tmp_path / "run" / "envoy.yaml").read_text()
    assert (tmp_path / "edge" / "key.pem").stat().st_mode & 0o077 == 0


def test_envoy_is_prepared_without_becoming_it(cli: Cli, tmp_path: Path) -> None:
    """The command that is printed is that of an Envoy whose configuration is there."""
    program, flag, file, *_ = cli("container", "envoy", "--prepare").stdout.split()
    assert Path(program).name == "envoy"
    assert (flag, file) == ("-c", str(tmp_path / "run" / "envoy.yaml"))
    assert Path(file).exists()


@pytest.mark.parametrize(("content", "said"), [("theirs", "no certificate and its key"), (None, "cannot be read")])
def test_a_certificate_that_cannot_be_shown_is_refused(
    cli: Cli, tmp_path: Path, content: str | None, said: str
) -> None:
    """Envoy itself would start without HTTPS and say nothing."""
    pair = {"CERTIFICATE": tmp_path / "tls.crt", "PRIVATE_KEY": tmp_path / "tls.key"}
    for file in pair.values():
        if content is not None:
            file.write_text(content)
    done = cli(
        *("container", "envoy", "--prepare"),
        environment={f"AI_ASSISTANT_EDGE_{name}": str(file) for name, file in pair.items()},
    )
    assert done.returncode == 1
    assert said in done.stderr
