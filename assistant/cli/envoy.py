"""Envoy's configuration, and the certificate of a development machine."""

import datetime
import ipaddress
import json
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from assistant import ports, tls, tracing
from assistant.cli.addresses import reachable
from assistant.cli.files import write_private
from assistant.errors import InvalidSetting
from assistant.settings import Address, Settings, home

TEMPLATES = Path(__file__).resolve().parents[2] / "deploy" / "envoy"

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - the platforms call from outside; this is the door for them
_LIFETIME = datetime.timedelta(days=365)
_RENEWED_BEFORE = datetime.timedelta(days=30)


def _at(host: str, port: int) -> Callable[[], Address]:
    return lambda: Address(f"{host}:{ports.moved(port)}")


class EdgeSettings(Settings, frozen=True, kw_only=True):
    """Section `edge`."""

    http: Annotated[Address, Meta(description="where Envoy listens for HTTP")] = msgspec.field(
        default_factory=_at(_EVERYWHERE, ports.EDGE_HTTP)
    )
    https: Annotated[Address, Meta(description="where Envoy listens for HTTPS")] = msgspec.field(
        default_factory=_at(_EVERYWHERE, ports.EDGE_HTTPS)
    )
    admin: Annotated[Address, Meta(description="Envoy's own admin page; never to be reached from outside")] = (
        msgspec.field(default_factory=_at("127.0.0.1", ports.ENVOY_ADMIN))
    )
    metrics: Annotated[
        Address | None,
        Meta(description="where Prometheus finds Envoy's metrics, and nothing else; by default only on the admin page"),
    ] = None
    mesh: Annotated[
        Address, Meta(description="where operators reach every service by mutual TLS, if `tls` is configured")
    ] = msgspec.field(default_factory=_at("127.0.0.1", ports.EDGE_MESH))
    profile: Annotated[
        Literal["development", "production"],
        Meta(description="production: HTTP answers /health, and sends all else to HTTPS; callers are limited"),
    ] = "development"
    public_url: Annotated[
        Annotated[str, Meta(pattern=r"^https?://[^/?#\s]+$")] | None,
        Meta(description="how the world reaches the edge, such as https://bot.example.com; `doctor` looks at it"),
    ] = None
    redirect_port: Annotated[
        int, Meta(ge=1, le=65535, description="port of HTTPS as the world sees it, where production sends HTTP")
    ] = 443
    source_limit_per_s: Annotated[
        int,
        Meta(ge=1, description="requests a second that one address may send in production; above it, 429"),
    ] = 500
    trusted_hops: Annotated[
        int,
        Meta(
            ge=0,
            le=10,
            description="proxies in front of Envoy, each of which adds the address of its caller to X-Forwarded-For "
            "and is believed; with too many, callers can claim any address",
        ),
    ] = 0
    max_memory_mb: Annotated[
        int, Meta(ge=64, description="megabytes for Envoy's heap; near it new requests, then connections, are refused")
    ] = 1024
    certificate: Annotated[
        Path | None, Meta(description="PEM file with the certificate and its chain; by default a self-signed one")
    ] = None
    private_key: Annotated[Path | None, Meta(description="PEM file with the certificate's key")] = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together: set both or neither")


@dataclass(frozen=True)
class Mesh:
    """What the mesh listener needs to know."""

    certificates: Path
    """The folder with a folder for each process."""
    services: Mapping[str, Address]
    """Where each service takes calls by gRPC, by the name of its process."""


@dataclass(frozen=True)
class Collector:
    """Where Envoy sends its spans, as OpenTelemetry's variables say."""

    url: str
    ratio: float
    """The share of requests to trace, 0 to 1."""
    headers: Mapping[str, str]
    authorities: Path | None
    """Of a collector with TLS: whose certificates it may show. None: the public ones."""

    @classmethod
    def configured(cls, environ: Mapping[str, str] = os.environ) -> "Collector | None":
        """None while tracing is off. Raises InvalidSetting."""
        if not tracing.is_wanted(environ):
            return None
        pairs = (pair.partition("=") for pair in environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",") if pair)
        given = environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE")
        return cls(
            environ[tracing.ENDPOINT].rstrip("/") + "/v1/traces",
            tracing.sampled_ratio(environ),
            {name.strip(): unquote(value.strip()) for name, _, value in pairs},
            Path(given) if given else None,
        )


