"""Who may use the assistant, and from where it may be called back: through Envoy and every service."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from assistant import plugin, ports

LISTED, UNLISTED = "203.0.113.9", "192.0.2.1"
POLICY = {
    "allow-departments": "2",
    "deny-members": "Mallory",
    "messages-per-minute": "3",
    "callback-sources": "platform, 2001:db8::/32",
}


@dataclass
class World:
    """A mesh for an account of one's own, whose platform is played beside it."""

    mesh: Any
    credentials: dict[str, Any]
    numbers: "count[int]" = field(default_factory=count)

    def play(self, method: str, path: str, body: Any) -> None:
        """Change the platform."""
        request = urllib.request.Request(
            f"{self.mesh.simulator}/simulator/{path}",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
            method=method,
        )
        urllib.request.urlopen(request, timeout=5).close()

    def callback(self, member: str, *, age_s: float = 0.0, **headers: str) -> tuple[int, str]:
        """What a sealed message of a member is answered: the status, and the words or the error."""
        platform = plugin.load("channels", "wecom", "simulator")(self.credentials, clock=lambda: time.time() - age_s)
        callback, _ = platform.callback("ping", member)
        request = urllib.request.Request(
            f"{self.mesh.edge}/wecom?{callback.query}",
            callback.body,
            {**callback.headers, **{name.replace("_", "-"): value for name, value in headers.items()}},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, platform.read_reply(answer.read()) or ""
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    def newcomer(self) -> str:
        """A member of department 4, which lies below 2, of whom nothing has come yet."""
        member = f"member{next(self.numbers)}"
        self.play("PUT", f"members/{member}", {"departments": [4]})
        return member


@pytest.fixture(scope="module")
def world(make_mesh: Any) -> Iterator[World]:
    """Behind one proxy, with a platform that publishes where it calls from."""
    credentials = plugin.load("channels", "wecom", "simulator").credentials()
    with make_mesh() as mesh:
        account = {**credentials, "api-base": f"http://127.0.0.1:{mesh.offset + ports.SIMULATOR}", **POLICY}
        options = [word for name, value in account.items() for word in (f"--{name}", str(value))]
        mesh.cli("config", "set", "channels.wecom", *options)
        mesh.cli("config", "set", "edge.trusted_hops", "1")
        mesh.cli("config", "set", "crypto.max_age_s", "60")
        environment = {"AI_ASSISTANT_HOME": str(mesh.home), "AI_ASSISTANT_PORT_OFFSET": str(mesh.offset)}
        platform = subprocess.Popen([sys.executable, "-m", "assistant.cli", "simulate", "wecom"], env=environment)
        try:
            world = World(mesh, credentials)
            _until_played(world)
            mesh.cli("up")
            mesh.until(lambda: world.callback("somebody", x_forwarded_for=UNLISTED)[0] == 403)  # the list is known
            yield world
        finally:
            platform.terminate()
            platform.wait(10)


def _until_played(world: World) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            return world.play("PUT", "rules", {"callback_addresses": ["203.0.113.*"]})
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x_forwarded_for": LISTED}, 200),
        ({"x_forwarded_for": f"{UNLISTED}, {LISTED}"}, 200),
        ({"x_forwarded_for": "2001:db8::7"}, 200),
        ({"x_forwarded_for": UNLISTED}, 403),
        ({"x_forwarded_for": f"{LISTED}, {UNLISTED}"}, 403),
        ({"x_forwarded_for": UNLISTED, "x_client_address": LISTED}, 403),
        ({"x_forwarded_for": UNLISTED, "x_envoy_external_address": LISTED, "x_real_ip": LISTED}, 403),
        ({}, 403),
    ],
)
def test_where_a_callback_comes_from_cannot_be_claimed(world: World, headers: dict[str, str], status: int) -> None:
    """Behind a proxy, what the proxy saw counts: the last entry, and nothing that stands before it or elsewhere."""
    answered = world.callback(world.newcomer(), **headers)
    assert answered[0] == status
    if status == 403:
        assert json.loads(answered[1])["error"] == "SOURCE_NOT_PERMITTED"


