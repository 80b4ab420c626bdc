"""`certificates`: by which the processes of a mesh know each other."""

import contextlib
import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assistant import tls
from assistant.cli.audit import recorded
from assistant.cli.configuration import Configuration
from assistant.cli.output import json_option, ourselves, print_json, print_table
from assistant.cli.services import SERVICES
from assistant.errors import InvalidSetting
from assistant.settings import home
from assistant.tls import TlsSettings

if TYPE_CHECKING:
    from cryptography import x509

AUTHORITY, EDGE, MESH, OPERATOR = "ca", "edge", "mesh", "operator"
_HERE = ("localhost", "127.0.0.1", "::1")
_WARN_DAYS = 14
"""As the alert CertificateExpires."""


def mesh_host(name: str) -> str:
    """The name under which Envoy's mesh listener knows a service: "crypto_svc" is "crypto.mesh"."""
    return f"{name.removesuffix('_svc')}.{MESH}"


def hosts() -> dict[str, tuple[str, ...]]:
    """Who needs a certificate, and the host names in it. A process is called by none but its own."""
    own: dict[str, tuple[str, ...]] = {service.name: (tls.host(service.name),) for service in SERVICES}
    behind = tuple(mesh_host(service.name) for service in SERVICES)
    return own | {OPERATOR: (), MESH: (*behind, *_HERE), EDGE: _HERE}


def folder_in_use(configuration: Configuration) -> Path:
    """Where certificates are, or will be."""
    return configuration.source.read(TlsSettings, "tls").certificates or home() / "certificates"


@click.group()
def certificates() -> None:
    """Make the certificates with which processes prove to each other who they are."""


@certificates.command("make")
@click.option("--folder", type=click.Path(path_type=Path), help="Where; by default where the configuration says.")
@click.option("--host", "names", multiple=True, help="A public host name for Envoy's certificates; may be repeated.")
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long they are valid.")
@click.option("--renew", is_flag=True, help="Replace all, not only those that are missing or near their end.")
def make(folder: Path | None, names: tuple[str, ...], days: int, renew: bool) -> None:
    """Make what is missing, and renew what ends soon: in the last third of its time.

    The first time this makes an authority as well, in the folder `ca`. Keep its key away from the machines that
    the mesh runs on. Running processes take up new certificates by themselves. Certificates of your own, put
    into the same folders, are left as they are.
    """
    from assistant.cli.authority import Authority, is_ours

    configuration = Configuration.load()
    root = (folder or folder_in_use(configuration)).expanduser().absolute()
    if not (root / AUTHORITY / tls.CERTIFICATE).exists():
        with recorded("certificates.make_authority", folder=str(root / AUTHORITY)):
            Authority.open(root / AUTHORITY)
    authority = Authority.open(root / AUTHORITY)
    lifetime = datetime.timedelta(days=days)
    if datetime.datetime.now(datetime.UTC) + lifetime > authority.certificate.not_valid_after_utc:
        raise InvalidSetting(f"the authority in {root / AUTHORITY} ends before that: give fewer --days, or remove it")
    ours = [name for name in hosts() if is_ours(root / name)]
    due = [name for name in ours if renew or _is_due(root / name / tls.CERTIFICATE, authority)]
    with recorded("certificates.make", names=due, days=days, folder=str(root)) if due else contextlib.nullcontext():
        for name, known in hosts().items():
            if name in due:
                public = names if name in (EDGE, MESH) else ()
                authority.issue(root / name, (*known, *public), tls.uri(name), lifetime)
                click.echo(f"  {name:<12} made, valid for {days} days")
            else:
                click.echo(f"  {name:<12} {'kept' if name in ours else 'left as it is: not made here'}")
    if configuration.source.read(TlsSettings, "tls").certificates != root:
        click.echo(f"Use them: {ourselves()} config set tls.certificates {root}\nThen:     {ourselves()} up")


@certificates.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all certificates: whose they are, and when they end."""
    root = folder_in_use(Configuration.load())
    rows = list(_rows(root, [AUTHORITY, *hosts()]))
    if not rows:
        raise InvalidSetting(f"there are no certificates in {root}. Make them: {ourselves()} certificates make")
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("name", "days_left", "ends_at", "identity", "hosts"))
    for row in rows:
        if row["days_left"] < _WARN_DAYS:
            ends = f"ends in {row['days_left']} days" if row["days_left"] >= 0 else f"ended at {row['ends_at']}"
            click.echo(f"The certificate of {row['name']} {ends}. {_renewal(root, row['name'])}", err=True)


def _renewal(root: Path, name: str) -> str:
    from assistant.cli.authority import is_ours

    if name == AUTHORITY:
        return "Everything is to be made anew with another authority: docs/tls.md"
    return f"Renew it: {ourselves()} certificates make" if is_ours(root / name) else f"Replace it in {root / name}"


def _rows(root: Path, names: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    for name in names:
        if certificate := _read(root / name / tls.CERTIFICATE):
            ends_at = certificate.not_valid_after_utc
            yield {
                "name": name,
                "days_left": (ends_at - now).days,
                "ends_at": ends_at.isoformat(timespec="seconds"),
                "identity": " ".join(_alternative_names(certificate, x509.UniformResourceIdentifier)),
                "hosts": " ".join(map(str, _alternative_names(certificate, x509.DNSName, x509.IPAddress))),
            }


def _alternative_names(certificate: "x509.Certificate", *kinds: "type[x509.GeneralName]") -> list[Any]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name.value for name in names if isinstance(name, kinds)]


def _is_due(file: Path, authority: Any) -> bool:
    certificate = _read(file)
    if certificate is None or not authority.signed(certificate):
        return True
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return datetime.datetime.now(datetime.UTC) > end - (end - begin) / 3


def _read(file: Path) -> "x509.Certificate | None":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"{file} is not a certificate in PEM: {error}") from error