def configure(
    folder: Path,
    settings: EdgeSettings,
    gateway: Address,
    gateway_admin: Address,
    certificate: Path,
    key: Path,
    mesh: Mesh | None = None,
    collector: Collector | None = None,
) -> Path:
    """Write Envoy's configuration to a folder: `envoy.yaml`, and the files that it names. The path of the first."""
    values: dict[str, str | int] = {
        "edge_secret": str(_certificate_secret(folder, "edge", certificate, key)),
        "max_heap_bytes": settings.max_memory_mb << 20,
        "production_percent": 100 if settings.profile == "production" else 0,
        "redirect_port": settings.redirect_port,
        "trusted_hops": settings.trusted_hops,
        "source_limit": settings.source_limit_per_s,
        "source_burst": 2 * settings.source_limit_per_s,
        **_listening("admin", settings.admin),
        **_listening("http", settings.http),
        **_listening("https", settings.https),
        "gateway_host": reachable(gateway).host,  # may stand for several, and for others tomorrow
        "gateway_port": gateway.port,
        "gateway_admin_port": gateway_admin.port,
    }
    listener, clusters = ("", "") if mesh is None else _mesh(folder, settings, mesh)
    metrics = "" if settings.metrics is None else _filled("metrics.yaml", _listening("metrics", settings.metrics))
    parts = {"mesh_listener": listener, "mesh_clusters": clusters, "metrics_listener": metrics, **_tracing(collector)}
    file = folder / "envoy.yaml"
    write_private(file, _filled("envoy.yaml", values, **parts))
    return file


def _mesh(folder: Path, settings: EdgeSettings, mesh: Mesh) -> tuple[str, str]:
    """The mesh listener, and a cluster for each service."""
    own = mesh.certificates / "mesh"
    secrets = {
        "mesh_secret": str(_certificate_secret(folder, "mesh", own / tls.CERTIFICATE, own / tls.KEY)),
        "authorities_secret": str(_authorities_secret(folder, own / tls.AUTHORITIES)),
    }
    clusters = [
        _filled(
            "service.yaml",
            {
                **secrets,
                "name": "inbox" if name == "gateway" else name,  # the cluster `gateway` is where callbacks go
                "host": reachable(address).host,
                "port": address.port,
                "server": tls.host(name),
                "identity": tls.uri(name),
            },
        )
        for name, address in mesh.services.items()
    ]
    listening = _listening("mesh", settings.mesh)
    return _filled("mesh.yaml", {**secrets, **listening, "operator": tls.uri("operator")}), "\n".join(clusters)


def _tracing(collector: Collector | None) -> dict[str, str]:
    """What makes the edge trace: nothing while tracing is off."""
    if collector is None:
        return {"tracing": "", "untraced": "", "collector_cluster": ""}
    where = urlsplit(collector.url)
    headers = [{"header": {"key": name, "value": value}} for name, value in collector.headers.items()]
    told: dict[str, str | float] = {"url": collector.url, "percent": 100 * collector.ratio}
    leads_to: dict[str, str | float] = {
        "host": where.hostname or "",
        "port": where.port or (443 if where.scheme == "https" else 80),
    }
    never: dict[str, dict[str, int]] = {"client_sampling": {}, "random_sampling": {}, "overall_sampling": {}}
    return {
        "tracing": _filled("tracing.yaml", told, headers=json.dumps(headers)),
        "untraced": f"                          tracing: {json.dumps(never)}",
        "collector_cluster": _filled("collector.yaml", leads_to, transport=json.dumps(_transport(collector))),
    }


