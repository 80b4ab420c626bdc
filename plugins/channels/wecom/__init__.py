"""WeCom (企业微信): a self-built application (自建应用) that members write to.

Source of the rules: WeCom developer documentation, 90930 回调配置, 90968 加解密方案说明 and 90665 基本概念介绍.
"""

import re
import secrets
import string
from typing import Annotated

from msgspec import Meta

from assistant.plugin import Channel, KeyChange
from assistant.policy import Policy as ChannelPolicy
from assistant.settings import Secret, Settings

API_BASE = "https://qyapi.weixin.qq.com"

CorpId = Annotated[
    str,
    Meta(
        pattern=r"^w[wx][0-9A-Za-z]{1,62}$",
        description='id of the company, "ww…" or "wx…": console, 我的企业 > 企业信息 > 企业ID',
    ),
]
AgentId = Annotated[
    Annotated[int, Meta(ge=1)] | None,
    Meta(
        description="id of the application, a whole number: console, 应用管理 > the application > AgentId. "
        "Needed to send messages; without it only answers within the callback are possible",
    ),
]


class CodecSettings(Settings, frozen=True, kw_only=True):
    """What the gateway knows of an account: for whom its messages must be."""

    corpid: CorpId
    agentid: AgentId = None


class CryptoSettings(Settings, frozen=True, kw_only=True):
    """What crypto_svc knows of an account: the keys of its callback."""

    corpid: CorpId
    token: Annotated[Secret, Meta(description="Token: console, the application > 接收消息 > 设置API接收")]
    aeskey: Annotated[Secret, Meta(description="EncodingAESKey, 43 characters: on the same page as the Token")]

    def __post_init__(self) -> None:
        check_key(self.token, self.aeskey)


class SenderSettings(Settings, frozen=True, kw_only=True):
    """What reply_svc knows of an account: how to call the platform."""

    corpid: CorpId
    secret: Annotated[Secret, Meta(description="Secret: console, 应用管理 > the application > Secret")]
    agentid: AgentId = None
    api_base: Annotated[
        str, Meta(pattern=r"^https?://[^/]+$", description="where the platform's API answers: scheme and host")
    ] = API_BASE
    proxy: Annotated[
        str | None,
        Meta(description="HTTP proxy on the way to the platform, such as http://10.0.0.1:3128; its address is trusted"),
    ] = None


class Policy(ChannelPolicy, frozen=True, kw_only=True):
    """What WeCom makes possible (90196 读取成员, 95350 获取子部门ID列表, 92521 获取企业微信服务器的IP段)."""

    tells_departments = True
    publishes_sources = True
    ignores_case = True  # of a userid: 90196

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("allow_departments", "deny_departments"):
            for department in getattr(self, name).split_up():
                if not department.isdecimal():
                    raise ValueError(
                        f"{name} has {department!r}, and the id of a department is a number: "
                        "console, 通讯录 > the department > ⋯ shows it as 部门ID"
                    )


def check_key(token: str, aeskey: str) -> None:
    """Raises ValueError, naming the fix, for a Token or an EncodingAESKey that the console cannot have shown.

    The console makes Tokens of up to 32 letters and digits, but the documentation gives no rule.
    """
    if not re.fullmatch(r"[!-~]{1,64}", token):
        raise ValueError("token must be 1 to 64 visible ASCII characters: copy the Token from the console again")
    if not re.fullmatch(r"[A-Za-z0-9+/]{43}", aeskey):
        raise ValueError(
            f"aeskey must be 43 letters and digits, and has {len(aeskey)} characters: "
            "copy the EncodingAESKey from the console again, whole and without spaces"
        )


_TOKEN_CHARACTERS = 32
_LETTERS_AND_DIGITS = string.ascii_letters + string.digits
_LAST_CHARACTERS = "AEIMQUYcgkosw048"
"""The 43rd character carries four bits. The console sets the two others as well, which some decoders refuse."""


def new_key() -> dict[str, str]:
    """A Token and an EncodingAESKey as the console's 随机获取 makes them: letters and digits."""
    token = "".join(secrets.choice(_LETTERS_AND_DIGITS) for _ in range(_TOKEN_CHARACTERS))
    aeskey = "".join(secrets.choice(_LETTERS_AND_DIGITS) for _ in range(42)) + secrets.choice(_LAST_CHARACTERS)
    return {"token": token, "aeskey": aeskey}


_KEY_CHANGE = KeyChange(
    make=new_key,
    steps={
        "en": (
            "Open https://work.weixin.qq.com as an administrator: 应用管理 > the application > 接收消息 > 设置API接收.",
            "Replace Token and EncodingAESKey by the new ones. Leave the URL as it is.",
            "Press 保存. WeCom calls the URL with the new key at once, and saves it only if the answer is right; from "
            "then on it uses no other. If it says 「openapi回调地址请求不通过」, the old key stays in use and nothing "
            "is lost: look at the logs of gateway and crypto_svc.",
        ),
        "zh-CN": (
            "以管理员身份打开 https://work.weixin.qq.com：应用管理 > 该应用 > 接收消息 > 设置API接收。",
            "把 Token 和 EncodingAESKey 换成新的，URL 保持不变。",
            "点击「保存」。企业微信会立即用新密钥请求该 URL，回应正确才会保存，此后只使用新密钥。"
            "如果提示「openapi回调地址请求不通过」，旧密钥继续使用，不会丢消息：请查看 gateway 和 crypto_svc 的日志。",
        ),
    },
    simulated="/simulator/key",
)


manifest = Channel(
    name="wecom",
    title={"en": "WeCom", "zh-CN": "企业微信"},
    codec=CodecSettings,
    crypto=CryptoSettings,
    sender=SenderSettings,
    policy=Policy,
    key_change=_KEY_CHANGE,
    tried_first=True,
)
