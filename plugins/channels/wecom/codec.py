"""WeCom's decrypted messages and events as ours, and our answers as passive replies.

Source: WeCom developer documentation, 90239 消息格式, 90240 事件格式 and 90241 被动回复消息格式.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any
from xml.etree.ElementTree import Element

from google.protobuf.struct_pb2 import Struct

from assistant import plugin, xml
from assistant.api.message.v1.message_pb2 import (
    CARD_ACTION_STYLE_DANGER,
    CARD_ACTION_STYLE_DEFAULT,
    CONVERSATION_KIND_DIRECT,
    TEXT_FORMAT_MARKDOWN,
    TEXT_FORMAT_PLAIN,
    Account,
    Arrival,
    Card,
    CardClick,
    CardSelection,
    Content,
    Conversation,
    Departure,
    Event,
    InboundMessage,
    Link,
    Location,
    Media,
    MenuClick,
    OtherEvent,
    Scan,
    Text,
)
from assistant.errors import MalformedPayload, ReceiverMismatch
from assistant.plugin import HttpBody
from plugins.channels.wecom import CodecSettings

_DIRECT = Conversation(kind=CONVERSATION_KIND_DIRECT)
_MAX_TEXT_BYTES = 2048
_MAX_ARTICLES = 8
_MAX_ROWS = 6
_MAX_BUTTONS = 6
_MAX_DEPTH = 12
_LAST_SECOND = 253_402_300_799
"""The end of the year 9999, where a Timestamp ends."""


class Codec(plugin.Codec):
    """The messages of one self-built application. Members write to it alone: groups never reach it."""

    reply_limit_s = 5.0
    redelivery_s = 20.0  # three attempts, each cut after 5 s; the pauses between them are not documented
    acknowledgement = HttpBody(b"", "text/plain")

    def __init__(self, account: Account, settings: CodecSettings) -> None:
        self._account = account
        self._settings = settings
        self._from = f"<FromUserName>{_cdata(settings.corpid)}</FromUserName>"

    def parse(self, payload: bytes) -> InboundMessage:
        """Read a message or an event. Events have no id of the platform: theirs is made of what tells them apart."""
        document = _document(payload)
        self._check_receiver(document)
        member = _required(document, "FromUserName")
        kind = _required(document, "MsgType")
        # Filled in, not put together from parts: each part would be copied into the whole.
        message = InboundMessage(account=self._account, conversation=_DIRECT)
        message.conversation.id = message.sender.id = member
        message.sent_at.seconds = _seconds(_required(document, "CreateTime"))
        content = message.content.add()
        if kind == "event":
            message.message_id = _event_id(document)
            content.event.MergeFrom(_event(document))
        else:
            message.message_id = _required(document, "MsgId")
            _MESSAGES.get(kind, _unknown)(document, content)
        return message

    def format(self, message: InboundMessage, content: Sequence[Content]) -> bytes | None:
        """Write a passive reply: one text of at most 2,048 bytes, picture, recording, film or list of links.

        The reply to a click on a card is that card, changed.
        """
        reply = _reply(message, content)
        if reply is None:
            return None
        return (
            f"<xml><ToUserName>{_cdata(message.sender.id)}</ToUserName>{self._from}"
            f"<CreateTime>{message.sent_at.seconds}</CreateTime>{_inner(reply)}</xml>"
        ).encode()

    def _check_receiver(self, document: Element) -> None:
        """Two applications may have been given the same address by mistake."""
        if _required(document, "ToUserName") != self._settings.corpid:
            raise ReceiverMismatch("the message is for another company than the configured corpid")
        agentid = document.findtext("AgentID")  # events of the whole company have none
        if agentid and self._settings.agentid is not None and agentid != str(self._settings.agentid):
            raise ReceiverMismatch(
                "the message is for another application than the configured agentid: "
                "each application needs an account and a callback address of its own"
            )


# --- Reading ----------------------------------------------------------------------------------------------


def _document(payload: bytes) -> Element:
    try:
        return xml.read(payload)
    except xml.NotWellFormed as error:
        raise MalformedPayload(f"the message is not the XML that WeCom sends: {error}") from None


def _required(element: Element, name: str) -> str:
    value = element.findtext(name)
    if not value:
        raise MalformedPayload(f"the message has no {name}")
    return value


def _number(element: Element, name: str, default: str = "") -> float:
    try:
        number = float(element.findtext(name) or default)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise MalformedPayload(f"{name} of the message is not a number")
    return number


def _seconds(seconds: str) -> int:
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) <= 12 and int(seconds) <= _LAST_SECOND):
        raise MalformedPayload("CreateTime of the message is not a number of seconds")
    return int(seconds)


def _child(element: Element, name: str) -> Element:
    child = element.find(name)
    if child is None:
        raise MalformedPayload(f"the message has no {name}")
    return child


# --- Messages (90239) -------------------------------------------------------------------------------------


def _text(document: Element, content: Content) -> None:
    content.text.text = document.findtext("Content", "")
    content.text.format = TEXT_FORMAT_PLAIN


def _image(document: Element, content: Content) -> None:
    content.image.media_id = _required(document, "MediaId")
    content.image.url = document.findtext("PicUrl", "")


def _voice(document: Element, content: Content) -> None:
    content.voice.media_id = _required(document, "MediaId")
    if coding := document.findtext("Format", ""):
        content.voice.media_type = f"audio/{coding.lower()}"


def _video(document: Element, content: Content) -> None:
    content.video.media_id = _required(document, "MediaId")
    content.video.thumbnail_media_id = document.findtext("ThumbMediaId", "")


def _location(document: Element, content: Content) -> None:
    content.location.CopyFrom(_place(document))


def _link(document: Element, content: Content) -> None:
    content.link.title = document.findtext("Title", "")
    content.link.description = document.findtext("Description", "")
    content.link.url = document.findtext("Url", "")
    content.link.image_url = document.findtext("PicUrl", "")


def _unknown(document: Element, content: Content) -> None:
    content.unknown.name = _required(document, "MsgType")


def _place(element: Element) -> Location:
    return Location(
        latitude=_number(element, "Location_X"),
        longitude=_number(element, "Location_Y"),
        scale=_number(element, "Scale", "0"),
        label=element.findtext("Label", ""),
    )


_MESSAGES: Mapping[str, Callable[[Element, Content], None]] = {
    "text": _text,
    "image": _image,
    "voice": _voice,
    "video": _video,
    "location": _location,
    "link": _link,
}


# --- Events (90240) ---------------------------------------------------------------------------------------

_IDENTITY = (
    *("FromUserName", "CreateTime", "Event", "EventKey", "AgentID"),
    *("TaskId", "ChangeType", "UserID", "Id", "BatchJob/JobId", "ApprovalInfo/ThirdNo", "Token"),
)
"""What tells events apart. The platform names the first two, which fall together for events of one second.

