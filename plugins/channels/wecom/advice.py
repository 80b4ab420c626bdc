"""What WeCom's error codes mean, for the program and for the operator. Source: 90313 全局错误码."""

import re
from typing import NamedTuple

from assistant.errors import (
    AssistantError,
    PlatformMisconfigured,
    PlatformRefused,
    PlatformThrottled,
    PlatformTokenRejected,
    PlatformUnavailable,
)


class Advice(NamedTuple):
    """What is wrong, a colon, what to do about it."""

    error: type[AssistantError]
    en: str
    zh: str
    retry_after_s: float | None = None
    settings: str = ""
    """Options of `config set` with which an operator mends it, where that is the way."""


BUSY = Advice(PlatformUnavailable, "WeCom is busy: this heals by itself", "企业微信系统繁忙，会自动重试")
CREDENTIALS = Advice(
    PlatformMisconfigured,
    "the secret is wrong, or the app is disabled: copy the Secret of this app again and check the CorpID beside it",
    "Secret 错误或应用已停用：请重新复制该应用的 Secret，并核对企业ID",
    settings="--secret",
)
CORPID = Advice(
    PlatformMisconfigured,
    "the CorpID is wrong: copy it from 我的企业 > 企业信息",
    "企业ID 错误：请在「我的企业 > 企业信息」中重新复制",
    settings="--corpid …",
)
TOKEN = Advice(
    PlatformTokenRejected,
    "the access token was withdrawn; if this does not heal, two systems share one app",
    "access_token 已失效；若持续出现，请检查是否有两个系统共用同一应用",
)
TOKEN_MISSING = Advice(
    PlatformMisconfigured,
    "the request carried no access token or secret: please report this as a bug",
    "请求缺少 access_token 或 secret：请反馈此缺陷",
)
AGENT = Advice(
    PlatformMisconfigured,
    "the agentid is wrong or of another app: use the AgentId shown beside this Secret",
    "agentid 错误或属于其他应用：请使用与该 Secret 同一页面上的 AgentId",
    settings="--agentid …",
)
PERMISSION = Advice(
    PlatformMisconfigured,
    "the app may not use this interface: check its type and permissions",
    "应用没有调用该接口的权限：请检查应用类型与权限",
)
RANGE = Advice(
    PlatformMisconfigured,
    "the recipient is outside the app's permitted range: widen its visible range",
    "接收者不在应用权限范围内：请扩大应用的可见范围",
)
FREQUENCY = Advice(
    PlatformThrottled,
    "WeCom blocks frequent calls for a minute, an hour or until midnight: look for a loop or a wrong secret, "
    "or lift the block with WeCom's self-service tool",
    "调用过于频繁，被限制一分钟、一小时或至零点：请检查是否有循环调用或错误的 Secret，或使用企业微信自助解除工具",
    60.0,
)
PARALLEL = Advice(PlatformThrottled, "too many calls at once: this heals by itself", "并发调用过多，会自动重试", 2.0)
MEMBER = Advice(
    PlatformRefused,
    "the member does not exist or is outside the app's visible range: check the userid and the range",
    "成员不存在或不在应用可见范围内：请检查 userid 与应用的可见范围",
)
RECIPIENT = Advice(
    PlatformRefused,
    "no valid recipient: check the ids and the app's visible range",
    "没有有效的接收者：请检查 ID 与应用的可见范围",
)
MEDIA = Advice(
    PlatformRefused,
    "the media_id is wrong or older than 3 days: upload the file again",
    "media_id 无效或已超过 3 天有效期：请重新上传",
)
CONTENT = Advice(
    PlatformRefused,
    "WeCom does not accept this content: check its type, size and fields",
    "企业微信不接受此内容：请检查其类型、大小与字段",
)
LENGTH = Advice(
    PlatformRefused, "the message is empty or too long: check what was to be sent", "消息为空或过长：请检查待发送的内容"
)
CARD = Advice(
    PlatformRefused,
    "the card's task_id or response_code was used before or is unknown: send a new card",
    "卡片的 task_id 或 response_code 已被使用或不存在：请发送新卡片",
)
GROUP = Advice(
    PlatformRefused,
    "the group or one of its members is unknown: use a group that this app created",
    "群聊或其成员无效：请使用由该应用创建的群聊",
)

WEBHOOK = Advice(
    PlatformMisconfigured,
    "the group robot's webhook is wrong or the robot is disabled: copy its webhook from the group again",
    "群机器人的 webhook 无效或机器人已停用：请在群聊中重新复制 webhook",
)

