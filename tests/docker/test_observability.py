"""Prometheus beside the mesh, as deploy/compose/observability.yml adds it."""

import json
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

ENVOYS = {"envoy", "mesh"}
JOBS = {"gateway", "crypto_svc", "nlp_svc", "reply_svc", *ENVOYS}
MakeStack = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def stack(make_stack: MakeStack) -> Iterator[Any]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with make_stack("docker-compose.yml", "deploy/compose/observability.yml", PROMETHEUS_PORT=port) as stack:
        stack.up()
        yield stack


def asked(stack: Any, query: str) -> dict[str, float]:
    """What Prometheus answers, by job; each job must be found once."""
    url = f"http://127.0.0.1:{stack.environment['PROMETHEUS_PORT']}/api/v1/query"
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode({'query': query})}", timeout=10) as answer:
        found = json.load(answer)["data"]["result"]
    values = {sample["metric"]["job"]: float(sample["value"][1]) for sample in found}
    assert len(values) == len(found), found
    return values


def test_every_container_is_watched_once(stack: Any) -> None:
    """Prometheus reaches all processes over the networks that are there, and none of them twice."""
    stack.until(lambda: asked(stack, "up") == dict.fromkeys(JOBS, 1.0))


def test_what_is_used_is_compared_with_the_containers_limits(stack: Any) -> None:
    """CPU and memory are those of the container, and their limits are those of docker-compose.yml."""
    ours = JOBS - ENVOYS
    stack.until(lambda: asked(stack, "assistant_memory_limit_bytes").keys() == ours)
    limits = {"gateway": (0.5, 768), "crypto_svc": (0.2, 256), "nlp_svc": (0.2, 832), "reply_svc": (0.2, 512)}
    assert asked(stack, "assistant_cpu_limit_cores") == {job: cores for job, (cores, _) in limits.items()}
    assert asked(stack, "assistant_memory_limit_bytes / 1048576") == {job: size for job, (_, size) in limits.items()}
    assert all(0 < share < 0.8 for share in asked(stack, "instance:assistant_memory:ratio").values())
    assert asked(stack, "assistant_cpu_seconds_total").keys() == ours


def test_grafana_finds_what_it_is_to_show(make_stack: MakeStack) -> None:
    """Its files are mounted where they name each other, Prometheus is where it looks, and only with its profile."""
    files = ("docker-compose.yml", "deploy/compose/observability.yml")
    with make_stack(*files) as stack:
        assert "grafana" not in json.loads(stack.compose("config", "--format", "json"))["services"]
        configured = json.loads(stack.compose("--profile", "grafana", "config", "--format", "json"))["services"]
    grafana, prometheus = configured["grafana"], configured["prometheus"]
    mounted = {volume["target"]: volume["source"] for volume in grafana["volumes"] if volume["type"] == "bind"}
    dashboards, provisioning = mounted["/etc/dashboards"], Path(mounted["/etc/grafana/provisioning"])
    assert "path: /etc/dashboards\n" in (provisioning / "dashboards" / "ai-assistant.yml").read_text()
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (Path(dashboards) / home.relative_to("/etc/dashboards")).exists()
    assert "url: http://prometheus:9090\n" in (provisioning / "datasources" / "prometheus.yml").read_text()
    assert set(grafana["networks"]) & set(prometheus["networks"])
    assert [port["host_ip"] for port in grafana["ports"]] == ["127.0.0.1"]
