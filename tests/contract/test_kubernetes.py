"""deploy/k8s, as kubectl renders it: valid for several versions of Kubernetes, and what the schemas cannot say.

Each check is a function that names what is wrong; below, each is shown a mistake that it must see. No cluster is
asked. What the containers are told is run for real in tests/e2e/test_kubernetes.py.
"""

import functools
import ipaddress
import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes_validate
import pytest
import yaml

from assistant import plugin, server, tls
from assistant.cli.configuration import account_fields, sections
from assistant.cli.envoy import development_certificate
from assistant.cli.services import SERVICES
from assistant.settings import PREFIX, fields

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "k8s"
PAGES = (KUBERNETES / "README.md", KUBERNETES / "README.zh-CN.md")

Object = dict[str, Any]
Check = Callable[[list[Object]], Iterable[str]]
Render = Callable[..., list[Object]]

VERSIONS = ("1.30", "1.32", "1.34", "1.36", "1.37")
FOREIGN = {"Certificate", "ExternalSecret", "Issuer", "PodMonitor", "PrometheusRule"}
"""Kinds that operators bring with them: their schemas are not Kubernetes's."""

OPTIONAL = {
    "dev": ("autoscaling", "cert-manager", "mutual-tls", "nlp-egress", "prometheus"),
    "production": ("cert-manager", "external-secrets", "nlp-egress", "prometheus"),
}
"""What may be added to each overlay."""
COMBINATIONS = [
    (overlay, *components)
    for overlay, optional in OPTIONAL.items()
    for size in range(len(optional) + 1)
    for components in itertools.combinations(optional, size)
]
EVERYTHING = [(overlay, *optional) for overlay, optional in OPTIONAL.items()]

PACKAGES = {"envoy": "envoy"} | {tls.host(service.name): service.name for service in SERVICES}
"""Deployment -> the name of its process."""
KNOWN_TO = {
    "wecom-callback": {"crypto-svc", "simulator"},
    "callback-keys": {"crypto-svc"},
    "wecom-application": {"reply-svc", "simulator"},
    "gateway-database": {"gateway"},
    "nlp-database": {"nlp-svc"},
    "reply-database": {"reply-svc"},
    "postgres": {"postgres"},
    "edge-certificate": {"envoy"},
    "gateway-certificate": {"gateway"},
    "crypto-svc-certificate": {"crypto-svc"},
    "nlp-svc-certificate": {"nlp-svc"},
    "reply-svc-certificate": {"reply-svc"},
}
"""Secret -> whoever may see it. The simulator plays the platform, with an account that is good for nothing else."""


# --- What is in the objects -------------------------------------------------------------------------------


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The object of this name, whatever kustomize has put at its end."""
    return next(
        one for one in of_kind(objects, kind) if re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", one["metadata"]["name"])
    )


def workloads(objects: list[Object]) -> list[Object]:
    return of_kind(objects, "Deployment", "StatefulSet")


def name_of(one: Object) -> str:
    return str(one["metadata"]["name"])


def pod(workload: Object) -> Object:
    return dict(workload["spec"]["template"])


def container(workload: Object) -> Object:
    (only,) = pod(workload)["spec"]["containers"]
    return dict(only)


def ports(workload: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(workload)["ports"]}


def labels(workload: Object) -> Mapping[str, str]:
    return dict(pod(workload)["metadata"]["labels"])


def matches(selector: Object, given: Mapping[str, str]) -> bool:
    """Whether a label selector means these labels."""
    wanted = selector.get("matchLabels", {})
    expressions = selector.get("matchExpressions", [])
    assert {expression["operator"] for expression in expressions} <= {"In"}
    return wanted.items() <= dict(given).items() and all(
        given.get(expression["key"]) in expression["values"] for expression in expressions
    )


def unhashed(name: str) -> str:
    """The name of a ConfigMap or a Secret without what kustomize put at its end."""
    return re.sub(r"-[a-z0-9]{10}$", "", name) if re.fullmatch(r".+-[bcdfghkmt2456789]{10}", name) else name


def variables(workload: Object, objects: list[Object]) -> dict[str, str]:
    """The environment of a workload, without what Secrets say of it."""
    known = {name_of(one): one["data"] for one in of_kind(objects, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container(workload).get("envFrom", []):
        found |= known.get(source.get("configMapRef", {}).get("name"), {})
    for one in container(workload).get("env", []):
        chosen = one.get("valueFrom", {}).get("configMapKeyRef")
        found[one["name"]] = known.get(chosen["name"], {}).get(chosen["key"], "") if chosen else one.get("value", "")
    return found


def references(workload: Object, kind: str) -> set[str]:
    """The Secrets or the ConfigMaps that a workload is given, whichever way."""
    reference = {"Secret": "secret(Ref|KeyRef)?", "ConfigMap": "configMap(Ref|KeyRef)?"}[kind]

    def walk(node: Any, key: str) -> Iterator[str]:
        if isinstance(node, list):
            for one in node:
                yield from walk(one, key)
        elif isinstance(node, dict):
            if re.fullmatch(reference, key):
                yield node["secretName"] if "secretName" in node else node["name"]
            for name, value in node.items():
                yield from walk(value, name)

    return set(walk(pod(workload)["spec"], ""))


@functools.cache
def read_yaml(path: str) -> Any:
    return yaml.load((ROOT / path).read_text("utf-8"), yaml.CSafeLoader)


@functools.cache
def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the table of a page whose first heading is this one."""
    rows: list[list[str]] = []
    inside = False
    for line in page.read_text("utf-8").splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or row[0] == heading)
        if inside:
            rows.append(row)
    return rows[2:]


