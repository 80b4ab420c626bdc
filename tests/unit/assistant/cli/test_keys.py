"""Keys on several replicas of crypto_svc, each a real process."""

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from assistant import audit, plugin
from assistant.api.crypto.v1.crypto_pb2 import OpenCallbackRequest
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.api.message.v1.message_pb2 import Account
from assistant.cli.keyring import Key, Keyring
from assistant.client import connect
from assistant.errors import InvalidKey, KeyExists, LastKey, ServiceUnavailable, UnknownKey

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Replicas = Callable[..., AbstractContextManager[Keyring]]
ACCOUNT: dict[str, Any] = plugin.load("channels", "loopback", "simulator").credentials()


def new_key() -> dict[str, str]:
    change = plugin.channels()["loopback"].key_change
    assert change
    return dict(change.make())


@pytest.fixture
def replicas(tmp_path: Path, reserve_ports: Callable[[], AbstractContextManager[int]]) -> Replicas:
    """`with replicas("a", "b") as keyring:` replicas with these homes, asked as one."""

    @contextmanager
    def started(*homes: str) -> Iterator[Keyring]:
        with ExitStack() as stack:
            ports = []
            for home in homes:
                offset = stack.enter_context(reserve_ports())
                ports.append(7001 + offset)
                process = stack.enter_context(start(tmp_path / home, offset))
                stack.callback(process.terminate)
            keyring = asked_at(",".join(f"127.0.0.1:{port}" for port in ports))
            until(lambda: answers(keyring))
            yield keyring

    return started


def start(home: Path, offset: int) -> "subprocess.Popen[bytes]":
    environment = {
        "PATH": os.environ["PATH"],
        "AI_ASSISTANT_HOME": str(home),
        "AI_ASSISTANT_PORT_OFFSET": str(offset),
        **{f"LOOPBACK_{name.upper()}": ACCOUNT[name] for name in ("company", "token", "aeskey")},
    }
    return subprocess.Popen([sys.executable, "-m", "crypto_svc"], env=environment, stdout=subprocess.DEVNULL)


def asked_at(target: str) -> Keyring:
    return Keyring(target, None, "loopback", "default")


def each(keyring: Keyring) -> list[Keyring]:
    return [asked_at(address) for address in keyring.target.split(",")]


def answers(keyring: Keyring) -> bool:
    try:
        return bool(keyring.known())
    except ServiceUnavailable:
        return False


