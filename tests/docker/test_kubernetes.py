"""The pods of deploy/k8s as containers: with the users, roots, mounts, names and probes that Kubernetes gives them.

What is a pod's there is a container's here, and what is a Service's a name in one network. That network
enforces no policies, and no Service changes a port: envoy is called at 8080.
"""

import base64
import datetime
import json
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from assistant import tls
from assistant.cli.authority import Authority

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0
CERTIFIED = ("gateway", "crypto_svc", "nlp_svc", "reply_svc", "operator")
CALLBACKS_AT = "AI_ASSISTANT_EDGE_HTTP=envoy:8080"

Object = dict[str, Any]


def docker(*arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert not check or done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@dataclass
class Cluster:
    """A network with a container for every workload."""

    objects: list[Object]
    folder: Path
    name: str
    image: str
    """What is ours, whatever its tag means by now."""

    def pods(self) -> dict[str, Object]:
        """What stands in the template of each workload, by its name."""
        kinds = ("StatefulSet", "Deployment")
        found = sorted((one for one in self.objects if one["kind"] in kinds), key=lambda one: -kinds.index(one["kind"]))
        return {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in reversed(found)}

    def data(self, name: str) -> dict[str, str]:
        """Of a ConfigMap or a Secret."""
        for one in self.objects:
            if one["metadata"]["name"] == name and one["kind"] in ("ConfigMap", "Secret"):
                is_secret = one["kind"] == "Secret"
                return {k: base64.b64decode(v).decode() if is_secret else v for k, v in one.get("data", {}).items()}
        certificate = self.folder / "certificates" / name.removesuffix("-certificate").replace("-", "_")
        files = (tls.CERTIFICATE, tls.KEY, tls.AUTHORITIES) if certificate.exists() else ()
        return {file: (certificate / file).read_text() for file in files}

    def start(self, name: str) -> None:
        pod = self.pods()[name]
        (container,) = pod["containers"]
        user = pod["securityContext"]
        given = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"]
        given += ["--user", f"{user['runAsUser']}:{user['runAsGroup']}", "--network-alias", name]
        given += ["--memory", container["resources"]["limits"]["memory"].removesuffix("i").lower()]
        for source in container.get("envFrom", []):
            for variable, value in self.data(next(iter(source.values()))["name"]).items():
                given += ["--env", f"{variable}={value}"]
        for one in container["env"]:
            chosen = one.get("valueFrom", {}).get("configMapKeyRef")
            given += ["--env", f"{one['name']}={self.data(chosen['name'])[chosen['key']] if chosen else one['value']}"]
        volumes = {one["name"]: one for one in pod.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            source = volume.get("secret", {}).get("secretName") or volume.get("configMap", {}).get("name")
            folder = self.folder / name / mount["name"]
            folder.mkdir(parents=True)
            folder.chmod(0o777)  # as an emptyDir is, and what is claimed by a user of its group
            for key, value in (self.data(source) if source else {}).items():
                (folder / key).write_text(value)
            given += ["--volume", f"{folder}:{mount['mountPath']}:{'ro' if source else 'rw'}"]
        if name == "simulator":
            given += ["--env", CALLBACKS_AT]
        docker(
            *("run", "--detach", "--init=false", "--name", f"{self.name}-{name}", "--network", self.name),
            *given,
            self.image if container["image"] == "ai-assistant" else container["image"],
            *container.get("args", []),
        )
        self.until(name, "startupProbe")

    def until(self, name: str, kind: str) -> None:
        """Return when a probe is content."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.answers(name, kind):
            assert time.monotonic() < deadline, self.log(name)
            assert (
                docker("inspect", "--format", "{{.State.Running}}", f"{self.name}-{name}").stdout.strip() == "true"
            ), self.log(name)
            time.sleep(0.5)

    def answers(self, name: str, kind: str) -> bool:
        """Whether a probe, asked from within, is content."""
        (container,) = self.pods()[name]["containers"]
        if "exec" in container[kind]:
            return self.inside(name, *container[kind]["exec"]["command"], check=False).returncode == 0
        asked = container[kind]["httpGet"]
        (port,) = (one["containerPort"] for one in container["ports"] if one["name"] == asked["port"])
        return self.inside(name, "healthy", str(port), asked["path"], check=False).returncode == 0

    def inside(self, name: str, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return docker("exec", f"{self.name}-{name}", *command, check=check)

    def forwarded(self, name: str, *command: str) -> str:
        """The output of an operator's command to whom all ports of a pod are forwarded."""
        given = ("--volume", f"{self.folder}/certificates/operator:/certificates/operator:ro", "--user", "0")
        variables = ("--env", "AI_ASSISTANT_TLS_CERTIFICATES=/certificates")
        network = ("--network", f"container:{self.name}-{name}")
        return docker("run", "--rm", "--read-only", *network, *given, *variables, self.image, *command).stdout

    def log(self, name: str) -> str:
        done = docker("logs", f"{self.name}-{name}", check=False)
        return (done.stdout + done.stderr)[-3000:]


@pytest.fixture(scope="module")
def cluster(render: Callable[..., list[Object]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """All pods of the overlay dev with mutual TLS, up and ready."""
    folder = tmp_path_factory.mktemp("cluster")
    folder.chmod(0o755)
    authority = Authority.open(folder / "certificates" / "ca")
    for name in CERTIFIED:
        authority.issue(folder / "certificates" / name, [tls.host(name)], tls.uri(name), datetime.timedelta(days=1))
    image = docker("build", "--quiet", "--tag", "ai-assistant", "--file", "deploy/Dockerfile", ".").stdout.strip()
    cluster = Cluster(render("dev", "mutual-tls"), folder, f"ai-assistant-test-{uuid.uuid4().hex[:8]}", image)
    docker("network", "create", "--internal", cluster.name)
    try:
        for name in cluster.pods():
            cluster.start(name)
        for name in cluster.pods():
            cluster.until(name, "readinessProbe")
        yield cluster
    finally:
        for name in cluster.pods():
            docker("rm", "--force", "--volumes", f"{cluster.name}-{name}", check=False)
        docker("network", "rm", cluster.name, check=False)


def test_the_pods_answer_a_message(cluster: Cluster) -> None:
    """With nothing but what their pods are given, all processes together answer a message, and are alive."""
    told = cluster.inside("simulator", "ai-assistant-cli", "test", "wecom", "--message", "ping")
    assert json.loads(told.stdout)["content"] == "pong"
    assert json.loads(told.stdout)["message_id"] in cluster.forwarded("gateway", "ai-assistant-cli", "inbox", "list")
    for name in cluster.pods():
        if name != "postgres":
            assert cluster.answers(name, "livenessProbe"), cluster.log(name)


def test_no_pod_can_write_but_in_memory(cluster: Cluster) -> None:
    """Roots, and what is mounted, cannot be written."""
    for name in cluster.pods():
        tried = cluster.inside(name, "sh", "-c", "touch /x /usr/x /run/secrets/x 2>&1 || true").stdout
        assert "Read-only file system" in tried, name


def test_pods_that_are_told_to_end_do(cluster: Cluster) -> None:
    """Envoy lets the world go elsewhere first; all others finish by themselves."""
    cluster.inside("envoy", "leave", "9901", "1")
    assert not cluster.answers("envoy", "readinessProbe")
    assert cluster.answers("envoy", "livenessProbe")
    for name in reversed([name for name in cluster.pods() if name != "postgres"]):
        docker("stop", "--time", "30", f"{cluster.name}-{name}")
        code = docker("inspect", "--format", "{{.State.ExitCode}}", f"{cluster.name}-{name}").stdout.strip()
        assert re.fullmatch("0|143", code), (name, cluster.log(name))  # 143: ended by the signal
