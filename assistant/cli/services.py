"""The services of a mesh, in one table: what runs, where it listens, what it may know."""

from dataclasses import dataclass

from assistant import ports


@dataclass(frozen=True)
class Service:
    """One of our own processes."""

    name: str
    """Of the process and of its package: `python -m <name>`."""
    section: str
    """Its own section of the configuration."""
    port: int
    """Where it listens by default, unmoved."""
    parts: tuple[str, ...]
    """The parts of an account's settings that it is given, and no others: the facet of channels that it loads."""
    shared: tuple[str, ...] = ()
    """What it is given besides its own section: whole sections, or `section.key`."""
    grpc_port: int | None = None
    """Where it takes calls by gRPC by default, unmoved. None: where it listens."""
    schema: str = ""
    """Where the migrations of its database are declared. Empty: it has none."""


SERVICES = (
    Service("crypto_svc", "crypto", ports.CRYPTO, parts=("crypto",)),
    Service("nlp_svc", "nlp", ports.NLP, parts=(), shared=("engines", "skills"), schema="nlp_svc.effects:MIGRATIONS"),
    Service("reply_svc", "reply", ports.REPLY, parts=("sender",), schema="reply_svc.outbox:Outbox.migrations"),
    Service(
        "gateway",
        "gateway",
        ports.GATEWAY,
        parts=("codec", "policy"),
        shared=("nlp.target", "nlp.plaintext", "skills.target"),
        grpc_port=ports.GATEWAY_GRPC,
        schema="gateway.inbox:MIGRATIONS",
    ),
)
"""In the order in which their readiness is waited for: callees first."""


def service(name: str) -> Service:
    """The service of this name."""
    return next(service for service in SERVICES if service.name == name)
