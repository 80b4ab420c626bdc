"""Keys are changed while members write, as an operator changes them, and what that leaves behind in the audit log."""

import json
import threading
import tomllib
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from assistant import plugin

WRITERS = 4


def call(url: str, method: str = "GET", body: Any = None) -> Any:
    """JSON in, JSON out."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def new_key() -> dict[str, str]:
    change = plugin.channels()["wecom"].key_change
    assert change
    return dict(change.make())


@contextmanager
def members_write(mesh: Any) -> Iterator[list[dict[str, Any]]]:
    """Members who write one message after the other. What came of each is in the list."""
    over, written, numbers = threading.Event(), [], count()

    def write(member: str) -> None:
        url = f"{mesh.simulator}/simulator/members/{member}/messages?wait=1"
        while not over.is_set():
            written.append(call(url, "POST", {"text": "ping", "message_id": str(10**17 + next(numbers))}))

    with ThreadPoolExecutor(WRITERS) as pool:
        writing = [pool.submit(write, f"member{number}") for number in range(WRITERS)]
        try:
            mesh.until(lambda: len(written) > 20)
            yield written
        finally:
            over.set()
    for each in writing:
        each.result()


def lines(mesh: Any, name: str) -> list[dict[str, Any]]:
    """What a process wrote to its log."""
    return [json.loads(line) for line in (mesh.home / "logs" / f"{name}.log").read_text("utf-8").splitlines()]


def keys(mesh: Any) -> dict[str, dict[str, Any]]:
    return {row["key_id"]: row for row in json.loads(mesh.cli("keys", "list", "wecom", "--json").stdout)}


@dataclass
class Rotated:
    """A mesh in which a key was changed while members wrote."""

    mesh: Any
    written: list[dict[str, Any]]
    """What came of each message."""
    books: dict[str, int]
    """What the platform counted."""
    done: dict[str, Any]
    """What `keys rotate` said."""
    warned: str
    """What `keys list` warned of before the mesh was brought in line with the new configuration."""


@pytest.fixture(scope="module")
def rotated(make_mesh: Any) -> Iterator[Rotated]:
    """While members write: a key is added, the console changes to it, the old one is retired, crypto_svc dies."""
    with make_mesh() as mesh:
        mesh.cli("up")
        mesh.until(mesh.is_healthy)
        key = new_key()
        given = [part for name, value in key.items() for part in (f"--{name}", value)]
        with members_write(mesh) as written:
            begun = mesh.cli("keys", "rotate", "wecom", *given, "--key-id", "spring", "--timeout", "1", check=False)
            assert begun.returncode == 1
            assert keys(mesh)["spring"]["state"] == "live"
            some_more(mesh, written)
            assert call(f"{mesh.simulator}/simulator/key", "PUT", key)["passed"]
            some_more(mesh, written)
            done = json.loads(mesh.cli("keys", "rotate", "wecom", "--retire-after", "2s", "--json").stdout)
            some_more(mesh, written)
            mesh.kill("crypto_svc")  # it is started again with the old configuration
            some_more(mesh, written)
        books = call(f"{mesh.simulator}/simulator/books")
        warned = mesh.cli("keys", "list").stderr
        mesh.cli("up")
        mesh.until(mesh.is_healthy)
        yield Rotated(mesh, written, books, done, warned)


@pytest.fixture
def running(rotated: Rotated) -> Any:
    """That mesh. Shared: leave it as you found it."""
    return rotated.mesh


def some_more(mesh: Any, written: list[dict[str, Any]]) -> None:
    """Return when some more messages were answered."""
    until = len(written) + 20
    mesh.until(lambda: len(written) > until)


def test_a_rotation_loses_no_message(rotated: Rotated) -> None:
    """Every callback gets its 200 at once, every message one answer, and callbacks of both keys came."""
    written = rotated.written
    assert (rotated.done["key_id"], rotated.done["retired"]) == ("spring", ["configured"])
    assert Counter(entry["state"] for entry in written) == {"answered": len(written)}
    assert {entry["attempts"] for entry in written} == {1}
    assert {entry["problem"] for entry in written} == {""}
    books = rotated.books
    assert books["sent"] == books["acknowledged"] == books["answered_passively"] == len(written)
    assert not [name for name in ("answered_actively", "lost", "retried", "forged") if books[name]]
    opened = [line["key_id"] for line in lines(rotated.mesh, "crypto_svc") if line["event"] == "callback_opened"]
    assert Counter(opened)["configured"] > 20
    assert Counter(opened)["spring"] > 60


def test_afterwards_everything_agrees(rotated: Rotated) -> None:
    """The configuration holds the new key, which is the only one; the command line's own callbacks use it."""
    mesh = rotated.mesh
    assert "start crypto_svc anew" in rotated.warned
    known = keys(mesh)
    assert {key_id for key_id, key in known.items() if key["state"] == "live"} == {"spring"}
    assert known["spring"]["configured"] == "yes"
    assert json.loads(mesh.cli("test", "wecom").stdout)["content"] == "pong"
    assert mesh.cli("keys", "list").stderr == ""
    assert not list((mesh.home / "rotations").glob("*.json"))


