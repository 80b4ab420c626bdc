"""The platform's messages as ours, and our answers as its.

A message is JSON: `{"id", "company", "member", "sent_at", "kind": "text", "text"}`, with `"group"` if it was said
in one. Other kinds: `"image"` with `"media_id"`, and the events `"joined"` and `"left"`.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from assistant import plugin
from assistant.api.message.v1.message_pb2 import (
    CONVERSATION_KIND_DIRECT,
    CONVERSATION_KIND_GROUP,
    TEXT_FORMAT_MARKDOWN,
    TEXT_FORMAT_PLAIN,
    Account,
    Arrival,
    Content,
    Conversation,
    Departure,
    Event,
    InboundMessage,
    Media,
    Member,
    Text,
    Unknown,
)
from assistant.errors import MalformedPayload, ReceiverMismatch
from assistant.plugin import HttpBody
from plugins.channels.loopback import CodecSettings

_LAST_SECOND = 253_402_300_799
"""The end of the year 9999, where a Timestamp ends."""


class Message(msgspec.Struct, frozen=True):
    """What a callback brings."""

    id: str
    company: str
    member: str
    kind: str
    sent_at: int
    """Unix time in seconds."""
    group: str = ""
    text: str = ""
    media_id: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What is said in the HTTP answer."""

    text: str
    markdown: bool


class Codec(plugin.Codec):
    """The messages of one account."""

    reply_limit_s = 5.0
    redelivery_s = 15.0
    acknowledgement = HttpBody(b"", "text/plain")

    def __init__(self, account: Account, settings: CodecSettings) -> None:
        self._account = account
        self._settings = settings

    def parse(self, payload: bytes) -> InboundMessage:
        """Read a message or an event."""
        try:
            message = msgspec.json.decode(payload, type=Message)
        except (ValueError, RecursionError):
            raise MalformedPayload("the message is not the JSON that the platform sends") from None
        if message.company != self._settings.company:
            raise ReceiverMismatch("the message is for another company than the configured one")
        if not (message.id and message.member and 0 <= message.sent_at <= _LAST_SECOND):
            raise MalformedPayload("the message needs an id, a member and a time")
        return InboundMessage(
            account=self._account,
            message_id=message.id,
            conversation=_conversation(message),
            sender=Member(id=message.member),
            sent_at=Timestamp(seconds=message.sent_at),
            content=[_KINDS.get(message.kind, _unknown)(message)],
        )

    def format(self, message: InboundMessage, content: Sequence[Content]) -> bytes | None:
        """Write an answer of one text; anything else goes by the API."""
        if len(content) != 1 or not content[0].text.text:
            return None
        text = content[0].text
        return msgspec.json.encode(Answer(text.text, text.format == TEXT_FORMAT_MARKDOWN))


def _conversation(message: Message) -> Conversation:
    if message.group:
        return Conversation(id=message.group, kind=CONVERSATION_KIND_GROUP)
    return Conversation(id=message.member, kind=CONVERSATION_KIND_DIRECT)


def _text(message: Message) -> Content:
    return Content(text=Text(text=message.text, format=TEXT_FORMAT_PLAIN))


def _image(message: Message) -> Content:
    return Content(image=Media(media_id=message.media_id))


def _joined(message: Message) -> Content:
    return Content(event=Event(name=message.kind, arrival=Arrival(first=True)))


def _left(message: Message) -> Content:
    return Content(event=Event(name=message.kind, departure=Departure()))


def _unknown(message: Message) -> Content:
    return Content(unknown=Unknown(name=message.kind))


_KINDS: Mapping[str, Callable[[Message], Content]] = {
    "text": _text,
    "image": _image,
    "joined": _joined,
    "left": _left,
}
