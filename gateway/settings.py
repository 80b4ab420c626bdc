"""What an operator can set of the gateway."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from assistant import plugin, ports, tls
from assistant.api.message.v1.message_pb2 import Account
from assistant.policy import Policy
from assistant.settings import Address, Settings, Source, home
from assistant.tls import Identity


def _local(port: int) -> str:
    return f"127.0.0.1:{ports.moved(port)}"


class GatewaySettings(Settings, frozen=True, kw_only=True):
    """Section `gateway`."""

    listen: Annotated[Address, Meta(description="where Envoy reaches the gateway")] = msgspec.field(
        default_factory=lambda: Address(_local(ports.GATEWAY))
    )
    admin: Annotated[Address, Meta(description="where metrics are served to operators")] = msgspec.field(
        default_factory=lambda: Address(_local(ports.GATEWAY + ports.ADMIN_OFFSET))
    )
    grpc: Annotated[Address, Meta(description="where operators reach the inbox, by gRPC")] = msgspec.field(
        default_factory=lambda: Address(_local(ports.GATEWAY_GRPC))
    )
    callers: Annotated[
        str,
        Meta(
            description="who may see and retry messages by gRPC, by the names in their certificates; without `tls` "
            "everybody may"
        ),
    ] = "operator, mesh"
    database: Annotated[str, Meta(description="where the inbox is kept: sqlite:///… or postgresql://…")] = (
        msgspec.field(default_factory=lambda: f"sqlite:///{home()}/data/gateway.db")
    )
    crypto_target: Annotated[str, Meta(description="where crypto_svc is reached")] = msgspec.field(
        default_factory=lambda: _local(ports.CRYPTO)
    )
    reply_target: Annotated[str, Meta(description="where reply_svc is reached")] = msgspec.field(
        default_factory=lambda: _local(ports.REPLY)
    )
    multiplex: Annotated[bool, Meta(description="carry calls to other services in batches on one stream")] = True
    passive_budget_s: Annotated[
        float, Meta(gt=0, le=30, description="seconds to hold a callback for its answer; less than the platform waits")
    ] = 4.0
    held_callbacks: Annotated[
        int, Meta(ge=0, le=100_000, description="callbacks held at once; above it answers go out by the platform's API")
    ] = 2_000
    engine_timeout_s: Annotated[
        float, Meta(gt=0, le=300, description="seconds for one answer of the engine, its repetitions included")
    ] = 60.0
    history_turns: Annotated[
        int, Meta(ge=0, le=100, description="earlier messages of a conversation that the engine is shown")
    ] = 10
    keep_days: Annotated[
        float, Meta(gt=0, description="days that answered messages, and with them conversations, are kept")
    ] = 30.0
    locale: Annotated[str, Meta(description="language of answers where the platform does not tell: a BCP 47 tag")] = (
        "zh-CN"
    )


class NlpSettings(Settings, frozen=True, kw_only=True):
    """The part of section `nlp` that is the gateway's business."""

    target: Annotated[str, Meta(description="where the NLP service is reached; any that speaks the contract")] = (
        msgspec.field(default_factory=lambda: _local(ports.NLP))
    )
    plaintext: Annotated[
        bool, Meta(description="speak plaintext to it even with `tls`: for a service that knows no mutual TLS")
    ] = False


class SkillsSettings(Settings, frozen=True, kw_only=True):
    """The part of section `skills` that is the gateway's business."""

    target: Annotated[str, Meta(description="where the skill service is reached; empty: beside our NLP service")] = (
        msgspec.field(default_factory=lambda: _local(ports.NLP))
    )


@dataclass(frozen=True)
class Configuration:
    """All that a gateway is told."""

    gateway: GatewaySettings
    nlp: NlpSettings
    skills: SkillsSettings
    accounts: Mapping[tuple[str, str], Settings]
    """The codec's settings of each account: (channel, account) -> settings."""
    identity: Identity | None = None
    """What it shows to the services that it calls, and to operators. None: plaintext."""
    policies: Mapping[tuple[str, str], Policy] = field(default_factory=dict)
    """Who may use each account: (channel, account) -> policy."""

    @classmethod
    def load(cls) -> "Configuration":
        """Read and check everything. Raises InvalidSetting."""
        source = Source.load()
        accounts = {
            (name, account): settings
            for name, channel in plugin.channels().items()
            for account, settings in source.accounts(channel.codec, name, channel.settings()).items()
        }
        policies = {
            (name, account): policy
            for name, channel in plugin.channels().items()
            for account, policy in source.accounts(channel.policy, name, channel.settings()).items()
        }
        return cls(
            source.read(GatewaySettings, "gateway"),
            source.read(NlpSettings, "nlp", exact=False),
            source.read(SkillsSettings, "skills", exact=False),
            accounts,
            tls.identity(source, "gateway"),
            policies,
        )

    def codecs(self) -> dict[tuple[str, str], plugin.Codec]:
        """The codec of each account."""
        return {
            (channel, account): plugin.load("channels", channel, "codec")(
                Account(channel=channel, name=account), settings
            )
            for (channel, account), settings in self.accounts.items()
        }