def test_a_key_that_the_console_uses_is_not_retired_by_mistake(running: Any) -> None:
    """Who retires the key in use is asked, and the last one stays whatever is said."""
    running.cli("test", "wecom")
    running.cli("keys", "add", "wecom", *(part for name, value in new_key().items() for part in (f"--{name}", value)))
    refused = running.cli("keys", "retire", "wecom", "spring", check=False)
    assert "opened the last callback" in refused.stderr
    added = next(key_id for key_id, key in keys(running).items() if key["state"] == "live" and key_id != "spring")
    running.cli("keys", "retire", "wecom", added)
    last = running.cli("keys", "retire", "wecom", "spring", "--yes", check=False)
    assert "last live key" in last.stderr


def test_a_rotation_can_be_given_up(running: Any) -> None:
    """Retiring the new key ends it; the next one begins anew."""
    first = running.cli("keys", "rotate", "wecom", "--timeout", "0", "--json", check=False)
    assert "nothing is lost" in first.stderr
    (under_way,) = (running.home / "rotations").glob("*.json")
    assert under_way.stat().st_mode & 0o077 == 0
    begun = json.loads(under_way.read_text())
    assert begun["material"]["token"] in first.stderr  # to be copied into the console
    other = [part for name, value in new_key().items() for part in (f"--{name}", value)]
    refused = running.cli("keys", "rotate", "wecom", *other, check=False)
    assert f"keys retire wecom {begun['key_id']}" in refused.stderr
    running.cli("keys", "retire", "wecom", begun["key_id"])
    running.cli("keys", "rotate", "wecom", *other, "--timeout", "0", check=False)
    again = json.loads(under_way.read_text())
    assert again["key_id"] != begun["key_id"]
    running.cli("keys", "retire", "wecom", again["key_id"])


def test_the_console_keeps_the_old_key_if_ours_is_not_live(running: Any) -> None:
    """Who saves a key in the console before it is live here loses nothing: the console refuses it."""
    assert not call(f"{running.simulator}/simulator/key", "PUT", new_key())["passed"]
    assert json.loads(running.cli("test", "wecom").stdout)["content"] == "pong"


def test_everything_is_in_the_audit_log(running: Any) -> None:
    """Who did it on the command line, and who asked crypto_svc, have the same request id; no key is in it."""
    running.cli("config", "set", "nlp.effects_keep_days", "20")
    running.cli("--as", "wang", "config", "set", "nlp.effects_keep_days", "30")
    records = [json.loads(line) for line in running.cli("audit", "export").stdout.splitlines()]
    (asked,) = (
        record
        for record in records
        if (record["action"], record["facts"].get("key_id")) == ("keys.retire", "configured")
    )
    (done,) = (
        record for record in records if record["action"] == "key.retire" and record["facts"]["key_id"] == "configured"
    )
    assert done["request_id"] == asked["request_id"] != ""
    assert (done["chain"], done["actor"]) == ("crypto_svc", "unauthenticated (loopback)")
    assert records[-1]["chain"] == "crypto_svc"
    changes = [record for record in records if record["action"] == "config.set"]
    assert changes[-1]["actor"] == f"{changes[-2]['actor']} as wang"
    assert changes[-1]["facts"]["settings"] == ["nlp.effects_keep_days"]
    secrets = tomllib.loads((running.home / "simulator.toml").read_text())["wecom"]
    told = "".join(file.read_text() for file in (running.home / "audit").iterdir())
    assert not [name for name in ("token", "aeskey", "secret") if secrets[name] in told]


def test_the_audit_log_shows_tampering(running: Any) -> None:
    """Whole chains pass, also with what the services told to their logs; a changed one does not."""
    log = running.home / "logs" / "crypto_svc.log"
    whole = running.cli("audit", "verify", "--log", str(log), "--json")
    heads = {chain["chain"]: chain["head"] for chain in json.loads(whole.stdout)}
    assert set(heads) == {"cli", "crypto_svc"}
    chain = running.home / "audit" / "crypto_svc.jsonl"
    kept = {file: file.read_bytes() for file in (running.home / "audit").iterdir()}
    try:
        chain.write_bytes(b"".join(kept[chain].splitlines(keepends=True)[:-1]))
        chain.with_suffix(".head").unlink()  # somebody who knows how it works
        assert running.cli("audit", "verify").returncode == 0
        for known in (("--log", str(log)), ("--head", heads["crypto_svc"])):
            refused = running.cli("audit", "verify", *known, check=False)
            assert refused.returncode == 1
            assert "removed at the end" in refused.stderr
    finally:
        for file, content in kept.items():
            file.write_bytes(content)
    running.cli("audit", "verify", "--head", heads["crypto_svc"])
