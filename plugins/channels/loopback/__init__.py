"""Loopback: a platform of our own, harmless and small. The template of a channel; see README.md."""

import base64
import re
import secrets
from typing import Annotated

import msgspec
from msgspec import Meta

from assistant import ports
from assistant.plugin import Channel, KeyChange
from assistant.settings import Secret, Settings

Company = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$", description="name of the company on the platform")]


class CodecSettings(Settings, frozen=True, kw_only=True):
    """What the gateway knows of an account."""

    company: Company


class CryptoSettings(Settings, frozen=True, kw_only=True):
    """What crypto_svc knows of an account: the keys of its callback."""

    company: Company
    token: Annotated[Secret, Meta(description="signs callbacks and answers; 16 to 64 letters and digits")]
    aeskey: Annotated[Secret, Meta(description="encrypts them; 32 bytes in base64")]

    def __post_init__(self) -> None:
        check_key(self.token, self.aeskey)


class SenderSettings(Settings, frozen=True, kw_only=True):
    """What reply_svc knows of an account: how to call the platform."""

    secret: Annotated[Secret, Meta(description="is exchanged for access tokens")]
    api_base: Annotated[
        str, Meta(pattern=r"^https?://[^/]+$", description="where the platform's API answers: scheme and host")
    ] = msgspec.field(default_factory=lambda: f"http://127.0.0.1:{ports.moved(ports.SIMULATOR)}")


def check_key(token: str, aeskey: str) -> None:
    """Raises ValueError, naming the fix, for a token or an aeskey that cannot be one."""
    if not re.fullmatch("[A-Za-z0-9]{16,64}", token):
        raise ValueError("token must be 16 to 64 letters and digits, such as the output of: openssl rand -hex 16")
    try:
        size_bytes = len(base64.b64decode(aeskey, validate=True))
    except ValueError:
        size_bytes = 0
    if size_bytes != 32:
        raise ValueError("aeskey must be 32 bytes in base64, such as the output of: openssl rand -base64 32")


def new_key() -> dict[str, str]:
    """A token and an aeskey, random."""
    return {"token": secrets.token_hex(16), "aeskey": base64.b64encode(secrets.token_bytes(32)).decode()}


manifest = Channel(
    name="loopback",
    title={"en": "Loopback", "zh-CN": "回环"},
    codec=CodecSettings,
    crypto=CryptoSettings,
    sender=SenderSettings,
    key_change=KeyChange(
        make=new_key,
        steps={
            "en": ("Give the new token and aeskey to whatever plays the platform.",),
            "zh-CN": ("把新的 token 和 aeskey 交给扮演平台的一方。",),
        },
    ),
)
