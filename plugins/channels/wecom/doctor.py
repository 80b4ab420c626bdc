"""What goes wrong with a WeCom application, and what mends it.

Source: WeCom developer documentation, 90930 回调配置, 90968 加解密方案说明, 90313 全局错误码, 90664 开发前必读.
"""

import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

from assistant import plugin
from assistant.errors import (
    AssistantError,
    PlatformMisconfigured,
    PlatformRefused,
    PlatformThrottled,
    PlatformTokenRejected,
    PlatformUnavailable,
)
from assistant.findings import NOTHING, Finding, Remedy, Text, problem, same, warning
from plugins.channels.wecom.advice import BY_CODE, CREDENTIALS, Advice

_TOKEN_CHARACTERS = 32
_KEY_CHARACTERS = 43
_KEY_BYTES = 32

_CALLBACK_PAGE = Text("应用管理 > the application > 接收消息 > 设置API接收", "应用管理 > 应用 > 接收消息 > 设置API接收")
_NO_CALLBACKS = Text(
    "Every callback is refused with 401: no message arrives, and the console cannot save the URL.",
    "所有回调都会被拒绝（401）：收不到任何消息，管理后台也无法保存 URL。",
)
_NO_SENDING = Text(
    "Nothing can be sent by WeCom's API: answers that take longer than 4 s are kept, and wait. "
    "Answers within the callback still go.",
    "无法通过接口发送消息：超过 4 秒的答复会保留等待；4 秒内的被动回复不受影响。",
)
_WHY: Mapping[type[AssistantError], Text] = {
    PlatformMisconfigured: _NO_SENDING,
    PlatformThrottled: Text(
        "Answers wait until WeCom lifts the limit. A block for wrong secrets concerns every app behind our address.",
        "在限制解除之前，答复会等待。因 Secret 错误造成的封禁会影响同一出口地址的所有应用。",
    ),
    PlatformTokenRejected: Text(
        "It heals by itself with a new token; if it comes again and again, answers are late.",
        "会自动换取新的 access_token；若反复出现，答复会延迟。",
    ),
    PlatformUnavailable: Text("Answers wait, and go out when WeCom answers again.", "答复会等待，恢复后自动发送。"),
    PlatformRefused: Text(
        "This answer did not reach its member. Others are not concerned.", "该条答复未送达成员，其他答复不受影响。"
    ),
}
_KEYS_DIFFER = ("--token --aeskey", _NO_CALLBACKS)
_CALLBACKS: Mapping[str, tuple[Text, str, Text]] = {
    "SIGNATURE_MISMATCH": (
        Text(
            "The signature is wrong (-40001): Token differs from the console's, or a proxy changes the query: copy the "
            "Token again; a proxy must pass the query on as it is",
            "签名校验失败（-40001）：Token 与后台不一致，或代理改动了查询参数：请重新复制 Token，并确认代理原样转发",
        ),
        *_KEYS_DIFFER,
    ),
    "UNDECRYPTABLE": (
        Text(
            "It cannot be decrypted (-40004, -40007): the EncodingAESKey is not the one beside the Token: copy it "
            "again, all 43 characters, without spaces",
            "解密失败（-40004、-40007）：EncodingAESKey 与 Token 不是同一应用的：请重新复制完整的 43 位，不含空格",
        ),
        *_KEYS_DIFFER,
    ),
    "RECEIVER_MISMATCH": (
        Text(
            "It is for another company (-40005): the CorpID is wrong, or two applications share a path: copy 企业ID "
            "from 我的企业 > 企业信息",
            "receiveid 不一致（-40005）：企业ID 错误，或两个应用共用路径：请在「我的企业 > 企业信息」重新复制",
        ),
        "--corpid …",
        _NO_CALLBACKS,
    ),
    "STALE_CALLBACK": (
        Text(
            "It seems too old: our clock is wrong, or somebody repeats old callbacks: compare the clock, see below",
            "时间戳过旧：本机时钟不准，或有人重放旧回调：请核对时钟（见下文）",
        ),
        "",
        _NO_CALLBACKS,
    ),
    "MALFORMED_ENVELOPE": (
        Text(
            "It has not WeCom's form: somebody else calls, or a proxy changes body or query",
            "不是企业微信的格式：有其他来源在调用，或中间代理改动了请求",
        ),
        "",
        Text(
            "Strangers do no harm. A proxy that does this loses every message.",
            "陌生来源没有影响；若是代理所致，消息会全部丢失。",
        ),
    ),
}
"""Why a callback was refused: what it means, the settings that mend it, why it matters. In brackets the official
library's numbers."""