def _transport(collector: Collector) -> dict[str, Any]:
    """Plaintext or TLS, as the collector's address says."""
    where = urlsplit(collector.url)
    sockets = "type.googleapis.com/envoy.extensions.transport_sockets"
    if where.scheme == "http":
        plain = {"@type": f"{sockets}.raw_buffer.v3.RawBuffer"}
        return {"name": "envoy.transport_sockets.raw_buffer", "typed_config": plain}
    import certifi  # comes with what tracing needs; the services, too, trust what it lists

    named = [{"san_type": "DNS", "matcher": {"exact": where.hostname}}]
    trusted = {"filename": str(collector.authorities or certifi.where())}
    validation = {"trusted_ca": trusted, "match_typed_subject_alt_names": named}
    context = {
        "@type": f"{sockets}.tls.v3.UpstreamTlsContext",
        "sni": where.hostname,
        "common_tls_context": {"validation_context": validation},
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _filled(template: str, values: Mapping[str, str | float], **parts: str) -> str:
    """A template with its values, and parts that are YAML already."""
    quoted = {name: json.dumps(value) for name, value in values.items()}  # a string of JSON is one of YAML
    return Template((TEMPLATES / template).read_text("utf-8")).substitute(quoted | parts)


def _listening(name: str, address: Address) -> dict[str, str | int]:
    host = socket.gethostbyname(address.host)  # Envoy takes only numbers here
    return {f"{name}_host": host, f"{name}_port": address.port}


def _certificate_secret(folder: Path, name: str, certificate: Path, key: Path) -> Path:
    """A file that tells Envoy where a certificate is, so that it looks again when a file is moved there."""
    files = {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
    watched = {"watched_directory": {"path": str(certificate.parent)}}
    return _secret(folder, name, {"tls_certificate": {**files, **watched}})


def _authorities_secret(folder: Path, file: Path) -> Path:
    trusted = {"trusted_ca": {"filename": str(file)}, "watched_directory": {"path": str(file.parent)}}
    return _secret(folder, "authorities", {"validation_context": trusted})


def _secret(folder: Path, name: str, content: Mapping[str, Any]) -> Path:
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    file = folder / f"envoy-{name}.json"
    write_private(file, json.dumps({"resources": [{"@type": kind, "name": name, **content}]}, indent=2))
    return file


def shown_certificate(settings: EdgeSettings, certificates: Path | None) -> tuple[Path, Path]:
    """What Envoy shows to the world, and its key: what was set, else one of ours, else a self-signed one."""
    if settings.certificate and settings.private_key:
        return settings.certificate, settings.private_key
    if certificates and (certificates / "edge" / tls.CERTIFICATE).exists():
        return certificates / "edge" / tls.CERTIFICATE, certificates / "edge" / tls.KEY
    return development_certificate(home() / "edge")


def check_pair(certificate: Path, key: Path) -> None:
    """Raise InvalidSetting if these are no certificate and its key: Envoy would say nothing, and serve no HTTPS."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        raise InvalidSetting(
            f"{certificate} and {key} are no certificate and its key: {error.reason or 'not PEM'}. Both are to be PEM, "
            "the key without a password"
        ) from None
    except OSError as error:
        who = f"Let user {os.getuid()} read both"
        raise InvalidSetting(f"{certificate} or {key} cannot be read: {error.strerror}. {who}") from None


def development_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for this machine and its key, made when there is none or it ends soon."""
    from cryptography import x509  # half of a second that most commands need not spend
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    now = datetime.datetime.now(datetime.UTC)
    if certificate_file.exists() and key_file.exists():
        kept = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        if kept.not_valid_after_utc - now > _RENEWED_BEFORE:
            return certificate_file, key_file
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ai-assistant development")])
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "::1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    write_private(key_file, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode())
    write_private(certificate_file, certificate.public_bytes(pem).decode())
    return certificate_file, key_file
