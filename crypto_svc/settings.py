"""The settings of crypto_svc, section `crypto`."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from assistant import ports
from assistant.settings import Address, Settings, home


class CryptoSettings(Settings, frozen=True, kw_only=True):
    """What crypto_svc is told beside the keys of the accounts."""

    listen: Annotated[Address, Meta(description="where the gateway reaches crypto_svc")] = msgspec.field(
        default_factory=lambda: Address(f"127.0.0.1:{ports.moved(ports.CRYPTO)}")
    )
    admin: Annotated[Address, Meta(description="where metrics are served to operators")] = msgspec.field(
        default_factory=lambda: Address(f"127.0.0.1:{ports.moved(ports.CRYPTO + ports.ADMIN_OFFSET)}")
    )
    callers: Annotated[
        str, Meta(description="who may open and seal, by the names in their certificates; without `tls` everybody may")
    ] = "gateway, operator, mesh"
    key_callers: Annotated[str, Meta(description="who may list, add and retire keys, in the same way")] = (
        "operator, mesh"
    )
    max_age_s: Annotated[
        float, Meta(gt=0, le=86_400, description="seconds that a callback may be old, or ahead of our clock")
    ] = 300.0
    keys_file: Annotated[
        Path, Meta(description="where keys are kept that were added while running; readable to the service alone")
    ] = msgspec.field(default_factory=lambda: home() / "data" / "crypto-keys.json")
