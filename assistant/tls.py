"""Mutual TLS between the processes of a mesh.

Each process has a folder of its own, laid out as Kubernetes mounts a secret: `tls.crt` (its certificate and
the chain above it), `tls.key`, and `ca.crt` (the authorities it trusts). Changed files are taken up without a
restart: by a server at the next handshake, by a client with a new connection.
"""

import ssl
import threading
from pathlib import Path
from typing import Annotated, NamedTuple

import grpc
from msgspec import Meta
from prometheus_client import Gauge

from assistant import telemetry
from assistant.errors import InvalidSetting
from assistant.settings import Settings, Source

CERTIFICATE, KEY, AUTHORITIES = "tls.crt", "tls.key", "ca.crt"
TRUST_DOMAIN = "ai-assistant"

_expires = Gauge(
    "assistant_certificate_expires_timestamp_seconds",
    "When the certificate of a process ends, or the authorities above it, in seconds since 1970.",
    ("process",),
)


class TlsSettings(Settings, frozen=True, kw_only=True):
    """Section `tls`."""

    certificates: Annotated[
        Path | None,
        Meta(
            description="folder that holds a folder for each process, named as it is, with tls.crt, tls.key and "
            "ca.crt: with it services speak mutual TLS to each other, without it plaintext"
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.certificates is not None and not self.certificates.is_absolute():
            raise ValueError(f"certificates is {str(self.certificates)!r}: give the whole path, from / on")


def uri(name: str) -> str:
    """How a certificate names the process that it belongs to: a SPIFFE ID."""
    return f"spiffe://{TRUST_DOMAIN}/{name}"


def host(name: str) -> str:
    """The host name in the certificate of a process, wherever it listens: "crypto_svc" is "crypto-svc"."""
    return name.replace("_", "-")


class Certificates(NamedTuple):
    """What a process shows, and whom it trusts; all in PEM."""

    chain: bytes
    key: bytes
    authorities: bytes


class Identity:
    """The certificates of one process, as they are now. Raises InvalidSetting if there are none to begin with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # gRPC asks from threads of its own
        self._seen: object = None
        try:
            self._seen, self._certificates = self._state(), self._read()
            self._tell_end()
        except (OSError, ValueError) as error:
            raise InvalidSetting(
                f"no usable certificates in {folder}: {error}. Make them with `ai-assistant-cli certificates make`, "
                f"or put {CERTIFICATE}, {KEY} and {AUTHORITIES} there"
            ) from None

    def current(self) -> Certificates:
        """The newest that fit together; the same object as long as they are the same."""
        with self._lock:
            try:
                state = self._state()
                if state != self._seen:
                    self._seen = state
                    newest = self._read()
                    if newest != self._certificates:
                        self._certificates = newest
                        self._tell_end()
                        telemetry.info("certificates_changed", folder=str(self._folder))
            except (OSError, ValueError) as error:
                telemetry.warning("certificates_unusable", folder=str(self._folder), detail=str(error))
            return self._certificates

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that asks its callers for certificates."""

        def configuration() -> grpc.ServerCertificateConfiguration:
            """Asked for at each handshake."""
            shown = self.current()
            return grpc.ssl_server_certificate_configuration([(shown.key, shown.chain)], shown.authorities)

        return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=True)

    def _state(self) -> object:
        """Changes whenever a file does."""
        files = [(self._folder / name).stat() for name in (CERTIFICATE, KEY, AUTHORITIES)]
        return [(file.st_ino, file.st_mtime_ns, file.st_size) for file in files]

    def _tell_end(self) -> None:
        from cryptography import x509  # a tenth of a second that who speaks plaintext need not spend

        chain = x509.load_pem_x509_certificates(self._certificates.chain)
        authorities = x509.load_pem_x509_certificates(self._certificates.authorities)
        ends = [certificate.not_valid_after_utc for certificate in chain]
        # Of several authorities the last one counts: an old one stays until all have certificates of the new.
        ends.append(max(authority.not_valid_after_utc for authority in authorities))
        _expires.labels(self._folder.name).set(min(ends).timestamp())

    def _read(self) -> Certificates:
        """Raises OSError, or ValueError if the files do not fit together."""
        chain, key, authorities = (self._folder / name for name in (CERTIFICATE, KEY, AUTHORITIES))
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(chain, key)
            context.load_verify_locations(authorities)
        except ssl.SSLError as error:
            raise ValueError(f"{error.reason or 'not PEM'}: do certificate and key belong together?") from None
        return Certificates(chain.read_bytes(), key.read_bytes(), authorities.read_bytes())


def identity(source: Source, name: str) -> Identity | None:
    """The identity of the process of this name. None: plaintext is spoken here. Raises InvalidSetting."""
    folder = source.read(TlsSettings, "tls").certificates
    return None if folder is None else Identity(folder / name)


def open_channel(
    address: str, certificates: Certificates | None, server: str, options: tuple[tuple[str, int], ...]
) -> grpc.aio.Channel:
    """A channel to an address where the process named `server` should be. Without certificates: plaintext."""
    if certificates is None:
        return grpc.aio.insecure_channel(address, options)
    credentials = grpc.ssl_channel_credentials(certificates.authorities, certificates.key, certificates.chain)
    # Addresses come and go; what counts is which process answers there.
    return grpc.aio.secure_channel(address, credentials, (*options, ("grpc.ssl_target_name_override", host(server))))
