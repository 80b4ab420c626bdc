"""`config`: setting, showing and checking, through the real command."""

import json
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

CORPID, TOKEN, SECRET = "ww0123456789abcdef", "aToken", "theSecret"
AESKEY = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
ACCOUNT = ("--corpid", CORPID, "--token", TOKEN, "--secret", SECRET, "--aeskey", AESKEY, "--agentid", "1000002")


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[None]:
    """A supervisor runs here, with a program that does nothing."""
    program = {"name": "idle", "command": ["/bin/sleep", "60"], "environment": {}, "revision": "", "stage": 0}
    for folder in ("run", "logs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run" / "plan.json").write_text(json.dumps([program]))
    with subprocess.Popen([sys.executable, "-m", "assistant.cli.supervisor", str(tmp_path / "run")]) as supervisor:
        while not (tmp_path / "run" / "supervisor.sock").exists():
            assert supervisor.poll() is None
            time.sleep(0.01)
        yield
        supervisor.terminate()


def test_an_account_is_written_for_us_alone(cli: Cli, tmp_path: Path) -> None:
    """What the console shows goes into a file that nobody else may read, numbers as numbers."""
    done = cli("config", "set", "channels.wecom", *ACCOUNT)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "config.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert tomllib.loads(file.read_text())["channels"]["wecom"] == {
        "corpid": CORPID,
        "token": TOKEN,
        "secret": SECRET,
        "aeskey": AESKEY,
        "agentid": 1000002,
    }
    assert SECRET not in done.stdout + done.stderr


def test_a_further_account_stands_beside_the_first(cli: Cli, tmp_path: Path) -> None:
    """`--account` names another account of the same channel."""
    cli("config", "set", "channels.wecom", *ACCOUNT)
    done = cli("config", "set", "channels.wecom", *ACCOUNT, "--account", "branch", "--agentid", "1000003")
    assert done.returncode == 0, done.stderr
    table = tomllib.loads((tmp_path / "config.toml").read_text())["channels"]["wecom"]
    assert (table["agentid"], table["accounts"]["branch"]["agentid"]) == (1000002, 1000003)


def test_settings_that_belong_together_are_set_together(cli: Cli, tmp_path: Path) -> None:
    """A section takes several settings at once, where one alone would not fit."""
    done = cli("config", "set", "edge", "--certificate", "/a.pem", "--private-key", "/b.pem")
    assert done.returncode == 0, done.stderr
    edge = tomllib.loads((tmp_path / "config.toml").read_text())["edge"]
    assert edge == {"certificate": "/a.pem", "private_key": "/b.pem"}


