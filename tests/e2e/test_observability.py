"""What a running mesh tells of itself: metrics, log lines, profiles."""

import gzip
import json
import re
import shutil
import socket
import subprocess
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from assistant import ports
from assistant.api.pprof.v1.profile_pb2 import Profile

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "observability.md"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
ADMIN = {
    "gateway": ports.GATEWAY + ports.ADMIN_OFFSET,
    "crypto_svc": ports.CRYPTO + ports.ADMIN_OFFSET,
    "nlp_svc": ports.NLP + ports.ADMIN_OFFSET,
    "reply_svc": ports.REPLY + ports.ADMIN_OFFSET,
}
QUESTION = "现在几点"


@pytest.fixture(scope="module")
def told(make_mesh: Any) -> Iterator[Any]:
    """A mesh in which something happened: a skill was used, an answer delivered, a callback refused."""
    with make_mesh(AI_ASSISTANT_GATEWAY_PASSIVE_BUDGET_S="0.0001") as mesh:
        mesh.cli("up")
        url = f"{mesh.simulator}/simulator/members/zhangsan/messages"
        say = urllib.request.Request(
            f"{url}?wait=1", json.dumps({"text": QUESTION}).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(say).close()
        mesh.until(lambda: any(line["event"] == "delivery_finished" for line in lines(mesh, "reply_svc")))
        forged = f"{mesh.edge}/wecom?msg_signature=0&timestamp={int(time.time())}&nonce=1"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(forged, b"<xml><ToUserName>x</ToUserName><Encrypt>eA==</Encrypt></xml>")
        yield mesh


def get(mesh: Any, service: str, path: str) -> bytes:
    """What a service says on its admin address."""
    with urllib.request.urlopen(f"http://127.0.0.1:{mesh.offset + ADMIN[service]}{path}", timeout=30) as answer:
        return bytes(answer.read())


def lines(mesh: Any, name: str) -> list[dict[str, Any]]:
    """What a process wrote so far."""
    return [json.loads(line) for line in (mesh.home / "logs" / f"{name}.log").read_text("utf-8").splitlines()]


# --- Metrics ----------------------------------------------------------------------------------------------


def documented() -> dict[str, tuple[str, set[str], set[str], str]]:
    """Type, labels, services and meaning of every metric, as the page has them."""
    rows = re.findall(
        r"^\| `(assistant_\w+)` \| (\w+) \| ([\w, ]*) ?\| ([\w, ]+) \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    return {
        name: (kind, names(labels), set(ADMIN) if of == "all" else names(of), meaning)
        for name, kind, labels, of, meaning in rows
    }


def names(listed: str) -> set[str]:
    return set(filter(None, re.split(r"[, ]+", listed)))


def test_the_table_of_metrics_is_true(told: Any) -> None:
    """The page lists every metric of ours that a process has, and no other, with its type, labels and meaning."""
    kinds, labels, services, meanings = {}, defaultdict(set), defaultdict(set), {}
    for service in ADMIN:
        for family in text_string_to_metric_families(get(told, service, "/metrics").decode()):
            if family.name.startswith("assistant_"):
                name = family.name + ("_total" if family.type == "counter" else "")
                kinds[name], meanings[name] = family.type, family.documentation
                services[name].add(service)
                labels[name].update(*(sample.labels.keys() - {"le"} for sample in family.samples))
    page = documented()
    assert set(page) == set(kinds)
    for name, (kind, its_labels, its_services, meaning) in page.items():
        assert (kind, its_services, meaning) == (kinds[name], services[name], meanings[name]), name
        assert labels[name] in (set(), its_labels), name


@pytest.fixture(scope="module")
def prometheus(told: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that watches the mesh as deploy/prometheus/local.yml says, only more often."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is missing, dashboards are NOT tried: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    given = (ROOT / "deploy" / "prometheus" / "local.yml").read_text()
    given = re.sub(r"(127\.0\.0\.1):(\d+)", lambda found: f"{found[1]}:{int(found[2]) + told.offset}", given)
    given = given.replace("interval: 15s", "interval: 1s")
    (folder / "prometheus.yml").write_text(given)
    shutil.copy(ROOT / "deploy" / "prometheus" / "rules.yml", folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = (binary, "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}")
    with (folder / "log").open("wb") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        try:
            # The first ratio takes two scrapes; the platform is asked 15 seconds after the start.
            told.until(lambda: answered(address, "instance:assistant_cpu:ratio5m"))
            told.until(lambda: answered(address, "assistant_platform_connected"))
            yield address
        finally:
            process.terminate()


def answered(prometheus: str, query: str) -> list[Any]:
    """What Prometheus answers to a query; nothing before it listens."""
    try:
        with urllib.request.urlopen(
            f"http://{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=10
        ) as answer:
            return list(json.load(answer)["data"]["result"])
    except urllib.error.HTTPError as refused:
        if refused.code != 503:  # it is still starting
            pytest.fail(f"{query}: {refused.read().decode()}")
        return []
    except OSError:
        return []


def test_every_process_is_watched(prometheus: str) -> None:
    """Prometheus finds all services and Envoy where the configuration says."""
    up = {sample["metric"]["job"]: sample["value"][1] for sample in answered(prometheus, "up")}
    assert up == dict.fromkeys([*ADMIN, "envoy"], "1")


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_shows_something(prometheus: str, dashboard: Path) -> None:
    """Each query names metrics that the mesh has, and finds something wherever there is something to find."""
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/metadata") as answer:
        known = set(json.load(answer)["data"])
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/rules") as answer:
        known |= {rule["name"] for group in json.load(answer)["data"]["groups"] for rule in group["rules"]}
    shown = 0
    for panel in json.loads(dashboard.read_text("utf-8"))["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "5m").replace("$channel", ".*")
            plain = re.sub(r"\{[^}]*\}|\b(?:by|without) \([^)]*\)", "", query)
            used = set(re.findall(r"\b(?:\w+:)?(?:assistant|envoy|process)_\w+(?::\w+)?", plain))
            unknown = {name for name in used if not {name, re.sub("_(bucket|count|sum|total)$", "", name)} & known}
            assert unknown == set(), panel["title"]
            found = answered(prometheus, query)
            shown += bool(found)
            assert found or not used or not all(answered(prometheus, name) for name in used), panel["title"]
    assert shown > len(json.loads(dashboard.read_text("utf-8"))["panels"]) / 2


# --- Logs -------------------------------------------------------------------------------------------------


def test_one_message_is_followed_through_all_services(told: Any) -> None:
    """Its callback's request id is on lines of every process, its own id on those that know it."""
    (delivered,) = (line for line in lines(told, "reply_svc") if line["event"] == "delivery_finished")
    told.until(lambda: any(line.get("path") == "/wecom" for line in lines(told, "envoy")))  # it writes when it likes
    with_request, with_message = (
        {
            (name, line.get("event", line.get("path")))
            for name in (*ADMIN, "envoy")
            for line in lines(told, name)
            if line.get(which) == delivered[which] != ""
        }
        for which in ("request_id", "message_id")
    )
    of_the_message = {
        ("nlp_svc", "reply_generated"),
        ("nlp_svc", "skill_invoked"),
        ("gateway", "turn_answered"),
        ("reply_svc", "delivery_finished"),
    }
    assert with_message == of_the_message
    assert with_request == of_the_message | {("envoy", "/wecom"), ("crypto_svc", "callback_opened")}
    assert delivered["message_id"].startswith("wecom:default:")


def test_no_log_holds_a_secret_or_what_members_write(told: Any) -> None:
    """Neither credentials, nor signatures, nor the words of messages and answers are in any log."""
    account = tomllib.loads((told.home / "simulator.toml").read_text())["wecom"]
    with urllib.request.urlopen(f"{told.simulator}/simulator/members/zhangsan/messages") as answer:
        words = {message["text"] for message in json.load(answer)}
    assert QUESTION in words
    hidden = {account[name] for name in ("token", "aeskey", "secret")} | words | {"msg_signature", "access_token"}
    logs = "".join(log.read_text("utf-8") for log in (told.home / "logs").iterdir())
    assert {text for text in hidden if text in logs} == set()


# --- Profiles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ADMIN)
def test_a_running_service_can_be_profiled(told: Any, service: str) -> None:
    """Its admin address gives profiles of CPU and heap that pprof can read, and nothing else does."""
    for kind, unit in (("profile", "nanoseconds"), ("heap", "bytes")):
        profile = Profile.FromString(gzip.decompress(get(told, service, f"/debug/pprof/{kind}?seconds=0.3")))
        assert profile.string_table[profile.sample_type[-1].unit] == unit
        assert profile.sample or kind == "heap"  # who rests keeps nothing new
    for outside in (told.edge, f"http://127.0.0.1:{told.offset + ports.GATEWAY}"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{outside}/debug/pprof/profile")
        assert refused.value.code == 404
