"""Commands when no mesh runs: what they print, and how they fail."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
WORDS = (
    "up",
    "down",
    "status",
    "logs",
    "health",
    "doctor",
    "config",
    "test",
    "simulate",
    "inbox",
    "deliveries",
    "keys",
    "audit",
    "plugins",
)


@pytest.fixture
def nowhere(cli: Cli, reserve_ports: Callable[[], AbstractContextManager[int]]) -> "Iterator[Cli]":
    """The command line on ports where nobody listens."""
    with reserve_ports() as offset:
        yield lambda *arguments: cli(*arguments, environment={"AI_ASSISTANT_PORT_OFFSET": str(offset)})


def test_help_lists_all_commands(cli: Cli) -> None:
    """Every command is listed with a sentence, and explains itself."""
    shown = cli("--help").stdout
    assert all(f"\n  {word} " in shown for word in WORDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("status",), "no mesh runs here"),
        (("health",), "Is it up?"),
        (("test", "wecom"), "Is it up?"),
        (("inbox", "list"), "Is it up?"),
        (("deliveries", "list"), "Error: "),
        (("test", "wecom", "--account", "branch"), "channels.wecom --account branch"),
        (("simulate", "nobody"), "no channel 'nobody'"),
        (("logs", "nobody"), "no log of nobody"),
    ],
)
def test_a_failure_has_a_reason_and_exit_code_1(nowhere: Cli, arguments: tuple[str, ...], said: str) -> None:
    """What cannot be done is said in a sentence that helps, not in a stack."""
    done = nowhere(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("dance",), ("test", "nobody"), ("config", "set", "gateway.nothing", "1"), ("up", "--x")]
)
def test_a_wrong_use_is_exit_code_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    """A program can tell a wrong use from a failure."""
    assert cli(*arguments).returncode == 2


def test_down_without_a_mesh_is_no_failure(cli: Cli) -> None:
    """What is not running is down."""
    done = cli("down")
    assert (done.returncode, done.stdout) == (0, "Nothing was running.\n")


def test_plugins_are_listed(cli: Cli) -> None:
    """Everything installed is named, with its kind."""
    rows = json.loads(cli("plugins", "list", "--json").stdout)
    assert {("channels", "wecom"), ("engines", "embedded"), ("skills", "clock")} <= {
        (row["kind"], row["name"]) for row in rows
    }


def test_a_service_that_is_not_there_keeps_no_contract(nowhere: Cli) -> None:
    """`test nlp` names every check that failed, and fails itself."""
    done = nowhere("test", "nlp", "--target", "127.0.0.1:1", "--json")
    assert done.returncode == 1
    assert any(result["outcome"] == "failed" for result in json.loads(done.stdout))


def test_shells_can_complete(cli: Cli) -> None:
    """The completion that the README names knows the commands."""
    done = cli("", environment={"_AI_ASSISTANT_CLI_COMPLETE": "bash_complete", "COMP_WORDS": "x de", "COMP_CWORD": "1"})
    assert "deliveries" in done.stdout