BY_CODE: dict[int, Advice] = {
    -1: BUSY,
    6000: BUSY,
    40001: TOKEN,  # from gettoken: CREDENTIALS
    40003: MEMBER,
    40004: CONTENT,
    40006: CONTENT,
    40007: MEDIA,
    40008: CONTENT,
    40013: CORPID,
    40014: TOKEN,
    40031: MEMBER,
    40033: Advice(
        PlatformRefused,
        "the text has characters that WeCom forbids",
        "文本中包含企业微信不允许的字符",
    ),
    40035: CONTENT,
    40056: AGENT,
    40057: Advice(
        PlatformMisconfigured,
        "WeCom's check of the callback URL failed: run `ai-assistant-cli doctor --url https://…`, then save it again",
        "企业微信校验回调 URL 失败：请运行 `ai-assistant-cli doctor --url https://…`，解决后重新保存",
    ),
    40058: CONTENT,
    40063: CONTENT,
    40091: Advice(
        PlatformMisconfigured,
        "the secret is of another company: CorpID and Secret must be a pair",
        "Secret 属于其他企业：请使用同一企业的企业ID 与 Secret",
        settings="--corpid … --secret",
    ),
    41001: TOKEN_MISSING,
    41011: TOKEN_MISSING,
    42001: TOKEN,
    42014: CARD,
    42016: CARD,
    43004: Advice(
        PlatformRefused,
        "the member has not followed the WeChat plugin: use the WeCom client, or let the member follow it",
        "成员未关注微信插件：请使用企业微信客户端，或让成员关注",
    ),
    43012: Advice(
        PlatformMisconfigured,
        "a card with buttons needs a callback URL: set it at 接收消息 > 设置API接收",
        "交互卡片需要回调地址：请在「接收消息 > 设置API接收」中配置",
    ),
    44001: CONTENT,
    44004: LENGTH,
    45001: CONTENT,
    45002: LENGTH,
    45007: CONTENT,
    45008: CONTENT,
    45009: FREQUENCY,
    45032: CONTENT,
    45033: PARALLEL,
    45034: CONTENT,
    46004: MEMBER,
    48002: PERMISSION,
    48004: PERMISSION,
    50002: RANGE,
    50003: Advice(
        PlatformMisconfigured, "the app is disabled: enable it in the console", "应用已停用：请在管理后台启用"
    ),
    60011: MEMBER,
    60020: Advice(
        PlatformMisconfigured,
        "our address {ip} is not trusted: add it to the app's 企业可信IP and wait a minute; "
        "a callback URL or a trusted domain must be saved there first",
        "我方出口地址 {ip} 不在可信名单：请将其加入应用的「企业可信IP」并等待一分钟；须先保存回调地址或可信域名",
    ),
    60111: MEMBER,
    60140: CARD,
    81013: RECIPIENT,
    82001: RECIPIENT,
    86001: GROUP,
    86003: GROUP,
    86215: GROUP,
    86216: GROUP,
    86217: GROUP,
    93000: WEBHOOK,
    93004: WEBHOOK,
    95001: Advice(
        PlatformRefused,
        "the customer was sent 5 messages already: wait until the customer writes again",
        "已向该客户发送 5 条消息：请等待客户再次发言",
    ),
    95002: Advice(
        PlatformRefused,
        "the customer wrote last over 48 hours ago: wait until the customer writes again",
        "客户最后一次发言已超过 48 小时：请等待客户再次发言",
    ),
    95018: Advice(
        PlatformRefused,
        "the session with the customer is not the assistant's: take it back to the assistant in the console",
        "当前会话状态不允许由智能助手接待：请在管理后台将会话转回智能助手",
    ),
    301002: AGENT,
    846605: Advice(
        PlatformRefused,
        "the request of the AI bot is unknown: connect again, and check that no second instance uses this bot",
        "智能机器人的请求不存在：请重新连接，并检查是否有第二个实例使用同一机器人",
    ),
    846608: Advice(
        PlatformRefused,
        "the bot's answer took over 6 minutes: shorten it, or answer with a new message",
        "流式回复超过 6 分钟：请缩短回复，或改用主动回复",
    ),
    846609: Advice(
        PlatformRefused,
        "the AI bot is not subscribed: connect again, and check that no second instance uses this bot",
        "智能机器人尚未订阅：请重新连接，并检查是否有第二个实例使用同一机器人",
    ),
    2000002: CORPID,
}

_FROM_TOKEN_REQUEST = {40001: CREDENTIALS}
"""Codes that mean something else in the answer to gettoken."""
_UNKNOWN = Advice(
    PlatformRefused,
    "see https://developer.work.weixin.qq.com/document/path/90313",
    "含义见 https://developer.work.weixin.qq.com/document/path/90313",
)
_EGRESS = re.compile(r"from ip: ([0-9a-fA-F.:]+)")


def failure(errcode: int, errmsg: str, *, token_requested: bool = False) -> AssistantError:
    """The error for an answer of the platform.

    The code alone decides; `errmsg` is only searched for the address from which the platform saw us.
    """
    advice = BY_CODE.get(errcode, _UNKNOWN)
    if token_requested:
        advice = _FROM_TOKEN_REQUEST.get(errcode, advice)
    egress = _EGRESS.search(errmsg)
    ip = egress[1] if egress else "(?)"
    error = advice.error
    if token_requested and error in (PlatformRefused, PlatformTokenRejected):
        error = PlatformMisconfigured  # it says nothing of a message or a token, as none was sent
    message = f"WeCom {errcode}: {advice.en.format(ip=ip)} / {advice.zh.format(ip=ip)}"
    return error(message, retry_after_s=advice.retry_after_s, error_code=str(errcode))