def code(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def documented_secrets() -> dict[str, set[str]]:
    """The Secrets that the README asks its reader to make: name -> keys."""
    return {name: code(row[1]) for row in table(PAGES[0], "Secret") for name in code(row[0])}


@functools.cache
def known_variables() -> set[str]:
    """Every variable that our code reads."""
    known = {f"{PREFIX}HOME", f"{PREFIX}CONFIG", f"{PREFIX}PORT_OFFSET"}
    for section, settings in sections().items():
        known |= {f"{PREFIX}{section}_{name}".upper().replace(".", "_") for name in fields(settings)}
    for channel, manifest in plugin.channels().items():
        known |= {f"{channel}_{name}".upper() for name in account_fields(manifest)}
    return known | {f"{name}_FILE" for name in known}


@functools.cache
def own_variables(package: str) -> "re.Pattern[str]":
    """Those that are the business of a process: what a supervisor on one machine would give it."""
    if package == "envoy":
        return re.compile(rf"{PREFIX}(EDGE_\w+|GATEWAY_(LISTEN|ADMIN))")
    service = next(service for service in SERVICES if service.name == package)
    named = [f"{PREFIX}{name.upper().replace('.', '_')}" for name in ("tls", *service.shared)]
    known = [rf"{PREFIX}{service.section.upper()}_\w+", *(rf"{name}(_\w+)?" for name in named)]
    for channel, manifest in plugin.channels().items():
        for part in service.parts:
            known += [f"{channel}_{name}".upper() for name in fields(getattr(manifest, part))]
    return re.compile(rf"({'|'.join(known)})(_FILE)?")


# --- What must be so ---------------------------------------------------------------------------------------


def two_of_every_service(objects: list[Object]) -> Iterator[str]:
    """Every service exists, at least twice, and who decides how often is one."""
    deployed = {name_of(one): one for one in of_kind(objects, "Deployment")}
    scaled = {one["spec"]["scaleTargetRef"]["name"]: one for one in of_kind(objects, "HorizontalPodAutoscaler")}
    for name in PACKAGES:
        if name not in deployed:
            yield f"{name} is not deployed"
        elif name in scaled:
            if "replicas" in deployed[name]["spec"]:
                yield f"{name} has a number of replicas as well as an autoscaler: each apply would set it back"
            if not 2 <= scaled[name]["spec"]["minReplicas"] < scaled[name]["spec"]["maxReplicas"]:
                yield f"{name} may be scaled to one, or not at all"
        elif deployed[name]["spec"].get("replicas", 1) < 2 or scaled:
            yield f"{name} is alone"
    yield from (f"an autoscaler scales {name}, which is none of ours" for name in scaled if name not in PACKAGES)


def nothing_is_taken_before_its_successor_serves(objects: list[Object]) -> Iterator[str]:
    """Rolling updates add one, wait until callers know it, and take one."""
    for name in PACKAGES:
        spec = find(objects, "Deployment", name)["spec"]
        if spec["strategy"] != {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}:
            yield f"{name} is not updated one by one"
        if spec.get("minReadySeconds", 0) <= 30:
            yield f"the DNS of the cluster may not know a new {name} when an old one goes"
        budgets = [
            one
            for one in of_kind(objects, "PodDisruptionBudget")
            if matches(one["spec"]["selector"], labels({"spec": spec}))
        ]
        if [one["spec"].get("maxUnavailable") for one in budgets] != [1]:
            yield f"{name} has {len(budgets)} budgets, or one that keeps a node from being drained"
        spread = pod({"spec": spec})["spec"]["topologySpreadConstraints"]
        if {one["topologyKey"] for one in spread} != {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}:
            yield f"{name} may be on one machine, or in one zone"
        if not all(matches(one["labelSelector"], labels({"spec": spec})) for one in spread):
            yield f"{name} is spread from others"
        if any("app.kubernetes.io/name" not in one["matchLabelKeys"] for one in spread):
            yield f"{name} is spread from other services too"


def selectors_select(objects: list[Object]) -> Iterator[str]:
    """Each workload selects its own pods, each Service and budget those of one workload, whose ports it names."""
    for one in workloads(objects):
        if not matches(one["spec"]["selector"], labels(one)):
            yield f"{name_of(one)} does not select its own pods"
    for one in of_kind(objects, "Service", "PodDisruptionBudget"):
        selector = one["spec"]["selector"] if one["kind"] != "Service" else {"matchLabels": one["spec"]["selector"]}
        selected = [workload for workload in workloads(objects) if matches(selector, labels(workload))]
        if [name_of(workload) for workload in selected] != [name_of(one)]:
            yield f"{one['kind']} {name_of(one)} selects {[name_of(workload) for workload in selected]}"
        elif one["kind"] == "Service":
            known = ports(selected[0])
            yield from (
                f"Service {name_of(one)}: no port is named {port['targetPort']!r}"
                for port in one["spec"]["ports"]
                if port["targetPort"] not in known
            )
    for name, package in PACKAGES.items():
        deployed = find(objects, "Deployment", name)
        if labels(deployed).get("app.kubernetes.io/component") != package:
            yield f"the job of {name} has not the name that dashboards know"
        if name != "envoy" and find(objects, "Service", name)["spec"].get("clusterIP") != "None":
            yield f"callers cannot find all of {name}: its Service is not headless"
    for monitor in of_kind(objects, "PodMonitor"):
        named = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        for name in PACKAGES:
            deployed = find(objects, "Deployment", name)
            if not matches(monitor["spec"]["selector"], labels(deployed)) or not named & ports(deployed).keys():
                yield f"Prometheus does not find {name}"


def every_process_is_asked_how_it_is(objects: list[Object]) -> Iterator[str]:
    """Three probes each, in a way in which the kubelet can ask; liveness does not depend on others."""
    for one in of_kind(objects, "Deployment"):
        name, known = name_of(one), ports(one)
        speaks_tls = f"{PREFIX}TLS_CERTIFICATES" in variables(one, objects)
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container(one).get(kind)
            if not probe:
                yield f"{name} has no {kind}"
                continue
            if "grpc" in probe:
                if speaks_tls:
                    yield f"{name} speaks TLS, and the kubelet's gRPC probes do not"
                if probe["grpc"]["port"] not in known.values():
                    yield f"{kind} of {name} asks a port that is not there"
                if kind != "readinessProbe" and probe["grpc"].get("service") != "liveness":
                    yield f"{kind} of {name} ends a process for what others do"
            elif "httpGet" in probe:
                if probe["httpGet"]["port"] not in known:
                    yield f"{kind} of {name} asks a port that is not there"
                if name.endswith("-svc") and (probe["httpGet"]["path"] == "/livez") != (kind != "readinessProbe"):
                    yield f"{kind} of {name} asks {probe['httpGet']['path']}"
            elif not (ROOT / "deploy" / "container" / probe["exec"]["command"][0]).exists():
                yield f"{kind} of {name} runs what is not in the image"


def processes_have_the_time_to_end(objects: list[Object]) -> Iterator[str]:
    """The kubelet waits longer than a process takes: before it is told, to drain, and to finish."""
    drain_s = {"gateway": graceful_timeout_s(), "envoy": 0}
    for name in PACKAGES:
        one = find(objects, "Deployment", name)
        before = container(one).get("lifecycle", {}).get("preStop", {})
        before_s = before.get("sleep", {}).get("seconds", 0) or int(before.get("exec", {}).get("command", [0])[-1])
        needed_s = before_s + drain_s.get(name, server._GRACE_S + 1)
        if pod(one)["spec"]["terminationGracePeriodSeconds"] < needed_s + 5:
            yield f"{name} needs {needed_s} s to end"
        if name in drain_s and before_s < 5:
            yield f"{name} stops taking requests before callers know"


@functools.cache
def graceful_timeout_s() -> int:
    """What gunicorn gives the gateway's worker to end."""
    (seconds,) = re.findall(r'"graceful_timeout": (\d+)', (ROOT / "gateway" / "__main__.py").read_text("utf-8"))
    return int(seconds)


def nothing_may_do_more_than_it_must(objects: list[Object]) -> Iterator[str]:
    """PodSecurity's restricted profile, a root that cannot be written, no token of the cluster, limits."""
    namespace = find(objects, "Namespace", "ai-assistant")["metadata"]["labels"]
    if namespace.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace lets more in than the restricted profile"
    for one in workloads(objects):
        name, spec, security = name_of(one), pod(one)["spec"], container(one)["securityContext"]
        given = spec["securityContext"]
        if (
            not given["runAsNonRoot"]
            or given["runAsUser"] == 0
            or given["seccompProfile"] != {"type": "RuntimeDefault"}
        ):
            yield f"{name} may be root, or make any system call"
        if security != {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }:
            yield f"{name} may do more than it must"
        if spec.get("automountServiceAccountToken") is not False or spec.get("enableServiceLinks") is not False:
            yield f"{name} is given a token of the cluster, or variables that look like settings"
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC", "initContainers")):
            yield f"{name} shares something with its machine"
        kinds = {kind for volume in spec.get("volumes", []) for kind in volume if kind != "name"}
        if not kinds <= {"secret", "configMap", "emptyDir"}:
            yield f"{name} mounts {kinds}"
        mounted = {mount["name"] for mount in container(one).get("volumeMounts", [])}
        if any("subPath" in mount for mount in container(one).get("volumeMounts", [])):
            yield f"{name} would not notice when a file changes"
        claimed = {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
        if mounted != {volume["name"] for volume in spec.get("volumes", [])} | claimed:
            yield f"{name} does not mount what it has, or has not what it mounts"
        resources = container(one)["resources"]
        for bound in ("requests", "limits"):
            if resources.get(bound, {}).keys() != {"cpu", "memory", "ephemeral-storage"}:
                yield f"{name} has no {bound}"


def settings_are_known(objects: list[Object]) -> Iterator[str]:
    """Our code reads every variable, and no process is told what is another's business."""
    channels = tuple(f"{channel.upper()}_" for channel in plugin.channels())
    known = known_variables()
    for one in of_kind(objects, "Deployment"):
        name = name_of(one)
        for variable in variables(one, objects):
            if variable.startswith((PREFIX, *channels)) and variable not in known:
                yield f"{name}: nobody reads {variable}"
            elif name in PACKAGES and not own_variables(PACKAGES[name]).fullmatch(variable):
                yield f"{name}: {variable} is not its business"


def secrets_are_told_to_their_owners_only(objects: list[Object]) -> Iterator[str]:
    """Each Secret reaches whoever needs it, and nobody else."""
    for one in workloads(objects):
        for secret in references(one, "Secret"):
            if name_of(one) not in KNOWN_TO.get(unhashed(secret), ()):
                yield f"{name_of(one)} is told {secret}"


def what_is_named_exists(objects: list[Object]) -> Iterator[str]:
    """ConfigMaps, Secrets, their keys and files: rendered, made by an operator, or asked for in the README."""
    made = {name_of(one): set(one.get("data", {})) for one in of_kind(objects, "Secret")}
    made |= {
        one["spec"]["target"]["name"]: {row["secretKey"] for row in one["spec"]["data"]}
        for one in of_kind(objects, "ExternalSecret")
    }
    certificate = {tls.CERTIFICATE, tls.KEY, tls.AUTHORITIES}
    made |= {one["spec"]["secretName"]: certificate for one in of_kind(objects, "Certificate")}
    asked_for = documented_secrets()
    for name, keys in made.items():
        if unhashed(name) in asked_for and not asked_for[unhashed(name)] <= keys:
            yield f"{name} has not the keys that the README names"
    configuration = {name_of(one) for one in of_kind(objects, "ConfigMap")}
    for one in workloads(objects):
        for secret in references(one, "Secret") - made.keys() - asked_for.keys():
            yield f"{name_of(one)} wants {secret}, of which nobody knows"
        for name in references(one, "ConfigMap") - configuration:
            yield f"{name_of(one)} wants the ConfigMap {name}, which is not there"
        if one["kind"] == "Deployment":
            yield from _missing_files(one, objects, asked_for | made)


def _missing_files(workload: Object, objects: list[Object], secrets: Mapping[str, set[str]]) -> Iterator[str]:
    """Settings that name a file which no volume has."""
    volumes = {volume["name"]: volume for volume in pod(workload)["spec"].get("volumes", [])}
    files = set()
    for mount in container(workload).get("volumeMounts", []):
        given = volumes[mount["name"]].get("secret")
        if given:
            files |= {f"{mount['mountPath']}/{key}" for key in secrets.get(given["secretName"], ())}
    for variable, value in variables(workload, objects).items():
        if value.startswith("/") and not any(file == value or file.startswith(f"{value}/") for file in files):
            yield f"{name_of(workload)}: {variable} is {value}, where nothing is"


def it_is_what_compose_runs(objects: list[Object]) -> Iterator[str]:
    """Image and command of a container do not depend on who starts it."""
    composed = read_yaml("docker-compose.yml")["services"]
    scaled = read_yaml("deploy/compose/scale.yml")["services"]
    for one in workloads(objects):
        name = name_of(one)
        given = composed.get(name) or scaled[name]
        default = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", given["image"])
        image = container(one)["image"]
        if image != default and not re.fullmatch(rf".+/{default}:.+", image):
            yield f"{name} runs {image}, and in compose {default}"
        if "command" in container(one):
            yield f"{name} does without tini"
        if name in PACKAGES and container(one)["args"] != given["command"]:
            yield f"{name} runs {container(one)['args']}, and in compose {given['command']}"


def addresses_lead_somewhere(objects: list[Object]) -> Iterator[str]:
    """Every host and port in a setting is a Service's; every address to listen on is a port that is shown."""
    served = {f"{name_of(one)}:{port['port']}" for one in of_kind(objects, "Service") for port in one["spec"]["ports"]}
    for one in of_kind(objects, "Deployment"):
        for variable, value in variables(one, objects).items():
            for host, port in re.findall(r"(?:^|//)([^/:@]+):(\d+)$", value):
                if host == "0.0.0.0":
                    if int(port) not in ports(one).values():
                        yield f"{name_of(one)} listens on {port}, which is not among its ports"
                elif f"{host}:{port}" not in served:
                    yield f"{name_of(one)}: {variable} is {value}, and no Service has that port"


def certificates_say_who_is_who(objects: list[Object]) -> Iterator[str]:
    """cert-manager makes a certificate for each process, with the names that others look for."""
    made = {one["spec"]["secretName"]: one["spec"] for one in of_kind(objects, "Certificate")}
    issuers = {name_of(one) for one in of_kind(objects, "Issuer")}
    yield from (f"{name} has no issuer" for name, one in made.items() if one["issuerRef"]["name"] not in issuers)
    for name, package in PACKAGES.items():
        certificate = made.get(f"{name}-certificate")
        if not made or name == "envoy":
            continue
        if certificate is None:
            yield f"{name} gets no certificate"
        elif certificate["uris"] != [tls.uri(package)] or certificate["dnsNames"] != [tls.host(package)]:
            yield f"the certificate of {name} has another name"
        elif not {"server auth", "client auth"} <= set(certificate["usages"]):
            yield f"the certificate of {name} is good for one end of a connection only"


def alerts_are_the_rules(objects: list[Object]) -> Iterator[str]:
    """The Prometheus operator is given what deploy/prometheus/rules.yml says."""
    rules = read_yaml("deploy/prometheus/rules.yml")
    yield from ("run `make docs`" for one in of_kind(objects, "PrometheusRule") if one["spec"] != rules)


def arrows_are_those_of_the_picture(objects: list[Object]) -> Iterator[str]:
    """Who can reach whom, by all policies together, is what README.md draws, and nothing else."""
    allowed, drawn = set(reachable(objects)), set(picture(objects))
    yield from (f"{arrow} is not in the picture" for arrow in sorted(allowed - drawn))
    yield from (f"{arrow} is in the picture, and not allowed" for arrow in sorted(drawn - allowed))


# --- Who can reach whom -----------------------------------------------------------------------------------


class Arrow(NamedTuple):
    source: str
    target: str
    port: int
    protocol: str = "TCP"


class Party(NamedTuple):
    """Somebody who may call or be called: a pod, by its labels, or an address."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    ports: Mapping[str, int]
    address: str


OUTSIDE = (
    Party("dns", "kube-system", {"k8s-app": "kube-dns"}, {"dns": 53, "metrics": 9153}, "10.96.0.10"),
    Party("prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}, {"http": 9090}, "10.0.0.1"),
    Party("grafana", "monitoring", {"app.kubernetes.io/name": "grafana"}, {"http": 3000}, "10.0.0.2"),
    Party("stranger", "default", {"app.kubernetes.io/name": "gateway"}, {"http": 8080, "https": 443}, "10.0.0.3"),
    Party("world", "", {}, {"http": 80, "https": 443, "ssh": 22, "dns": 53}, "203.0.113.7"),
    Party("neighbour", "", {}, {"https": 443, "postgres": 5432}, "10.1.2.3"),
    Party("metadata", "", {}, {"http": 80, "https": 443}, "169.254.169.254"),
    Party("database", "", {}, {"postgres": 5432, "ssh": 22}, "192.0.2.1"),
)


def parties(objects: list[Object]) -> list[Party]:
    ours = [
        Party(name_of(one), name_of(find(objects, "Namespace", "ai-assistant")), labels(one), ports(one), "10.2.0.1")
        for one in workloads(objects)
    ]
    newcomer = Party("newcomer", ours[0].namespace, {}, {"http": 8080}, "10.2.0.2")
    return [*ours, newcomer, *OUTSIDE]


def reachable(objects: list[Object]) -> Iterator[Arrow]:
    """All arrows that the policies allow. Source: Kubernetes documentation, Network Policies."""
    everybody = parties(objects)
    for source, target in itertools.permutations(everybody, 2):
        if source in OUTSIDE and target in OUTSIDE:
            continue
        for number, protocol in itertools.product(target.ports.values(), ("TCP", "UDP")):
            if _lets(objects, "Egress", source, target, number, protocol, target) and _lets(
                objects, "Ingress", target, source, number, protocol, target
            ):
                yield Arrow(source.name, target.name, number, protocol)


def _lets(
    objects: list[Object], way: str, subject: Party, peer: Party, number: int, protocol: str, called: Party
) -> bool:
    """Whether the policies of `subject` let it speak with `peer`."""
    if subject in OUTSIDE:
        return True
    policies = [
        one["spec"]
        for one in of_kind(objects, "NetworkPolicy")
        if matches(one["spec"]["podSelector"], subject.labels) and way in one["spec"]["policyTypes"]
    ]
    key, end = ("egress", "to") if way == "Egress" else ("ingress", "from")
    return not policies or any(
        _is_port(rule.get("ports"), number, protocol, called) and _is_peer(rule.get(end), peer, subject.namespace)
        for policy in policies
        for rule in policy.get(key) or []
    )


def _is_port(wanted: list[Object] | None, number: int, protocol: str, called: Party) -> bool:
    return not wanted or any(
        one.get("protocol", "TCP") == protocol
        and (
            "port" not in one
            or (one["port"] if isinstance(one["port"], int) else called.ports.get(one["port"])) == number
        )
        for one in wanted
    )


def _is_peer(wanted: list[Object] | None, peer: Party, namespace: str) -> bool:
    return not wanted or any(_is_one(one, peer, namespace) for one in wanted)


def _is_one(wanted: Object, peer: Party, namespace: str) -> bool:
    if "ipBlock" in wanted:
        within = [
            ipaddress.ip_network(block) for block in (wanted["ipBlock"]["cidr"], *wanted["ipBlock"].get("except", ()))
        ]
        address = ipaddress.ip_address(peer.address)
        return address in within[0] and not any(address in block for block in within[1:])
    if not peer.namespace:
        return False
    known = {"kubernetes.io/metadata.name": peer.namespace}
    there = (
        matches(wanted["namespaceSelector"], known) if "namespaceSelector" in wanted else peer.namespace == namespace
    )
    return there and matches(wanted.get("podSelector", {}), peer.labels)


def picture(objects: list[Object]) -> Iterator[Arrow]:
    """The arrows of README.md, and those that its words add: a database, names, metrics."""
    everybody = {party.name: party for party in parties(objects)}
    with_database, finders = ("gateway", "nlp-svc", "reply-svc"), ["envoy", "gateway", "nlp-svc", "reply-svc"]
    for outside in OUTSIDE:
        yield Arrow(outside.name, "envoy", 8080)
        yield Arrow(outside.name, "envoy", 8443)
    yield Arrow("envoy", "gateway", 7000)
    yield Arrow("gateway", "crypto-svc", 7001)
    yield Arrow("gateway", "nlp-svc", 7002)
    yield Arrow("gateway", "reply-svc", 7003)
    if "simulator" in everybody:  # is the platform
        yield Arrow("reply-svc", "simulator", 7050)
        yield Arrow("simulator", "envoy", 8080)
        finders.append("simulator")
    else:
        yield Arrow("reply-svc", "world", 443)
    yield from (Arrow(name, "postgres" if "postgres" in everybody else "database", 5432) for name in with_database)
    for name, protocol in itertools.product(finders, ("TCP", "UDP")):
        yield Arrow(name, "dns", 53, protocol)
    if of_kind(objects, "PodMonitor"):
        yield from (Arrow("prometheus", name, ports_of(everybody[name])) for name in PACKAGES)
    if any(name_of(one) == "nlp-svc-provider" for one in of_kind(objects, "NetworkPolicy")):
        yield Arrow("nlp-svc", "world", 443)


def ports_of(party: Party) -> int:
    """Where a process shows its metrics."""
    return party.ports.get("admin") or party.ports["metrics"]


# --- The tests --------------------------------------------------------------------------------------------

CHECKS: tuple[Check, ...] = (
    two_of_every_service,
    nothing_is_taken_before_its_successor_serves,
    selectors_select,
    every_process_is_asked_how_it_is,
    processes_have_the_time_to_end,
    nothing_may_do_more_than_it_must,
    settings_are_known,
    secrets_are_told_to_their_owners_only,
    what_is_named_exists,
    it_is_what_compose_runs,
    addresses_lead_somewhere,
    certificates_say_who_is_who,
    alerts_are_the_rules,
    arrows_are_those_of_the_picture,
)


def problems_of_schemas(objects: list[Object], version: str) -> Iterator[str]:
    for one in objects:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            if one["kind"] not in FOREIGN:
                yield f"{one['apiVersion']} {one['kind']} is not in Kubernetes {version}"
        except kubernetes_validate.ValidationError as error:
            yield f"{one['kind']} {name_of(one)}: {error.message}"


@pytest.mark.parametrize("combination", COMBINATIONS, ids="+".join)
def test_an_overlay_with_components_is_sound(render: Render, combination: tuple[str, ...]) -> None:
    """Whatever is combined, nothing is missing, and nobody can do or know more than before."""
    objects = render(*combination)
    assert [problem for check in CHECKS for problem in check(objects)] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("combination", EVERYTHING, ids="+".join)
def test_kubernetes_would_take_it(render: Render, combination: tuple[str, ...], version: str) -> None:
    """Every object fits the schema of its kind, with no field that Kubernetes does not know."""
    assert list(problems_of_schemas(render(*combination), version)) == []


# --- Each check sees a mistake ----------------------------------------------------------------------------

Mistake = Callable[[list[Object]], object]


def pod_of(objects: list[Object], name: str) -> Object:
    spec: Object = find(objects, "Deployment", name)["spec"]["template"]["spec"]
    return spec


def container_of(objects: list[Object], name: str) -> Object:
    only: Object = pod_of(objects, name)["containers"][0]
    return only


def policy(objects: list[Object], name: str) -> Object:
    spec: Object = find(objects, "NetworkPolicy", name)["spec"]
    return spec


def set_variable(objects: list[Object], name: str, variable: str, value: str) -> None:
    given = container_of(objects, name)["env"]
    given[:] = [one for one in given if one["name"] != variable] + [{"name": variable, "value": value}]


def mount(objects: list[Object], name: str, secret: str) -> None:
    pod_of(objects, name)["volumes"].append({"name": "stolen", "secret": {"secretName": secret}})
    container_of(objects, name)["volumeMounts"].append({"name": "stolen", "mountPath": "/stolen"})


def drop(objects: list[Object], kind: str, name: str) -> None:
    objects.remove(find(objects, kind, name))


EVERYBODY: Object = {"podSelector": {}}
WORLD: Object = {"ipBlock": {"cidr": "0.0.0.0/0"}}

MISTAKES: tuple[tuple[Check, str, Mistake], ...] = (
    (two_of_every_service, "no service", lambda o: drop(o, "Deployment", "nlp-svc")),
    (two_of_every_service, "a number too", lambda o: find(o, "Deployment", "gateway")["spec"].update(replicas=2)),
    (two_of_every_service, "no autoscaler", lambda o: drop(o, "HorizontalPodAutoscaler", "gateway")),
    (
        two_of_every_service,
        "one is enough",
        lambda o: find(o, "HorizontalPodAutoscaler", "envoy")["spec"].update(minReplicas=1),
    ),
    (
        two_of_every_service,
        "scales nothing",
        lambda o: find(o, "HorizontalPodAutoscaler", "envoy")["spec"]["scaleTargetRef"].update(name="edge"),
    ),
    (
        nothing_is_taken_before_its_successor_serves,
        "takes first",
        lambda o: find(o, "Deployment", "gateway")["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable=1),
    ),
    (
        nothing_is_taken_before_its_successor_serves,
        "too soon for names",
        lambda o: find(o, "Deployment", "gateway")["spec"].pop("minReadySeconds"),
    ),
    (nothing_is_taken_before_its_successor_serves, "no budget", lambda o: drop(o, "PodDisruptionBudget", "envoy")),
    (
        nothing_is_taken_before_its_successor_serves,
        "budget of another",
        lambda o: find(o, "PodDisruptionBudget", "envoy")["spec"]["selector"]["matchLabels"].update(x="y"),
    ),
    (
        nothing_is_taken_before_its_successor_serves,
        "not spread",
        lambda o: pod_of(o, "reply-svc")["topologySpreadConstraints"].pop(),
    ),
    (
        nothing_is_taken_before_its_successor_serves,
        "spread from others",
        lambda o: pod_of(o, "reply-svc")["topologySpreadConstraints"][0]["matchLabelKeys"].pop(0),
    ),
    (
        selectors_select,
        "own pods",
        lambda o: find(o, "Deployment", "gateway")["spec"]["selector"]["matchLabels"].update(tier="front"),
    ),
    (selectors_select, "no pods", lambda o: find(o, "Service", "gateway")["spec"]["selector"].update(tier="front")),
    (
        selectors_select,
        "all pods",
        lambda o: find(o, "Service", "gateway")["spec"].update(selector={"app.kubernetes.io/part-of": "ai-assistant"}),
    ),
    (selectors_select, "port", lambda o: find(o, "Service", "envoy")["spec"]["ports"][0].update(targetPort="web")),
    (selectors_select, "one address", lambda o: find(o, "Service", "nlp-svc")["spec"].pop("clusterIP")),
    (
        selectors_select,
        "no metrics",
        lambda o: find(o, "PodMonitor", "ai-assistant")["spec"]["podMetricsEndpoints"].pop(),
    ),
    (every_process_is_asked_how_it_is, "no probe", lambda o: container_of(o, "gateway").pop("livenessProbe")),
    (
        every_process_is_asked_how_it_is,
        "TLS",
        lambda o: container_of(o, "nlp-svc").update(readinessProbe={"grpc": {"port": 7002}}),
    ),
    (
        every_process_is_asked_how_it_is,
        "port",
        lambda o: container_of(o, "gateway")["readinessProbe"]["httpGet"].update(port="web"),
    ),
    (
        every_process_is_asked_how_it_is,
        "ends for others",
        lambda o: container_of(o, "reply-svc")["livenessProbe"]["httpGet"].update(path="/healthz"),
    ),
    (
        every_process_is_asked_how_it_is,
        "program",
        lambda o: container_of(o, "envoy")["readinessProbe"]["exec"]["command"].__setitem__(0, "curl"),
    ),
    (
        processes_have_the_time_to_end,
        "too short",
        lambda o: pod_of(o, "reply-svc").update(terminationGracePeriodSeconds=10),
    ),
    (processes_have_the_time_to_end, "at once", lambda o: container_of(o, "gateway").pop("lifecycle")),
    (
        nothing_may_do_more_than_it_must,
        "namespace",
        lambda o: find(o, "Namespace", "ai-assistant")["metadata"].update(labels={}),
    ),
    (nothing_may_do_more_than_it_must, "root", lambda o: pod_of(o, "envoy")["securityContext"].update(runAsUser=0)),
    (
        nothing_may_do_more_than_it_must,
        "writes",
        lambda o: container_of(o, "envoy")["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    (
        nothing_may_do_more_than_it_must,
        "token",
        lambda o: pod_of(o, "envoy").update(automountServiceAccountToken=True),
    ),
    (
        nothing_may_do_more_than_it_must,
        "host",
        lambda o: pod_of(o, "envoy")["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    ),
    (nothing_may_do_more_than_it_must, "limits", lambda o: container_of(o, "gateway")["resources"].pop("limits")),
    (nothing_may_do_more_than_it_must, "unused", lambda o: container_of(o, "gateway")["volumeMounts"].pop()),
    (settings_are_known, "misspelt", lambda o: set_variable(o, "gateway", "AI_ASSISTANT_GATEWAY_DATABSE", "x")),
    (settings_are_known, "misspelt", lambda o: find(o, "ConfigMap", "account")["data"].update(WECOM_CORP_ID="x")),
    (settings_are_known, "not its own", lambda o: set_variable(o, "gateway", "WECOM_TOKEN_FILE", "/x")),
    (settings_are_known, "not its own", lambda o: set_variable(o, "nlp-svc", "WECOM_CORPID", "x")),
    (secrets_are_told_to_their_owners_only, "volume", lambda o: mount(o, "gateway", "wecom-callback")),
    (
        secrets_are_told_to_their_owners_only,
        "all variables",
        lambda o: container_of(o, "nlp-svc").update(envFrom=[{"secretRef": {"name": "wecom-application"}}]),
    ),
    (
        secrets_are_told_to_their_owners_only,
        "one variable",
        lambda o: container_of(o, "gateway")["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "wecom-application", "key": "secret"}}}
        ),
    ),
    (
        secrets_are_told_to_their_owners_only,
        "projected",
        lambda o: pod_of(o, "envoy")["volumes"].append(
            {"name": "x", "projected": {"sources": [{"secret": {"name": "gateway-certificate"}}]}}
        ),
    ),
    (
        what_is_named_exists,
        "Secret",
        lambda o: mount(o, "envoy", "edge-certificates"),
    ),
    (
        what_is_named_exists,
        "ConfigMap",
        lambda o: container_of(o, "gateway")["envFrom"][0].update(configMapRef={"name": "x"}),
    ),
    (
        what_is_named_exists,
        "file",
        lambda o: set_variable(o, "reply-svc", "WECOM_SECRET_FILE", "/run/secrets/wecom/wecom_secret"),
    ),
    (
        what_is_named_exists,
        "key",
        lambda o: find(o, "ExternalSecret", "wecom-callback")["spec"]["data"].pop(),
    ),
    (it_is_what_compose_runs, "image", lambda o: container_of(o, "gateway").update(image="gateway:latest")),
    (it_is_what_compose_runs, "command", lambda o: container_of(o, "gateway").update(args=["gunicorn", "gateway"])),
    (it_is_what_compose_runs, "no tini", lambda o: container_of(o, "gateway").update(command=["python"])),
    (
        addresses_lead_somewhere,
        "host",
        lambda o: set_variable(o, "gateway", "AI_ASSISTANT_NLP_TARGET", "nlp_svc:7002"),
    ),
    (
        addresses_lead_somewhere,
        "port",
        lambda o: set_variable(o, "gateway", "AI_ASSISTANT_NLP_TARGET", "nlp-svc:7001"),
    ),
    (
        addresses_lead_somewhere,
        "listens",
        lambda o: set_variable(o, "nlp-svc", "AI_ASSISTANT_NLP_LISTEN", "0.0.0.0:7005"),
    ),
    (certificates_say_who_is_who, "none", lambda o: drop(o, "Certificate", "nlp-svc")),
    (
        certificates_say_who_is_who,
        "URI",
        lambda o: find(o, "Certificate", "nlp-svc")["spec"].update(uris=["spiffe://ai-assistant/nlp-svc"]),
    ),
    (certificates_say_who_is_who, "usage", lambda o: find(o, "Certificate", "gateway")["spec"]["usages"].pop()),
    (certificates_say_who_is_who, "issuer", lambda o: drop(o, "Issuer", "authority")),
    (
        alerts_are_the_rules,
        "old",
        lambda o: find(o, "PrometheusRule", "ai-assistant")["spec"]["groups"][1]["rules"][0].update(expr="up > 1"),
    ),
    (arrows_are_those_of_the_picture, "nobody denied", lambda o: drop(o, "NetworkPolicy", "nobody")),
    (arrows_are_those_of_the_picture, "no way to the gateway", lambda o: drop(o, "NetworkPolicy", "gateway")),
    (arrows_are_those_of_the_picture, "no names", lambda o: drop(o, "NetworkPolicy", "names")),
    (
        arrows_are_those_of_the_picture,
        "crypto-svc finds names",
        lambda o: policy(o, "names")["podSelector"]["matchExpressions"][0]["values"].append("crypto-svc"),
    ),
    (
        arrows_are_those_of_the_picture,
        "names over TCP",
        lambda o: policy(o, "names")["egress"][0]["ports"].pop(),
    ),
    (
        arrows_are_those_of_the_picture,
        "any caller",
        lambda o: (
            policy(o, "crypto-svc")["ingress"][0].update({"from": [EVERYBODY]})
            or policy(o, "gateway")["egress"].append({"to": [EVERYBODY]})
        ),
    ),
    (
        arrows_are_those_of_the_picture,
        "the inbox is shown to the edge",
        lambda o: policy(o, "gateway")["ingress"][0].pop("ports") and policy(o, "envoy")["egress"][0].pop("ports"),
    ),
    (
        arrows_are_those_of_the_picture,
        "a gateway of another namespace",
        lambda o: policy(o, "reply-svc")["ingress"][0]["from"][0].update(namespaceSelector={}),
    ),
    (arrows_are_those_of_the_picture, "out", lambda o: policy(o, "gateway")["egress"].append({"to": [WORLD]})),
    (
        arrows_are_those_of_the_picture,
        "near addresses",
        lambda o: policy(o, "platform")["egress"][0]["to"][0]["ipBlock"].pop("except"),
    ),
    (
        arrows_are_those_of_the_picture,
        "all of monitoring",
        lambda o: policy(o, "prometheus")["ingress"][0]["from"][0].pop("podSelector"),
    ),
    (arrows_are_those_of_the_picture, "no port", lambda o: policy(o, "prometheus")["ingress"][0].pop("ports")),
)


@pytest.mark.parametrize(
    ("check", "mistake"),
    [(check, mistake) for check, _, mistake in MISTAKES],
    ids=[f"{check.__name__}: {name}" for check, name, _ in MISTAKES],
)
def test_a_check_sees_a_mistake(render: Render, check: Check, mistake: Mistake) -> None:
    """What is made wrong in the objects is found by the check that is for it, which had nothing to say before."""
    objects = render(*EVERYTHING[1])
    assert list(check(objects)) == []
    mistake(objects)
    assert list(check(objects)) != []


def test_every_check_is_shown_a_mistake() -> None:
    """A check that cannot fail checks nothing."""
    assert {check for check, *_ in MISTAKES} == set(CHECKS)


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas_know_their_fields(render: Render, version: str) -> None:
    """A field that is misspelt, of a wrong type, or of another version, is found."""
    for wrong in ({"minReadySecond": 1}, {"replicas": "two"}):
        objects = render("dev")
        find(objects, "Deployment", "gateway")["spec"].update(wrong)
        assert list(problems_of_schemas(objects, version)) != []
    objects = [{"apiVersion": "autoscaling/v2beta1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"}}]
    assert list(problems_of_schemas(objects, version)) != []


def test_the_readme_tells_who_is_told_what() -> None:
    """Its table of Secrets has those of production, and names for each whoever is given it."""
    for page in PAGES:
        told = {name: set(row[2].split(", ")) for row in table(page, "Secret") for name in code(row[0])}
        assert told == {name: who - {"simulator"} for name, who in KNOWN_TO.items() if name != "postgres"}


def test_what_the_readme_says_to_type_makes_the_secrets_of_its_table(tmp_path: Path) -> None:
    """kubectl makes each Secret, with all its keys, of the files that an operator has."""
    (typed,) = [
        block for block in re.findall(r"```sh\n(.*?)```", PAGES[0].read_text(), re.DOTALL) if "wecom-callback" in block
    ]
    for name in ("token", "aeskey", "secret", "gateway.url", "nlp.url", "reply.url"):
        (tmp_path / name).write_text(name)
    certificate, key = development_certificate(tmp_path)
    certificate.rename(tmp_path / "fullchain.pem")
    key.rename(tmp_path / "key.pem")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    asked = 'kubectl() { test "$1" != create || .venv/bin/kubectl "$@" --dry-run=client -o json; }\n'
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AI_ASSISTANT_HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-ec", asked + typed], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = {
        secret["metadata"]["name"]: set(secret["data"])
        for secret in map(json.loads, re.findall(r"^{.*?^}", done.stdout, re.DOTALL | re.MULTILINE))
    }
    assert made | {"callback-keys": {"crypto-keys.json"}} == documented_secrets()


def test_the_readme_lists_every_component() -> None:
    """Each folder of components/ and overlays/ is explained, and tried in a combination above."""
    there = {folder.name for folder in (KUBERNETES / "components").iterdir()}
    for page in PAGES:
        listed = {name for row in table(page, table_of_components(page)) for name in code(row[0])}
        assert listed == there
    assert {component for one in COMBINATIONS for component in one[1:]} | {"postgres"} == there
    assert {folder.name for folder in (KUBERNETES / "overlays").iterdir()} == OPTIONAL.keys()


def table_of_components(page: Path) -> str:
    return {"README.md": "Component", "README.zh-CN.md": "组件"}[page.name]
