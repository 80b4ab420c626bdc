"""Our content as the messages of WeCom's message/send, without recipient. Source: 90236 发送应用消息."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from assistant.api.message.v1.message_pb2 import (
    CARD_ACTION_STYLE_DANGER,
    CARD_ACTION_STYLE_DEFAULT,
    TEXT_FORMAT_MARKDOWN,
    Card,
    CardAction,
    Content,
    Link,
    Location,
    Media,
    Text,
)
from assistant.errors import PlatformRefused
from plugins.channels.wecom import markdown
from plugins.channels.wecom.text import LIMIT_BYTES, shorten, size, split

Message = dict[str, Any]
"""One msgtype and its object."""

_MAX_ARTICLES = 8
_MAX_ROWS = 6
_MAX_JUMPS = 3
_MAX_BUTTONS = 6
_MAX_URL_BYTES = 2048
_STYLES = {CARD_ACTION_STYLE_DEFAULT: 2, CARD_ACTION_STYLE_DANGER: 3}
_PRIMARY = 1


class _Words(str):
    """Plain words, to be joined with their neighbours."""


class _Article(dict[str, str]):
    """A link with a picture, to be joined with its neighbours."""


def messages(contents: Iterable[Content]) -> Iterator[Message]:
    """The messages that say it, in order: neighbouring words and links are joined while they fit.

    Raises PlatformRefused for what WeCom cannot be sent.
    """
    pieces = (piece for content in contents for piece in _pieces(content))
    for kind, group in itertools.groupby(pieces, key=type):
        if kind is _Words:
            yield from (_message("text", content=text) for text in _joined(map(str, group)))
        elif kind is _Article:
            articles = list(group)
            for start in range(0, len(articles), _MAX_ARTICLES):
                yield _message("news", articles=articles[start : start + _MAX_ARTICLES])
        else:
            yield from (piece for piece in group if isinstance(piece, dict))


def _message(kind: str, **fields: object) -> Message:
    return {"msgtype": kind, kind: fields}


def _joined(words: Iterable[str]) -> list[str]:
    texts: list[str] = []
    for text in words:
        if texts and size(joined := f"{texts[-1]}\n{text}") <= LIMIT_BYTES:
            texts[-1] = joined
        else:
            texts += split(text)
    return [text for text in texts if text.strip()]


def _pieces(content: Content) -> Iterator[_Words | _Article | Message]:
    match content.WhichOneof("kind"):
        case "text":
            yield from _text(content.text)
        case "image" | "voice" | "file" as kind:
            yield _media(kind, getattr(content, kind))
        case "video":
            yield _video(content.video)
        case "location":
            yield _Words(_location(content.location))
        case "link":
            yield _link(content.link)
        case "card":
            yield from _card(content.card)
        case kind:
            raise PlatformRefused(f"content of the kind {kind or 'none'} cannot be sent: it is inbound only")


def _text(text: Text) -> Iterator[_Words | Message]:
    """Markdown that needs no marks goes as text, which WeChat shows too; it does not show WeCom's markdown."""
    if text.format != TEXT_FORMAT_MARKDOWN:
        yield _Words(text.text)
        return
    lines = markdown.convert(text.text)
    marked = any(line.marked for line in lines)
    for part in markdown.pack(lines):
        yield _message("markdown", content=part) if marked else _Words(part)


def _media(kind: str, media: Media) -> _Words | Message:
    if media.media_id:
        return _message(kind, media_id=media.media_id)
    if media.url:
        return _Words(f"{media.name}\n{media.url}".strip())
    raise PlatformRefused(f"the {kind} has neither media_id nor url: upload it first with UploadMedia")


def _video(video: Media) -> _Words | Message:
    message = _media("video", video)
    if isinstance(message, dict):
        told = {"title": video.title, "description": video.description}
        message["video"] |= {name: words for name, words in told.items() if words}
    return message


def _location(location: Location) -> str:
    return f"{location.label}\n{location.latitude:.6f}, {location.longitude:.6f}".strip()


def _link(link: Link) -> _Words | _Article | Message:
    """With a picture an article; without one a text card, which needs a description."""
    if size(link.url) > _MAX_URL_BYTES or not link.url.startswith(("http://", "https://")):
        return _Words("\n".join(filter(None, (link.title, link.description, link.url))))
    title = link.title or link.url
    if link.description and not link.image_url:
        return _message("textcard", title=title[:128], description=link.description[:512], url=link.url)
    article = _Article(title=shorten(title, 128), description=shorten(link.description, 512), url=link.url)
    if link.image_url:
        article["picurl"] = link.image_url
    return article


# --- Cards ------------------------------------------------------------------------------------------------


def _card(card: Card) -> Iterator[_Words | Message]:
    """A template card, after the rows that it has no room for.

    A card with nothing to click is said in words: WeCom has no such card.
    """
    buttons = [action for action in card.actions if not action.url]
    jumps = [action for action in card.actions if action.url]
    url = card.url or next((jump.url for jump in jumps), "")
    if len(buttons) > _MAX_BUTTONS:
        raise PlatformRefused(f"a WeCom card has at most {_MAX_BUTTONS} buttons, and this one {len(buttons)}")
    rows = [{"keyname": row.name, "value": row.value} for row in card.fields]
    if not (buttons or url):
        yield _Words("\n".join(filter(None, (card.title, card.description, _told(rows)))))
        return
    # A card with buttons that report has no list of jumps: there they are rows.
    rows += [_jump_row(jump) for jump in (jumps if buttons else jumps[_MAX_JUMPS:])]
    if len(rows) > _MAX_ROWS:
        yield _Words(_told(rows[_MAX_ROWS:]))
    template: Message = {
        "main_title": {"title": card.title, "desc": card.description},
        "horizontal_content_list": rows[:_MAX_ROWS],
    }
    if url:
        template["card_action"] = {"type": 1, "url": url}
    template |= _interaction(card.card_id, buttons) if buttons else _notice(card.image_url, jumps[:_MAX_JUMPS])
    yield {"msgtype": "template_card", "template_card": template}


def _interaction(card_id: str, buttons: list[CardAction]) -> Message:
    return {
        "card_type": "button_interaction",
        "task_id": card_id,
        "button_list": [
            {"text": button.label, "style": _STYLES.get(button.style, _PRIMARY), "key": button.action_id}
            for button in buttons
        ],
    }


def _notice(image_url: str, jumps: list[CardAction]) -> Message:
    jump_list = [{"type": 1, "title": jump.label, "url": jump.url} for jump in jumps]
    if image_url:
        return {"card_type": "news_notice", "card_image": {"url": image_url}, "jump_list": jump_list}
    return {"card_type": "text_notice", "jump_list": jump_list}


def _jump_row(jump: CardAction) -> dict[str, Any]:
    return {"keyname": "🔗", "value": jump.label, "type": 1, "url": jump.url}


def _told(rows: Iterable[dict[str, Any]]) -> str:
    return "\n".join(f"{row['keyname']}: {row['value']} {row.get('url', '')}".rstrip() for row in rows)