Not all fields: one that changed between two attempts would make two events of one.
"""


def _event_id(document: Element) -> str:
    identity = "\n".join(document.findtext(name, "") for name in _IDENTITY)
    return f"event-{sha256(identity.encode()).hexdigest()[:32]}"


def _event(document: Element) -> Event:
    name = _required(document, "Event")
    fields = Struct()
    fields.update(_fields(document))
    return Event(name=name, fields=fields, **_EVENTS.get(name.lower(), _other)(document))


def _fields(element: Element, depth: int = 1) -> dict[str, Any]:
    """Names and values; a list where a name is repeated."""
    if depth > _MAX_DEPTH:
        raise MalformedPayload(f"the message is nested more than {_MAX_DEPTH} deep")
    fields: dict[str, Any] = {}
    for child in element:
        value = _fields(child, depth + 1) if len(child) else child.text or ""
        if child.tag not in fields:
            fields[child.tag] = value
        elif isinstance(fields[child.tag], list):
            fields[child.tag].append(value)
        else:
            fields[child.tag] = [fields[child.tag], value]
    return fields


def _other(_: Element) -> dict[str, Any]:
    return {"other": OtherEvent()}


def _menu_click(document: Element) -> dict[str, Any]:
    return {"menu_click": MenuClick(key=document.findtext("EventKey", ""))}


def _menu_link(document: Element) -> dict[str, Any]:
    return {"menu_click": MenuClick(key=document.findtext("EventKey", ""), opened_url=True)}


def _reported_place(document: Element) -> dict[str, Any]:
    place = Location(
        latitude=_number(document, "Latitude"),
        longitude=_number(document, "Longitude"),
        precision_m=_number(document, "Precision", "0"),
    )
    return {"location": place}


def _chosen_place(document: Element) -> dict[str, Any]:
    return {"location": _place(_child(document, "SendLocationInfo"))}


def _scan(document: Element) -> dict[str, Any]:
    code = _child(document, "ScanCodeInfo")
    scan = Scan(
        kind=code.findtext("ScanType", ""),
        result=code.findtext("ScanResult", ""),
        awaits_reply=_required(document, "Event").lower() == "scancode_waitmsg",
    )
    return {"scan": scan}


def _card_click(document: Element) -> dict[str, Any]:
    click = CardClick(
        card_id=document.findtext("TaskId", ""),
        action_id=document.findtext("EventKey", ""),
        update_token=document.findtext("ResponseCode", ""),
        selections=[
            CardSelection(
                question_id=item.findtext("QuestionKey", ""),
                option_ids=[option.text or "" for option in item.iterfind("OptionIds/OptionId")],
            )
            for item in document.iterfind("SelectedItems/SelectedItem")
        ],
    )
    return {"card_click": click}


_EVENTS: Mapping[str, Callable[[Element], dict[str, Any]]] = {
    "subscribe": lambda _: {"arrival": Arrival(first=True)},
    "enter_agent": lambda _: {"arrival": Arrival(first=False)},
    "unsubscribe": lambda _: {"departure": Departure()},
    "click": _menu_click,
    "view": _menu_link,
    "view_miniprogram": _menu_link,
    "location": _reported_place,
    "location_select": _chosen_place,
    "scancode_push": _scan,
    "scancode_waitmsg": _scan,
    "template_card_event": _card_click,
    "template_card_menu_event": _card_click,
    "taskcard_click": _card_click,
}
_ANSWERED_EVENTS = frozenset(
    {"subscribe", "enter_agent", "location", "click", "view", "view_miniprogram", "scancode_waitmsg"}
)
"""Those that take an ordinary passive reply."""


# --- Passive replies (90241) ------------------------------------------------------------------------------

_STYLES = {CARD_ACTION_STYLE_DEFAULT: 2, CARD_ACTION_STYLE_DANGER: 3}
_PRIMARY = 1


def _reply(message: InboundMessage, content: Sequence[Content]) -> dict[str, Any] | None:
    cause = message.content[0]
    if not cause.HasField("event"):
        return _answer(content)
    if cause.event.card_click.update_token:
        return _changed_card(cause.event.card_click, content)
    return _answer(content) if cause.event.name.lower() in _ANSWERED_EVENTS else None


def _answer(content: Sequence[Content]) -> dict[str, Any] | None:
    match [piece.WhichOneof("kind") for piece in content]:
        case ["text"]:
            return _text_reply(content[0].text)
        case ["image"]:
            return _media_reply("Image", content[0].image)
        case ["voice"]:
            return _media_reply("Voice", content[0].voice)
        case ["video"]:
            video = content[0].video
            return _media_reply("Video", video, Title=video.title, Description=video.description)
        case ["link", *others] if len(others) < _MAX_ARTICLES and set(others) <= {"link"}:
            return _news_reply([piece.link for piece in content])
    return None


def _text_reply(text: Text) -> dict[str, Any] | None:
    """Markdown has no passive form, and a longer text would be cut."""
    fits = 0 < len(text.text.encode()) <= _MAX_TEXT_BYTES
    return {"MsgType": "text", "Content": text.text} if fits and text.format != TEXT_FORMAT_MARKDOWN else None


def _media_reply(name: str, media: Media, **details: str) -> dict[str, Any] | None:
    return {"MsgType": name.lower(), name: {"MediaId": media.media_id} | details} if media.media_id else None


def _news_reply(links: Sequence[Link]) -> dict[str, Any]:
    articles = [
        {"Title": link.title, "Description": link.description, "PicUrl": link.image_url, "Url": link.url}
        for link in links
    ]
    return {"MsgType": "news", "ArticleCount": len(articles), "Articles": {"item": articles}}


def _changed_card(click: CardClick, content: Sequence[Content]) -> dict[str, Any] | None:
    """The clicked card as the member who clicked sees it from now on."""
    if len(content) != 1 or content[0].card.card_id != click.card_id:
        return None
    card = content[0].card
    if len(card.actions) == 1 and not card.actions[0].action_id and not card.actions[0].url:
        return {"MsgType": "update_button", "Button": {"ReplaceName": card.actions[0].label}}
    if not card.actions or len(card.actions) > _MAX_BUTTONS or len(card.fields) > _MAX_ROWS:
        return None
    if any(action.url for action in card.actions):
        return None
    return {"MsgType": "update_template_card", "TemplateCard": _template(card)}


def _template(card: Card) -> dict[str, Any]:
    template: dict[str, Any] = {
        "CardType": "button_interaction",
        "MainTitle": {"Title": card.title, "Desc": card.description},
        "HorizontalContentList": [{"KeyName": row.name, "Value": row.value} for row in card.fields],
        "ButtonList": [
            {"Text": action.label, "Style": _STYLES.get(action.style, _PRIMARY), "Key": action.action_id}
            for action in card.actions
        ],
    }
    if card.url:
        template["CardAction"] = {"Type": 1, "Url": card.url}
    return template


def _inner(fields: Mapping[str, object]) -> str:
    """What stands between the tags of an element with these fields; a list is one element for each value."""
    written = []
    for name, value in fields.items():
        for each in value if isinstance(value, list) else (value,):
            match each:
                case str():
                    text = _cdata(each)
                case dict():
                    text = _inner(each)
                case _:
                    text = str(each)
            written.append(f"<{name}>{text}</{name}>")
    return "".join(written)


_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _cdata(text: str) -> str:
    """Any words, without the few characters that XML cannot say."""
    return f"<![CDATA[{_NOT_XML.sub('', text).replace(']]>', ']]]]><![CDATA[>')}]]>"
