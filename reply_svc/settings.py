"""What an operator can set of reply_svc."""

from typing import Annotated

from msgspec import Meta, field

from assistant import ports
from assistant.settings import Address, Settings, home


def _local(port: int) -> str:
    return f"127.0.0.1:{ports.moved(port)}"


class ReplySettings(Settings, frozen=True, kw_only=True):
    """Section `reply`. How to call a platform is set per account: `channels.<name>`."""

    listen: Annotated[Address, Meta(description="where the gateway reaches reply_svc")] = field(
        default_factory=lambda: Address(_local(ports.REPLY))
    )
    admin: Annotated[Address, Meta(description="where metrics are served")] = field(
        default_factory=lambda: Address(_local(ports.REPLY + ports.ADMIN_OFFSET))
    )
    database: Annotated[str, Meta(description="where deliveries are kept: sqlite:///… or postgresql://…")] = field(
        default_factory=lambda: f"sqlite:///{home()}/data/reply.db"
    )
    callers: Annotated[
        str, Meta(description="who may call, by the names in their certificates; without `tls` everybody may")
    ] = "gateway, operator, mesh"
    keep_days: Annotated[float, Meta(gt=0, description="days that finished deliveries are kept")] = 7.0
    max_open: Annotated[
        int, Meta(ge=1, description="deliveries waiting at once in this process; above it new ones are refused")
    ] = 100_000
