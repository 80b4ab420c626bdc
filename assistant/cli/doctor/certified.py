"""Certificates of the edge and of the processes: their dates, whether they fit, whom they name."""

import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from assistant import tls
from assistant.cli.addresses import reachable
from assistant.cli.certificates import AUTHORITY, EDGE, OPERATOR, hosts
from assistant.cli.doctor.facts import PATIENCE_S, Facts, in_thread, visible
from assistant.cli.envoy import shown_certificate
from assistant.findings import Finding, Remedy, Severity, Text, ok, problem, same, skipped, warning
from assistant.settings import home
from assistant.tls import TlsSettings

if TYPE_CHECKING:
    from cryptography import x509

_READING_S = 10.0
"""The library that reads certificates takes half of a second to load, on a machine with nothing else to do."""
_WARNED_DAYS = 14
"""As the alert CertificateExpires does."""
_EDGE_REFUSED = Text(
    "Platforms refuse to call an address whose certificate is not valid.", "证书无效时，平台会拒绝访问该地址。"
)
_MESH_REFUSED = Text("Processes refuse each other: no message is answered.", "进程之间会互相拒绝连接：消息得不到答复。")
_OPERATOR_REFUSED = Text(
    "Services refuse this command: messages, deliveries and keys can be neither looked at nor changed.",
    "服务会拒绝本命令：无法查看或更改消息、投递和密钥。",
)
_OWN_EDGE = "ai-assistant-cli config set edge --certificate <fullchain.pem> --private-key <key.pem>"
_MAKE = "ai-assistant-cli certificates make"


def days_left(check: str, subject: str, ends_at: datetime.datetime, remedy: Remedy) -> Finding:
    """How long a certificate is valid still."""
    days = (ends_at - datetime.datetime.now(datetime.UTC)).days
    if days < 0:
        title = Text(f"The certificate of {subject} ended {-days} days ago", f"{subject} 的证书已于 {-days} 天前过期")
        return problem(check, title, remedy, subject)
    title = Text(f"The certificate of {subject} ends in {days} days", f"{subject} 的证书还有 {days} 天到期")
    return warning(check, title, remedy, subject) if days < _WARNED_DAYS else ok(check, title, subject)


async def of_the_edge(facts: Facts) -> AsyncIterator[Finding]:
    """What Envoy shows to the world."""
    certificate, key = _edge_files(facts)
    if not visible(certificate):
        title = Text(f"No certificate can be seen at {certificate}", f"看不到证书 {certificate}")
        if facts.edge.certificate and facts.here:
            yield problem("certificate.edge", title, Remedy(_EDGE_REFUSED, command=_OWN_EDGE))
        else:
            yield skipped("certificate.edge", title)
        return
    for finding in await in_thread(lambda: list(_edge(facts, certificate, key)), _READING_S):
        yield finding


def _edge_files(facts: Facts) -> tuple[Path, Path]:
    """Without making one where there is none."""
    own = home() / "edge"
    certificates = facts.settings(TlsSettings, "tls").certificates
    made = certificates and visible(certificates / EDGE / tls.CERTIFICATE)
    if facts.edge.certificate or made:
        return shown_certificate(facts.edge, certificates)
    return own / "certificate.pem", own / "key.pem"


def _edge(facts: Facts, certificate: Path, key: Path) -> Iterator[Finding]:
    from cryptography import x509

    renewed_by_start = certificate.is_relative_to(home() / "edge")
    made_here = "ai-assistant-cli up" if renewed_by_start else _MAKE
    remedy = Remedy(_EDGE_REFUSED, command=_OWN_EDGE if facts.edge.certificate else made_here)
    yield from _pair("certificate.edge", "edge", certificate, key, remedy)
    try:
        shown = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError):
        return  # told above
    if shown.issuer == shown.subject and facts.edge.profile == "production":
        title = Text("The edge shows a self-signed certificate, in production", "生产模式下边缘使用的是自签名证书")
        mend = Text("Get one of a public authority for your domain", "请为你的域名申请公共机构签发的证书")
        yield problem("certificate.edge", title, Remedy(_EDGE_REFUSED, mend, _OWN_EDGE))
    served = _served(facts)
    if served and x509.load_der_x509_certificate(served) != shown:
        title = Text(f"Envoy shows another certificate than {certificate}", f"Envoy 出示的证书与 {certificate} 不同")
        mend = Text("The file was written over: bring it in line", "文件被原地覆盖：请重新应用")
        yield warning("certificate.edge", title, Remedy(_EDGE_REFUSED, mend, "ai-assistant-cli up"))