class Doctor(plugin.Doctor):
    """One self-built application."""

    def examine(self, settings: Mapping[str, Any]) -> Iterator[Finding]:
        """CorpID, Token, EncodingAESKey, Secret and AgentId have the form that the console shows."""
        given = {name: str(value) for name, value in settings.items() if value is not None}
        yield from self._corpid(given.get("corpid"))
        yield from self._token(given.get("token"))
        yield from self._aeskey(given.get("aeskey"))
        yield from self._secret(given.get("secret"))
        yield from self._agentid(given.get("agentid"))
        yield from self._ways_out(given)

    def explain(self, code: str, said: str) -> tuple[Text, Remedy]:
        """By WeCom's errcode, or by the reason of a refused callback."""
        if code in _CALLBACKS:
            means, options, why = _CALLBACKS[code]
            what, mend = _parts(means)
            return what, Remedy(why, mend, self._set(options))
        means = _both(said)
        if not code and (named := re.match(r"WeCom (-?[0-9]+): ", said)):
            code = named[1]
        advice = BY_CODE.get(int(code)) if re.fullmatch(r"-?[0-9]{1,9}", code) else None
        if advice is None:
            return means, Remedy(_WHY[PlatformUnavailable] if not code else _WHY[PlatformRefused])
        if advice.en not in said and CREDENTIALS.en in said:  # a code that means something else for gettoken
            advice = CREDENTIALS
        what, mend = _parts(means or _advised(advice))
        return what, Remedy(_WHY[advice.error], mend, self._set(advice.settings))

    def _set(self, options: str) -> str:
        return f"{self.set_command} {options} && ai-assistant-cli up" if options else ""

    def _wrong(self, name: str, title: Text, why: Text, page: Text, options: str) -> Finding:
        mend = Text(f"Copy it again from the console: {page.en}", f"请在管理后台重新复制：{page.zh}")
        return problem(f"settings.{name}", title, Remedy(why, mend, self._set(options)))

    def _corpid(self, corpid: str | None) -> Iterator[Finding]:
        if corpid is None or not re.fullmatch(r"w[wx][0-9A-Za-z]{1,62}", corpid):
            yield self._wrong(
                "corpid",
                Text(
                    f"CorpID {'is missing' if corpid is None else 'does not begin with ww or wx'}",
                    "企业ID 缺失或格式不对（应以 ww 或 wx 开头）",
                ),
                _NO_CALLBACKS,
                same("我的企业 > 企业信息 > 企业ID"),
                "--corpid …",
            )

    def _token(self, token: str | None) -> Iterator[Finding]:
        if token is None:
            yield self._wrong("token", Text("Token is missing", "缺少 Token"), _NO_CALLBACKS, _CALLBACK_PAGE, "--token")
        elif not re.fullmatch(r"[0-9A-Za-z]{1,32}", token):
            yield self._wrong(
                "token",
                Text(
                    f"Token has {len(token)} characters, or others than letters and digits: the console takes at most "
                    f"{_TOKEN_CHARACTERS}",
                    f"Token 有 {len(token)} 个字符，或含有其他字符：管理后台最多允许 {_TOKEN_CHARACTERS} 位字母数字",
                ),
                _NO_CALLBACKS,
                _CALLBACK_PAGE,
                "--token",
            )
        elif len(token) != _TOKEN_CHARACTERS:
            yield warning(
                "settings.token",
                Text(
                    f"Token has {len(token)} characters, not {_TOKEN_CHARACTERS}",
                    f"Token 有 {len(token)} 个字符，而不是 {_TOKEN_CHARACTERS} 个",
                ),
                Remedy(
                    Text(
                        "If a part was lost in copying, every callback is refused. If it was made up by hand, it is "
                        "easier to guess, and whoever guesses it can forge callbacks.",
                        "若复制时丢失了一部分，所有回调都会被拒绝；若为手工编写，则更容易被猜中而伪造回调。",
                    ),
                    Text(
                        f"Press 随机获取 in the console ({_CALLBACK_PAGE.en}), give it here, then save there",
                        f"在管理后台（{_CALLBACK_PAGE.zh}）点击「随机获取」，先在此处设置，再到后台保存",
                    ),
                    self._set("--token"),
                ),
            )

    def _aeskey(self, aeskey: str | None) -> Iterator[Finding]:
        if aeskey is None:
            title = Text("EncodingAESKey is missing", "缺少 EncodingAESKey")
        elif len(aeskey) != _KEY_CHARACTERS:
            title = Text(
                f"EncodingAESKey has {len(aeskey)} characters, and must have {_KEY_CHARACTERS}",
                f"EncodingAESKey 有 {len(aeskey)} 个字符，应为 {_KEY_CHARACTERS} 个",
            )
        elif not _decodes(aeskey):
            title = Text(
                f"EncodingAESKey does not decode to {_KEY_BYTES} bytes: it has others than letters and digits",
                f"EncodingAESKey 无法解码为 {_KEY_BYTES} 字节：含有字母数字以外的字符",
            )
        else:
            return
        yield self._wrong("aeskey", title, _NO_CALLBACKS, _CALLBACK_PAGE, "--aeskey")

    def _secret(self, secret: str | None) -> Iterator[Finding]:
        if secret is None or re.search(r"\s", secret):
            yield self._wrong(
                "secret",
                Text(
                    f"Secret {'is missing' if secret is None else 'has a space or line break in it'}",
                    "Secret 缺失或含有空白字符",
                ),
                _NO_SENDING,
                Text("应用管理 > the application > Secret > 查看", "应用管理 > 应用 > Secret > 查看"),
                "--secret",
            )

    def _agentid(self, agentid: str | None) -> Iterator[Finding]:
        page = Text("应用管理 > the application > AgentId", "应用管理 > 应用 > AgentId")
        if agentid is None:
            mend = Text(f"Copy it from the console: {page.en}", f"请在管理后台复制：{page.zh}")
            title = Text("AgentId is not set", "未设置 AgentId")
            yield warning("settings.agentid", title, Remedy(_NO_SENDING, mend, self._set("--agentid …")))
        elif not re.fullmatch(r"[1-9][0-9]*", agentid):
            title = Text("AgentId is not a whole number", "AgentId 不是整数")
            yield self._wrong("agentid", title, _NO_SENDING, page, "--agentid …")

    def _ways_out(self, given: Mapping[str, str]) -> Iterator[Finding]:
        base, proxy = given.get("api_base", ""), given.get("proxy", "")
        if base.startswith("http://") and not re.match(r"http://(127\.0\.0\.1|localhost|\[::1\]|simulator)\b", base):
            yield warning(
                "settings.api_base",
                Text("api_base is HTTP, not HTTPS", "api_base 使用 HTTP 而不是 HTTPS"),
                Remedy(
                    Text("The Secret travels in clear text.", "Secret 会以明文传输。"),
                    command=self._set("--api-base https://qyapi.weixin.qq.com"),
                ),
            )
        if proxy and not re.fullmatch(r"https?://\S+", proxy):
            yield problem(
                "settings.proxy",
                Text("proxy is not the URL of an HTTP proxy", "proxy 不是 HTTP 代理的地址"),
                Remedy(_NO_SENDING, command=self._set("--proxy http://<host>:<port>")),
            )


def _decodes(aeskey: str) -> bool:
    """The spare bits of the last character may be set: the console sets them."""
    try:
        return len(binascii.a2b_base64(aeskey + "=", strict_mode=False)) == _KEY_BYTES and bool(
            re.fullmatch(r"[A-Za-z0-9+/]+", aeskey)
        )
    except binascii.Error:
        return False


def _both(said: str) -> Text:
    """What `advice.failure` and `Api` wrote in two languages, each for itself."""
    en, _, zh = said.partition(" / ")
    return Text(en, zh or en)


def _advised(advice: Advice) -> Text:
    return Text(advice.en.replace("{ip}", "(?)"), advice.zh.replace("{ip}", "(?)"))


def _parts(means: Text) -> tuple[Text, Text]:
    """What is wrong, and what to do: the last colon stands between them."""
    en, _, do_en = means.en.rpartition(": ")
    zh, _, do_zh = means.zh.rpartition("：")
    return (Text(en, zh), Text(do_en[:1].upper() + do_en[1:], do_zh)) if en and zh else (means, NOTHING)
