"""Who may use an account, how often, and from where it may be called back: settings that every channel has."""

import ipaddress
from typing import Annotated, ClassVar

from msgspec import Meta

from assistant.settings import Names, Settings

PUBLISHED = "platform"
"""In `callback_sources`: whatever the platform publishes."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Policy(Settings, frozen=True, kw_only=True):
    """A part of each account's settings, for the gateway."""

    tells_departments: ClassVar[bool] = False
    """Whether the platform tells who is in which department: `Sender.departments_of`, `Sender.departments`."""
    publishes_sources: ClassVar[bool] = False
    """Whether the platform publishes where its callbacks come from: `Sender.callback_sources`."""
    ignores_case: ClassVar[bool] = False
    """Whether the platform compares members' ids without regard to case."""

    allow_members: Annotated[
        Names,
        Meta(
            description="ids of members who may use the assistant, with commas between them. "
            "While none of the three lists of `allow` names anything, everybody may who is not denied"
        ),
    ] = Names()
    allow_departments: Annotated[
        Names, Meta(description="ids of departments whose members may, those of the departments below included")
    ] = Names()
    allow_groups: Annotated[Names, Meta(description="ids of group conversations in which everybody may")] = Names()
    deny_members: Annotated[Names, Meta(description="ids of members who may not, whatever else allows them")] = Names()
    deny_departments: Annotated[
        Names, Meta(description="ids of departments whose members may not, those of the departments below included")
    ] = Names()
    deny_groups: Annotated[Names, Meta(description="ids of group conversations in which nobody may")] = Names()
    tell_denied: Annotated[
        bool, Meta(description="whether those who may not are told so, in one sentence; else they get no answer")
    ] = True
    messages_per_minute: Annotated[
        int,
        Meta(
            ge=0,
            le=6_000,
            description="messages that one member may send in a minute to each gateway, in a burst or spread; "
            "above it they are asked for patience. 0: no limit",
        ),
    ] = 0
    callback_sources: Annotated[
        Names,
        Meta(
            description="addresses and ranges that callbacks are accepted from, such as 203.0.113.0/24; "
            "`platform` stands for all that the platform publishes. None: from everywhere"
        ),
    ] = Names()

    def __post_init__(self) -> None:
        if not self.tells_departments and (self.allow_departments or self.deny_departments):
            raise ValueError(
                "allow_departments and deny_departments must be empty: the platform does not tell departments. "
                "Name members or groups instead"
            )
        if self.asks_platform_for_sources and not self.publishes_sources:
            raise ValueError(
                f"callback_sources must not have {PUBLISHED!r}: the platform does not publish its addresses. "
                "Name addresses and ranges instead"
            )
        self.named_sources()

    @property
    def restricts_members(self) -> bool:
        """Whether there is anybody who may not."""
        named = (
            *(self.allow_members, self.allow_departments, self.allow_groups),
            *(self.deny_members, self.deny_departments, self.deny_groups),
        )
        return any(named)

    @property
    def asks_platform_for_sources(self) -> bool:
        """Whether `callback_sources` has `platform`."""
        return PUBLISHED in self.callback_sources.split_up()

    def named_sources(self) -> list[Network]:
        """The addresses and ranges of `callback_sources`. Raises ValueError."""
        return [_network(source) for source in self.callback_sources.split_up() if source != PUBLISHED]


def _network(source: str) -> Network:
    try:
        return ipaddress.ip_network(source)
    except ValueError as error:
        raise ValueError(
            f"callback_sources has {source!r}, which is neither {PUBLISHED!r} nor an address nor a range "
            f"such as 203.0.113.0/24: {error}"
        ) from None