def until(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def states(keyring: Keyring) -> dict[str, str]:
    return {key.key_id: key.state for key in keyring.known()}


@pytest.mark.parametrize("homes", [("shared", "shared", "shared"), ("one", "another")], ids=["shared", "of its own"])
def test_a_change_reaches_every_replica(replicas: Replicas, homes: tuple[str, ...]) -> None:
    """Whether they share a keys file or not: when a change returns, all of them have made it."""
    key = new_key()
    with replicas(*homes) as keyring:
        assert keyring.add("spring", key) == len(homes)
        assert states(keyring) == {"spring": "live", "configured": "live"}
        assert keyring.add("spring", key) == len(homes)  # nothing more
        assert keyring.retire("configured") == len(homes)
        assert states(keyring) == {"spring": "live", "configured": "retired"}
        (configured,) = (known for known in keyring.known() if known.configured)
        assert configured.key_id == "configured"
        with pytest.raises(LastKey):
            keyring.retire("spring")
        with pytest.raises(UnknownKey):
            keyring.retire("autumn")
        with pytest.raises(KeyExists):
            keyring.add("spring", new_key())
        with pytest.raises(InvalidKey):
            keyring.add("summer", {"token": "?", "aeskey": ""})
        keyring.add("summer", other := new_key())
        keyring.retire("summer")
        with pytest.raises(KeyExists, match="retired"):
            keyring.add("summer", other)


def test_replicas_that_share_a_file_record_a_change_once(replicas: Replicas, tmp_path: Path) -> None:
    """One change of the file is one record, however many replicas are asked for it."""
    with replicas("shared", "shared") as keyring:
        keyring.add("spring", new_key())
        keyring.retire("configured")
    records = audit.records(audit.chains(tmp_path / "shared" / "audit"))
    assert [record["action"] for record in records] == ["key.configured", "key.add", "key.retire"]


def test_a_replica_that_was_not_asked_learns_of_a_change(replicas: Replicas, tmp_path: Path) -> None:
    """Whoever shares the file takes it up by itself."""
    with replicas("shared", "shared") as keyring:
        one, other = each(keyring)
        one.add("spring", new_key())
        until(lambda: states(other) == {"spring": "live", "configured": "live"})


def test_a_replica_that_is_away_is_named(replicas: Replicas) -> None:
    """A key that not everybody has is not said to be live."""
    with replicas("one") as keyring:
        both = asked_at(f"{keyring.target},127.0.0.1:1")
        with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:1"):
            both.add("spring", new_key())


def test_a_key_that_some_replicas_lack_is_said_to_be_so(replicas: Replicas) -> None:
    """What differs between replicas is seen in the list."""
    with replicas("one", "another") as keyring:
        each(keyring)[1].add("spring", new_key())
        assert states(keyring) == {"configured": "live", "spring": "live on 1 of 2"}


def test_the_age_of_a_key_is_in_days() -> None:
    """A key whose begin nobody knows has no age."""
    unknown = Key("spring", None, None, None, configured=False, live_on=1, replicas=1)
    assert unknown.age_days is None


def test_a_key_that_is_old_is_complained_about(
    cli: Cli, tmp_path: Path, reserve_ports: Callable[[], AbstractContextManager[int]]
) -> None:
    """`keys list` says what is too old and how to change it, with the account's name."""
    with reserve_ports() as offset:
        environment = {
            "AI_ASSISTANT_PORT_OFFSET": str(offset),
            **{f"LOOPBACK_{name.upper()}": ACCOUNT[name] for name in ("company", "token", "aeskey", "secret")},
        }
        begun = time.time() - 91 * 86_400
        file = tmp_path / "data" / "crypto-keys.json"
        with start(tmp_path, offset) as process:
            try:
                keyring = asked_at(f"127.0.0.1:{7001 + offset}")
                until(lambda: answers(keyring))
                assert cli("keys", "list", environment=environment).stderr == ""
                text = file.read_text()
                added = text.partition('"added_at": ')[2].partition("\n")[0].rstrip(",")
                file.write_text(text.replace(added, str(begun)))
                until(lambda: keyring.known()[0].age_days == 91)
                listed = cli("keys", "list", environment=environment)
            finally:
                process.terminate()
    assert "loopback/default: the key configured is 91 days old" in listed.stderr
    assert "keys rotate loopback" in listed.stderr


def test_a_key_from_the_environment_is_left_to_the_operator(
    cli: Cli, tmp_path: Path, reserve_ports: Callable[[], AbstractContextManager[int]]
) -> None:
    """Variables cannot be changed: after the rotation it is said which hold the old key, and what to put there."""
    with reserve_ports() as offset:
        given = {f"LOOPBACK_{name.upper()}": ACCOUNT[name] for name in ("company", "token", "aeskey", "secret")}
        environment = {"AI_ASSISTANT_PORT_OFFSET": str(offset), **given}
        with start(tmp_path, offset) as process:
            try:
                until(lambda: answers(asked_at(f"127.0.0.1:{7001 + offset}")))
                begun = cli("keys", "rotate", "loopback", "--timeout", "0", environment=environment)
                assert begun.returncode == 1
                kept = json.loads((tmp_path / "rotations" / "loopback.default.json").read_text())
                asyncio.run(send_callback(f"127.0.0.1:{7001 + offset}", kept["material"]))
                asked = cli("keys", "rotate", "loopback", environment=environment)
                done = cli("keys", "rotate", "loopback", "--retire-after", "0", "--json", environment=environment)
            finally:
                process.terminate()
    assert "--retire-after" in asked.stderr  # nobody is there to be asked
    assert json.loads(done.stdout)["retired"] == ["configured"]
    assert json.loads(done.stdout)["configuration"] == {
        "changed": False,
        "where": ["LOOPBACK_AESKEY", "LOOPBACK_TOKEN"],
    }
    assert "TO DO: LOOPBACK_AESKEY and LOOPBACK_TOKEN still hold the old key" in done.stderr
    assert kept["material"]["token"] in done.stderr


async def send_callback(target: str, key: dict[str, str]) -> None:
    """What the platform does with a key that was saved there."""
    callback, _ = plugin.load("channels", "loopback", "simulator")({**ACCOUNT, **key}).callback("ping", "alice")
    request = OpenCallbackRequest(
        account=Account(channel="loopback"),
        method=callback.method,
        query=callback.query,
        headers=dict(callback.headers),
        body=callback.body,
    )
    async with connect(target) as channel:
        await CryptoServiceStub(channel).OpenCallback(request, timeout=5)


def test_one_rotation_runs_at_a_time(cli: Cli, tmp_path: Path) -> None:
    """Two operators do not get in each other's way."""
    (tmp_path / "rotations").mkdir()
    environment = {f"LOOPBACK_{name.upper()}": ACCOUNT[name] for name in ("company", "token", "aeskey", "secret")}
    with (tmp_path / "rotations" / "loopback.default.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = cli("keys", "rotate", "loopback", environment=environment)
    assert "runs here now" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("list", "nobody"), 1, "no channel 'nobody'"),
        (("list", "--account", "branch"), 2, "of a channel"),
        (("list", "wecom", "--account", "branch"), 1, "wecom/branch is not configured"),
        (("add", "wecom"), 2, "--token --aeskey"),
        (("add", "wecom", "--token", "x"), 2, "give --aeskey too"),
        (("add", "nobody"), 2, "nobody"),
        (("rotate", "wecom", "--retire-after", "soon"), 2, "10m"),
        (("rotate", "wecom", "--account", "branch"), 1, "wecom/branch is not configured"),
        (("retire", "wecom"), 2, "KEY_ID"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_said(cli: Cli, arguments: tuple[str, ...], code: int, said: str) -> None:
    """A wrong use and a failure each name what is wrong."""
    done = cli("keys", *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr
