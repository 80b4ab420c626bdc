"""What an operator can set of nlp_svc."""

from typing import Annotated

from msgspec import Meta, field

from assistant import plugin, ports
from assistant.settings import Address, Settings, home


def _local(port: int) -> str:
    return f"127.0.0.1:{ports.moved(port)}"


class NlpSettings(Settings, frozen=True, kw_only=True):
    """Section `nlp`. Engines and skills have sections of their own: `engines.<name>`, `skills.<name>`."""

    provider: Annotated[str, Meta(description="name of the engine that answers")] = "embedded"
    listen: Annotated[Address, Meta(description="where the NLP and skill services are served")] = field(
        default_factory=lambda: Address(_local(ports.NLP))
    )
    admin: Annotated[Address, Meta(description="where metrics are served")] = field(
        default_factory=lambda: Address(_local(ports.NLP + ports.ADMIN_OFFSET))
    )
    database: Annotated[str, Meta(description="what skills did: sqlite:///… or postgresql://…")] = field(
        default_factory=lambda: f"sqlite:///{home()}/data/nlp.db"
    )
    callers: Annotated[
        str, Meta(description="who may call, by the names in their certificates; without `tls` everybody may")
    ] = "gateway, operator, mesh"
    effects_keep_days: Annotated[
        float, Meta(gt=0, description="days that a repeated use of a skill is answered as the first one was")
    ] = 30.0
    target: Annotated[
        str, Meta(description="where callers reach the NLP service: this one, or any other that speaks the contract")
    ] = field(default_factory=lambda: _local(ports.NLP))
    plaintext: Annotated[
        bool, Meta(description="callers speak plaintext to `target` even with `tls`: it knows no mutual TLS")
    ] = False

    def __post_init__(self) -> None:
        installed = plugin.installed("engines")
        if self.provider not in installed:
            raise ValueError(
                f"provider is {self.provider!r}, which is not installed. Installed: {', '.join(installed)}"
            )