def _served(facts: Facts) -> bytes:
    """What Envoy shows now. Empty: nothing is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is looked at, not trusted
    where = reachable(facts.edge.https)
    try:
        with (
            socket.create_connection((where.host, where.port), timeout=PATIENCE_S / 2) as plain,
            context.wrap_socket(plain) as connection,
        ):
            return connection.getpeercert(binary_form=True) or b""
    except OSError:
        return b""


async def of_processes(facts: Facts) -> AsyncIterator[Finding]:
    """Those with which the processes know each other."""
    root = facts.settings(TlsSettings, "tls").certificates
    if root is None:
        listening = [replica.grpc.host for replicas in facts.replicas.values() for replica in replicas]
        if all(host in ("127.0.0.1", "::1", "localhost") for host in listening):
            yield ok("certificate.mesh", Text("Services speak plaintext on loopback", "服务间在本机回环上以明文通信"))
        else:
            title = Text("Services speak plaintext across the network", "服务间以明文跨网络通信")
            why = Text(
                "Whoever is in that network can read messages and call services.",
                "同一网络中的任何人都能读取消息、调用服务。",
            )
            yield warning("certificate.mesh", title, Remedy(why, same("docs/tls.md"), _MAKE))
        return
    for finding in await in_thread(lambda: list(_processes(facts, root)), _READING_S):
        yield finding


def _processes(facts: Facts, root: Path) -> Iterator[Finding]:
    from cryptography import x509

    authorities = {}
    for name in (name for name in hosts() if name != EDGE):
        folder = root / name
        refused = _OPERATOR_REFUSED if name == OPERATOR else _MESH_REFUSED
        remedy = Remedy(refused, command=_MAKE)
        if not visible(folder / tls.CERTIFICATE):
            if facts.here:
                title = Text(f"{name} has no certificate in {folder}", f"{folder} 中没有 {name} 的证书")
                yield problem("certificate.mesh", title, remedy, name)
            continue
        yield from _pair("certificate.mesh", name, folder / tls.CERTIFICATE, folder / tls.KEY, remedy)
        try:
            certificate = x509.load_pem_x509_certificate((folder / tls.CERTIFICATE).read_bytes())
            authorities[name] = x509.load_pem_x509_certificates((folder / tls.AUTHORITIES).read_bytes())
        except (OSError, ValueError) as error:
            title = Text(f"{folder} holds no usable certificates", f"{folder} 中的证书无法使用")
            yield problem("certificate.mesh", title, remedy, name, same(str(error)))
            continue
        yield from _trusted(name, certificate, authorities[name])
    yield from _one_authority({name: {each.subject for each in found} for name, found in authorities.items()})
    if visible(root / AUTHORITY / tls.KEY) and facts.edge.profile == "production":
        why = Text("Whoever has it can make a certificate for any process.", "持有者可以为任何进程签发证书。")
        title = Text(
            f"The authority's key is on this machine: {root / AUTHORITY / tls.KEY}",
            f"签发机构的私钥在本机上：{root / AUTHORITY / tls.KEY}",
        )
        mend = Text("Keep it on another machine", "请保存到其他机器")
        yield warning("certificate.authority", title, Remedy(why, mend))


def _trusted(name: str, certificate: "x509.Certificate", authorities: "list[x509.Certificate]") -> Iterator[Finding]:
    from cryptography import x509

    renew = Remedy(_MESH_REFUSED, command=f"{_MAKE} --renew")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    if tls.uri(name) not in uris:
        title = Text(
            f"The certificate of {name} does not name it: {tls.uri(name)} is missing",
            f"{name} 的证书缺少身份 {tls.uri(name)}",
        )
        yield problem("certificate.mesh", title, renew, name)
    if certificate.issuer not in {authority.subject for authority in authorities}:
        title = Text(
            f"The certificate of {name} is not signed by an authority that it trusts itself",
            f"{name} 的证书不是由其 ca.crt 中的机构签发",
        )
        yield problem("certificate.mesh", title, renew, name)
    for authority in authorities:
        found = days_left("certificate.authority", f"{name}/{tls.AUTHORITIES}", authority.not_valid_after_utc, renew)
        if found.severity is not Severity.OK:
            yield found


def _one_authority(known: "dict[str, set[x509.Name]]") -> Iterator[Finding]:
    """Whom all trust."""
    if known and not set.intersection(*known.values()):
        title = Text("The processes trust different authorities", "各进程信任的签发机构不同")
        yield problem("certificate.authority", title, Remedy(_MESH_REFUSED, command=f"{_MAKE} --renew"))


def _pair(check: str, name: str, certificate: Path, key: Path, remedy: Remedy) -> Iterator[Finding]:
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        title = Text(
            f"Certificate and key of {name} cannot be used: {reason}", f"{name} 的证书与私钥无法使用：{reason}"
        )
        yield problem(check, title, remedy, name, same(f"{certificate}, {key}"))
        return
    if key.stat().st_mode & 0o077:
        why = Text("Whoever has the key can pass for this process.", "持有私钥者可以冒充该进程。")
        title = Text(f"Others may read the key of {name}", f"其他用户可以读取 {name} 的私钥")
        yield warning(check, title, Remedy(why, command=f"chmod 600 {key}"), name)
    yield days_left(check, name, min(each.not_valid_after_utc for each in chain), remedy)