def test_a_secret_can_be_typed_unseen(cli: Cli, tmp_path: Path) -> None:
    """An option of a secret without a value asks for it, so that it stays out of the shell's history."""
    arguments = ("--corpid", CORPID, "--token", TOKEN, "--aeskey", AESKEY, "--secret")
    done = cli("config", "set", "channels.wecom", *arguments, typed=f"{SECRET}\n")
    assert done.returncode == 0, done.stderr
    assert tomllib.loads((tmp_path / "config.toml").read_text())["channels"]["wecom"]["secret"] == SECRET


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("channels.wecom", *ACCOUNT, "--aeskey", "short"), "43"),
        (("channels.wecom", "--corpid", CORPID), "channels.wecom.secret is missing"),
        (("gateway.history_turns", "many"), "history_turns"),
        (("nlp.provider", "oracle"), "Installed: embedded"),
        (("gateway.listen", "7000"), "host:port"),
        (("edge.certificate", "/x.pem"), "belong together"),
    ],
)
def test_what_does_not_fit_is_not_written(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """A wrong value is refused with its reason, and the file stays as it was."""
    done = cli("config", "set", *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert SECRET not in done.stderr
    assert AESKEY not in done.stderr
    assert not (tmp_path / "config.toml").exists()


def test_comments_and_order_are_kept(cli: Cli, tmp_path: Path) -> None:
    """The file belongs to its owner: a change touches only what it says."""
    file = tmp_path / "config.toml"
    file.write_text('# ours\n[gateway]\nhistory_turns = 3  # short\n\n[nlp]\nprovider = "embedded"\n')
    cli("config", "set", "gateway.keep_days", "5")
    assert file.read_text().startswith("# ours\n[gateway]\nhistory_turns = 3  # short\nkeep_days = 5\n")


def test_a_setting_is_taken_out_and_its_default_told(cli: Cli, tmp_path: Path) -> None:
    """What was set can be unset: the rest of the file stays as its owner wrote it."""
    file = tmp_path / "config.toml"
    file.write_text("# ours\n[gateway]\n# for now\nhistory_turns = 3  # short\nkeep_days = 5\n\n[nlp]\n# none\n")
    done = cli("config", "unset", "gateway.history_turns")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Unset gateway.history_turns in {file}.\nIt is 10 by default.\n"
    assert file.read_text() == "# ours\n[gateway]\n# for now\nkeep_days = 5\n\n[nlp]\n# none\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert cli("config", "get", "gateway.history_turns").stdout == "10\n"


def test_a_table_goes_with_its_last_setting(cli: Cli, tmp_path: Path) -> None:
    """So do those around it, but no comment: it may be about what follows."""
    file = tmp_path / "config.toml"
    cli("config", "set", "channels.wecom", "--allow-departments", "2")
    cli("config", "unset", "channels.wecom.allow_departments")
    assert file.read_text() == ""
    file.write_text('[gateway]\nkeep_days = 5\n\n# The engine\n[nlp]\nprovider = "embedded"\n')
    for name in ("gateway.keep_days", "nlp.provider"):
        cli("config", "unset", name)
    assert file.read_text() == "[gateway]\n\n# The engine\n"
    assert cli("config", "validate").returncode == 0


def test_a_setting_that_must_be_set_is_told_with_its_command(cli: Cli, tmp_path: Path) -> None:
    """Taking it out is no mistake: another value may follow, or the rest of the account go as well."""
    cli("config", "set", "channels.wecom", *ACCOUNT)
    cli("config", "set", "channels.wecom", *ACCOUNT, "--account", "branch")
    done = cli("config", "unset", "channels.wecom.accounts.branch.token")
    assert done.returncode == 0, done.stderr
    assert "no default. Set it with: ai-assistant-cli config set channels.wecom --account branch --token" in done.stdout
    for name in ("corpid", "secret", "aeskey", "agentid"):
        done = cli("config", "unset", f"channels.wecom.accounts.branch.{name}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "accounts" not in (tmp_path / "config.toml").read_text()
    assert cli("config", "validate").returncode == 0


def test_what_is_not_set_can_be_unset(cli: Cli, tmp_path: Path) -> None:
    """Then nothing is written; a variable that sets it is named."""
    file = tmp_path / "config.toml"
    done = cli("config", "unset", "gateway.locale", environment={"AI_ASSISTANT_GATEWAY_LOCALE": "en"})
    assert (done.returncode, done.stderr) == (0, "")
    said = "gateway.locale is not set in {}: nothing was changed.\nIt is set by AI_ASSISTANT_GATEWAY_LOCALE.\n"
    assert done.stdout == said.format(file)
    assert not file.exists()
    assert "no value by default" in cli("config", "unset", "edge.certificate").stdout


def test_a_wrong_value_can_be_taken_out(cli: Cli, tmp_path: Path) -> None:
    """A file that does not fit is mended so; what does not fit without the setting is told."""
    file = tmp_path / "config.toml"
    file.write_text('[gateway]\nhistory_turns = "many"\n[edge]\ncertificate = "/a.pem"\nprivate_key = "/b.pem"\n')
    done = cli("config", "unset", "gateway.history_turns")
    assert (done.returncode, done.stderr) == (0, "")
    done = cli("config", "unset", "edge.certificate")
    assert done.returncode == 0
    assert "belong together" in done.stderr
    assert tomllib.loads(file.read_text()) == {"edge": {"private_key": "/b.pem"}}


@pytest.mark.parametrize("name", ["gateway.lokale", "gatway.locale", "locale"])
def test_what_is_no_setting_is_refused_alike(cli: Cli, name: str) -> None:
    """`get`, `set` and `unset` say the same of a name that is none."""
    for arguments in (("get", name), ("set", name, "x"), ("unset", name)):
        done = cli("config", *arguments)
        assert done.returncode == 2
        assert f"{name} is not a setting: `ai-assistant-cli config list` names all" in done.stderr
    assert "channels.wecom.tokn is not a setting" in cli("config", "unset", "channels.wecom.tokn").stderr


def test_a_mesh_that_runs_is_told_of_with_the_change(cli: Cli, supervised: None) -> None:
    """It has the old values until the next `up`, which is said of what was set and of what was unset."""
    for arguments in (("set", "gateway.keep_days", "5"), ("unset", "gateway.keep_days")):
        assert "The mesh runs with the old values until: ai-assistant-cli up" in cli("config", *arguments).stdout
    assert "old values" not in cli("config", "unset", "gateway.keep_days").stdout


def test_values_are_told_with_their_origin_and_without_secrets(cli: Cli, tmp_path: Path) -> None:
    """`list` and `get` tell the value in force and where it comes from; secrets are masked."""
    cli("config", "set", "channels.wecom", *ACCOUNT)
    environment = {"WECOM_AGENTID": "7", "AI_ASSISTANT_GATEWAY_LOCALE": "en"}
    listed = cli("config", "list", "--json", environment=environment)
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert (rows["channels.wecom.agentid"]["value"], rows["channels.wecom.agentid"]["origin"]) == (7, "WECOM_AGENTID")
    assert rows["channels.wecom.secret"]["value"] == "******"
    assert rows["channels.wecom.secret"]["origin"] == str(tmp_path / "config.toml")
    assert rows["gateway.locale"]["value"] == "en"
    assert rows["gateway.history_turns"]["origin"] == "default"
    assert cli("config", "get", "channels.wecom.token").stdout == "******\n"
    assert cli("config", "get", "gateway.locale", environment=environment).stdout == "en\n"
    assert not {SECRET, TOKEN, AESKEY} & set(listed.stdout.split('"'))


def test_a_setting_that_is_not_there_is_said_so(cli: Cli) -> None:
    """`get` tells an unknown name from one that has no value."""
    assert "is not a setting" in cli("config", "get", "gateway.lokale").stderr
    assert "is not set" in cli("config", "get", "channels.wecom.token").stderr


def test_validate_names_everything_that_is_wrong(cli: Cli, tmp_path: Path) -> None:
    """All problems are told at once, each with what to do."""
    (tmp_path / "config.toml").write_text(
        '[gatway]\nx = 1\n[gateway]\nhistory_turns = -1\nlocal = "en"\n[channels.wecom]\ncorpid = "x"\nagent = 1\n'
        "[channels.wechat]\na = 1\n[skills.clok]\na = 1\n"
    )
    done = cli("config", "validate")
    assert done.returncode == 1
    for said in (
        "gatway",
        "did you mean 'gateway'",
        "history_turns",
        "locale",
        "corpid",
        "wecom.token is missing",
        "wecom.agent",
    ):
        assert said in done.stderr
    assert "no channel 'wechat' is installed" in done.stderr
    assert "skills.clok" in done.stderr
    assert json.loads(cli("config", "validate", "--json").stdout)["problems"]


def test_a_fresh_machine_is_valid(cli: Cli) -> None:
    """Without any file all defaults fit together."""
    assert cli("config", "validate").returncode == 0


def test_a_file_that_is_no_toml_is_not_overwritten(cli: Cli, tmp_path: Path) -> None:
    """A slip of the pen in the file costs a message, not the file."""
    file = tmp_path / "config.toml"
    file.write_text("[gateway\n")
    done = cli("config", "set", "gateway.keep_days", "5")
    assert done.returncode == 1
    assert str(file) in done.stderr
    assert file.read_text() == "[gateway\n"


def test_help_names_every_option_of_a_channel(cli: Cli) -> None:
    """The options are made from the plugin, with what they mean."""
    shown = cli("config", "set", "channels.wecom", "--help").stdout
    for option in ("--corpid", "--secret", "--token", "--aeskey", "--agentid", "--account"):
        assert option in shown
    assert "channels.wecom" in cli("config", "set", "--help").stdout


def test_a_policy_can_be_tried_before_there_is_an_account(cli: Cli) -> None:
    """It is checked, shown, and that of the simulated account; a wrong one changes nothing."""
    done = cli("config", "set", "channels.wecom", "--allow-departments", "2")
    assert done.returncode == 0, done.stderr
    wrong = cli("config", "set", "channels.wecom", "--callback-sources", "platfrom")
    assert wrong.returncode == 1
    assert "'platfrom'" in wrong.stderr
    assert cli("config", "validate").returncode == 0
    assert cli("config", "get", "channels.wecom.allow_departments").stdout == "2\n"
    shown = {row["name"] for row in json.loads(cli("config", "list", "--json").stdout)}
    assert "channels.wecom.allow_departments" in shown
    assert "channels.wecom.corpid" not in shown
    account = cli("container", "account", environment={"AI_ASSISTANT_SIMULATOR_LISTEN": "simulator:7050"})
    assert tomllib.loads(account.stdout)["channels"]["wecom"]["allow_departments"] == "2"


def test_a_policy_is_checked_with_its_account(cli: Cli) -> None:
    """A wrong one is named beside whatever else is wrong."""
    cli("config", "set", "channels.wecom", *ACCOUNT)
    environment = {"WECOM_ALLOW_DEPARTMENTS": "研发部", "WECOM_AGENTID": "none"}
    wrong = cli("config", "validate", environment=environment)
    assert wrong.returncode == 1
    assert "allow_departments has '研发部'" in wrong.stderr
    assert "WECOM_AGENTID is wrong" in wrong.stderr
