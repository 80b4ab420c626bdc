"""What an app says to a member: by the API (90236) and in the HTTP answer to a callback (90241).

Both come out as one shape, in the API's words, so that a chat can show either.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plugins.channels.wecom.simulator.errors import ApiError

TEXT_BYTES = 2048
"""Longer texts are cut (90236, 90241)."""
CARD_TYPES = ("text_notice", "news_notice", "button_interaction", "vote_interaction", "multiple_interaction")
INTERACTIVE_CARDS = CARD_TYPES[2:]
_TASK_ID = re.compile(r"[0-9A-Za-z_\-@]{1,128}")


@dataclass(frozen=True)
class Message:
    """One message as the member sees it."""

    kind: str
    """The msgtype."""
    text: str
    """What it says, or a short description."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The rest, by the names of the API."""
    note: str = ""
    """What the platform did to it."""


def by_api(request: Mapping[str, Any], has_media: Callable[[str], bool]) -> Message:
    """Read the body of a call of message/send. Raises ApiError with the platform's errcode."""
    kind = request.get("msgtype")
    reader = _BY_API.get(kind) if isinstance(kind, str) else None
    if not isinstance(kind, str) or reader is None:
        raise ApiError(40008, "invalid message type")
    content = request.get(kind)
    if not isinstance(content, Mapping):
        raise ApiError(40058, f"invalid Request Parameter: {kind} missing")
    for name in ("media_id", "thumb_media_id"):
        if name in content and not (isinstance(content[name], str) and has_media(content[name])):
            raise ApiError(40007, "invalid media_id")
    return reader(kind, content)


def in_answer(reply: Mapping[str, Any]) -> Message:
    """Read the decrypted reply. Raises ValueError if it has not the form of one."""
    kind = reply.get("MsgType")
    reader = _IN_ANSWER.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise ValueError(f"the reply has the MsgType {kind!r}, which cannot be answered with")
    try:
        return reader(reply)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the reply of MsgType {kind!r} lacks {error}") from None


def _cut(kind: str, text: str) -> Message:
    encoded = text.encode()
    if len(encoded) <= TEXT_BYTES:
        return Message(kind, text)
    return Message(kind, encoded[:TEXT_BYTES].decode(errors="ignore"), note=f"cut to {TEXT_BYTES} bytes")


# --- By the API -------------------------------------------------------------------------------------------


def _words(content: Mapping[str, Any], name: str, longest: int | None = None) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not value:
        raise ApiError(40058, f"invalid Request Parameter: {name} missing")
    return value if longest is None else value[:longest]


def _text(kind: str, content: Mapping[str, Any]) -> Message:
    text = content.get("content")
    if not isinstance(text, str) or not text:
        raise ApiError(44004, "text content is empty")
    return _cut(kind, text)


def _markdown(kind: str, content: Mapping[str, Any]) -> Message:
    message = _text(kind, content)
    if message.note:
        raise ApiError(45002, "content size out of limit")
    return message


def _media(kind: str, content: Mapping[str, Any]) -> Message:
    return Message(kind, f"[{kind}]", {**content, "media_id": _words(content, "media_id")})


def _textcard(kind: str, content: Mapping[str, Any]) -> Message:
    title, description, url = _words(content, "title"), _words(content, "description", 512), _words(content, "url")
    if len(title) > 128:
        raise ApiError(45001, "title size out of limit")
    if not re.match(r"https?://", url) or len(url.encode()) > 2048:
        raise ApiError(40058, "invalid Request Parameter: url needs a scheme and at most 2048 bytes")
    return Message(kind, f"[{kind}] {title}", {**content, "description": description})


def _news(kind: str, content: Mapping[str, Any]) -> Message:
    articles = content.get("articles")
    if not isinstance(articles, list) or not articles or not all(isinstance(one, Mapping) for one in articles):
        raise ApiError(40058, "invalid Request Parameter: articles missing")
    if len(articles) > 8:
        raise ApiError(45008, "article count out of limit")
    return Message(kind, f"[{kind}] " + "; ".join(_words(one, "title") for one in articles), content)


def _card(kind: str, content: Mapping[str, Any]) -> Message:
    card_type = content.get("card_type")
    if card_type not in CARD_TYPES:
        raise ApiError(40058, "invalid Request Parameter: card_type")
    task_id = content.get("task_id", "")
    needed = card_type in INTERACTIVE_CARDS or "action_menu" in content
    if (needed or task_id) and not (isinstance(task_id, str) and _TASK_ID.fullmatch(task_id)):
        raise ApiError(40058, "invalid Request Parameter: task_id")
    return Message(kind, f"[{kind}] {_card_title(content)}", content)


def _card_title(card: Mapping[str, Any]) -> str:
    title = card.get("main_title")
    return str(title.get("title", "")) if isinstance(title, Mapping) else ""


_BY_API: Mapping[str, Callable[[str, Mapping[str, Any]], Message]] = {
    "text": _text,
    "markdown": _markdown,
    "image": _media,
    "voice": _media,
    "video": _media,
    "file": _media,
    "textcard": _textcard,
    "news": _news,
    "mpnews": _news,
    "template_card": _card,
}


# --- In the answer to a callback --------------------------------------------------------------------------


def _answer_media(name: str) -> Callable[[Mapping[str, Any]], Message]:
    def read(reply: Mapping[str, Any]) -> Message:
        return Message(reply["MsgType"], f"[{reply['MsgType']}]", _api_names({"MediaId": "", **reply[name]}))

    return read


def _answer_news(reply: Mapping[str, Any]) -> Message:
    items = _listed(reply["Articles"]["item"])
    if len(items) != int(reply["ArticleCount"]):
        raise ValueError(f"the reply says ArticleCount {reply['ArticleCount']} and has {len(items)} articles")
    articles = [_api_names(item) for item in items]
    return Message("news", "[news] " + "; ".join(one["title"] for one in articles), {"articles": articles})


def _answer_button(reply: Mapping[str, Any]) -> Message:
    name = reply["Button"]["ReplaceName"]
    return Message("update_button", f"[update_button] {name}", {"replace_name": name})


def _answer_card(reply: Mapping[str, Any]) -> Message:
    card = _api_names(reply["TemplateCard"])
    for name in ("horizontal_content_list", "vertical_content_list", "jump_list", "button_list"):
        if name in card:
            card[name] = _listed(card[name])
    return Message("update_template_card", f"[update_template_card] {_card_title(card)}", {"template_card": card})


_IN_ANSWER: Mapping[str, Callable[[Mapping[str, Any]], Message]] = {
    "text": lambda reply: _cut("text", reply["Content"]),
    "image": _answer_media("Image"),
    "voice": _answer_media("Voice"),
    "video": _answer_media("Video"),
    "news": _answer_news,
    "update_button": _answer_button,
    "update_template_card": _answer_card,
}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _api_names(value: Any) -> Any:
    """The names of XML as the API writes them: MainTitle is main_title there, KeyName keyname, PicUrl picurl."""
    if isinstance(value, list):
        return [_api_names(item) for item in value]
    if isinstance(value, Mapping):
        return {_api_name(name): _api_names(inner) for name, inner in value.items()}
    return value


def _api_name(name: str) -> str:
    joined = ("KeyName", "UserId", "PicUrl")
    return name.lower() if name in joined else re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