def test_members_of_one_department_are_served(world: World) -> None:
    """Those of the departments below it as well, and nobody else: each is told so, and it can be looked up."""
    world.play("PUT", "members/engineer", {"departments": [2]})
    world.play("PUT", "members/merchant", {"departments": [3]})
    world.play("PUT", "members/mallory", {"departments": [2]})
    assert world.callback("engineer", x_forwarded_for=LISTED) == (200, "pong")
    assert world.callback(world.newcomer(), x_forwarded_for=LISTED) == (200, "pong")
    for member in ("merchant", "MALLORY"):
        status, words = world.callback(member, x_forwarded_for=LISTED)
        assert (status, "没有使用本助手的权限" in words) == (200, True)
    rows = json.loads(world.mesh.cli("inbox", "list", "--json").stdout)
    refused = {row["sender"] for row in rows if row["error"] == "MEMBER_NOT_PERMITTED"}
    assert refused == {"merchant", "MALLORY"}
    assert {row["state"] for row in rows} == {"answered"}
    assert json.loads(world.mesh.cli("test", "wecom", check=False).stdout or "{}") == {}, (
        "it comes from no listed address"
    )


def test_a_member_who_writes_too_much_is_asked_for_patience(world: World) -> None:
    """Once; what comes on top of it is acknowledged without a word."""
    member = world.newcomer()
    said = [world.callback(member, x_forwarded_for=LISTED)[1] for _ in range(5)]
    assert said[:3] == ["pong"] * 3
    assert "过一分钟再发" in said[3]
    assert said[4] == ""


def test_the_freshness_window_is_what_was_set(world: World) -> None:
    """A callback of 50 seconds is opened, one of 70 is not."""
    assert world.callback(world.newcomer(), age_s=50, x_forwarded_for=LISTED) == (200, "pong")
    assert world.callback(world.newcomer(), age_s=70, x_forwarded_for=LISTED)[0] == 401


def test_operators_see_who_was_refused(world: World) -> None:
    """In the log, by name and reason; in the metrics, by reason alone."""
    world.callback("mallory", x_forwarded_for=LISTED)
    world.callback("somebody", x_forwarded_for=UNLISTED)
    logs = world.mesh.until(lambda: _logs(world, "turn_refused", "callback_refused"))
    refused = next(line for line in logs if line["event"] == "turn_refused")
    assert refused["reason"] in ("MEMBER_NOT_PERMITTED", "TOO_MANY_MESSAGES")
    assert refused["member"]
    assert refused["message_id"].startswith("wecom:default:")
    source = next(line for line in logs if line["event"] == "callback_refused" and UNLISTED in line["detail"])
    assert source["reason"] == "SOURCE_NOT_PERMITTED"
    with urllib.request.urlopen(
        f"http://127.0.0.1:{world.mesh.offset + ports.GATEWAY + ports.ADMIN_OFFSET}/metrics"
    ) as page:
        metrics = page.read().decode()
    for sample in (
        'assistant_refused_turns_total{channel="wecom",reason="MEMBER_NOT_PERMITTED"}',
        'assistant_callback_source_ranges{account="default",channel="wecom"} 1.0',
        'assistant_callbacks_total{channel="wecom",outcome="source_not_permitted"}',
        'assistant_member_lookups_total{channel="wecom",outcome="ok"}',
    ):
        assert sample in metrics


def _logs(world: World, *events: str) -> list[dict[str, Any]] | None:
    """The gateway's lines, once there is one of each event."""
    lines = [json.loads(line) for line in (world.mesh.home / "logs" / "gateway.log").read_text().splitlines()]
    return lines if set(events) <= {line["event"] for line in lines} else None


def test_without_a_proxy_no_header_is_believed(world: World) -> None:
    """Then X-Forwarded-For is what the caller made up. Last: it changes the edge."""
    world.mesh.cli("config", "set", "edge.trusted_hops", "0")
    world.mesh.cli("up")
    assert world.callback(world.newcomer(), x_forwarded_for=LISTED)[0] == 403
    world.mesh.cli("config", "set", "channels.wecom", "--callback-sources", "platform, 127.0.0.1")
    world.mesh.cli("up")
    assert world.callback(world.newcomer(), x_forwarded_for=UNLISTED) == (200, "pong")
    assert json.loads(world.mesh.cli("test", "wecom").stdout)["content"] == "pong"
