"""Envoy's configuration, and the certificate of a development machine."""

import datetime
import ipaddress
import json
import socket
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Annotated

import msgspec
from msgspec import Meta

from assistant import ports
from assistant.cli.addresses import reachable
from assistant.cli.files import write_private
from assistant.settings import Address, Settings

TEMPLATE = Path(__file__).resolve().parents[2] / "deploy" / "envoy" / "envoy.yaml"

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
    admin: Annotated[Address, Meta(description="Envoy's own admin page; never make it reachable from outside")] = (
        msgspec.field(default_factory=_at("127.0.0.1", ports.ENVOY_ADMIN))
    )
    certificate: Annotated[
        Path | None, Meta(description="PEM file with the certificate and its chain; by default a self-signed one")
    ] = None
    private_key: Annotated[Path | None, Meta(description="PEM file with the certificate's key")] = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together: set both or neither")


def render(settings: EdgeSettings, gateway: Address, gateway_admin: Address, certificate: Path, key: Path) -> str:
    """Envoy's configuration, as YAML."""
    values: dict[str, str | int] = {"certificate": str(certificate), "private_key": str(key)}
    listeners = {"admin": settings.admin, "http": settings.http, "https": settings.https}
    for name, address in listeners.items():
        values[f"{name}_host"] = socket.gethostbyname(address.host)  # Envoy takes only numbers here
        values[f"{name}_port"] = address.port
    values["gateway_host"] = reachable(gateway).host  # may stand for several, and for others tomorrow
    values["gateway_port"], values["gateway_admin_port"] = gateway.port, gateway_admin.port
    quoted = {name: json.dumps(value) for name, value in values.items()}  # a string of JSON is one of YAML
    return Template(TEMPLATE.read_text("utf-8")).substitute(quoted)


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
