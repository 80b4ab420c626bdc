"""A certificate authority for one mesh: what a development machine or a small installation needs."""

import datetime
import ipaddress
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from assistant.cli.files import write_private
from assistant.errors import InvalidSetting
from assistant.tls import AUTHORITIES, CERTIFICATE, KEY

_LIFETIME = datetime.timedelta(days=3650)
_CLOCKS_DIFFER = datetime.timedelta(days=1)
_DATA = "..data"
"""The link through which Kubernetes, and we, exchange all files of a folder at once."""


@dataclass(frozen=True)
class Authority:
    """Signs certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    @classmethod
    def open(cls, folder: Path) -> "Authority":
        """The one that is kept in a folder; a new one if none is. Raises InvalidSetting if its key is elsewhere."""
        if not (folder / CERTIFICATE).exists():
            _create(folder)
        try:
            key = serialization.load_pem_private_key((folder / KEY).read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidSetting(f"the authority in {folder} cannot sign: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise InvalidSetting(f"the authority in {folder} cannot sign: its key is neither RSA nor of a curve")
        return cls(certificate, key)

    def issue(self, folder: Path, names: Iterable[str], uri: str, lifetime: datetime.timedelta) -> None:
        """Put a new certificate, its key and ours into a folder. It is for both ends of a connection.

        `names` are host names and addresses.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = uri.rpartition("/")[2]
        ours = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _draft(subject, self.certificate.subject, key, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([*map(_name, names), x509.UniformResourceIdentifier(uri)]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(ours, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        write_together(
            folder, {CERTIFICATE: _pem(certificate), KEY: _key_pem(key), AUTHORITIES: _pem(self.certificate)}
        )

    def signed(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate is one of ours."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def is_ours(folder: Path) -> bool:
    """Whether the files in a folder were put there by us, or there are none: others are not to be overwritten.

    Raises InvalidSetting if we may not look.
    """
    try:
        return not (folder / CERTIFICATE).exists() or (folder / _DATA).is_symlink()
    except PermissionError:
        raise InvalidSetting(f"{folder} is not for us to read: let user {os.getuid()} read it and its files") from None


def write_together(folder: Path, files: Mapping[str, str]) -> None:
    """Exchange the files of a folder, all at once: who looks there sees the old ones or the new ones."""
    earlier = [path for path in folder.glob("..*") if path.is_dir() and not path.is_symlink()]
    version = f"..{datetime.datetime.now(datetime.UTC):%Y_%m_%d_%H_%M_%S.%f}"
    for name, text in files.items():
        write_private(folder / version / name, text)
    link = folder / f"{_DATA}_new"
    link.unlink(missing_ok=True)
    link.symlink_to(version)
    link.replace(folder / _DATA)
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"{_DATA}/{name}")
    for path in earlier:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def _create(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ai-assistant mesh")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _draft("ai-assistant mesh", name, key, _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_together(folder, {CERTIFICATE: _pem(certificate), KEY: _key_pem(key)})


def _draft(
    subject: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lifetime: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + lifetime)
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
