"""WeCom (企业微信): a self-built application (自建应用) that members write to.

Source of the rules: WeCom developer documentation, 90930 回调配置, 90968 加解密方案说明 and 90665 基本概念介绍.
"""

import re
from typing import Annotated

from msgspec import Meta

from assistant.plugin import Channel
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


manifest = Channel(
    name="wecom",
    title={"en": "WeCom", "zh-CN": "企业微信"},
    codec=CodecSettings,
    crypto=CryptoSettings,
    sender=SenderSettings,
    policy=Policy,
    tried_first=True,
)
