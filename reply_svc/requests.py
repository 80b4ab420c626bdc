"""Looking at requests before anything is done with them. Raises InvalidRequest, naming the field."""

import re
from collections.abc import Sequence

from assistant.api.message.v1.message_pb2 import Card, Content, Recipient
from assistant.api.reply.v1.reply_pb2 import DeliverReplyRequest, UploadMediaHeader
from assistant.errors import InvalidRequest

_MAX_ID_CHARACTERS = 200
_MAX_TEXT_BYTES = 64 * 1024
_MAX_ACTION_ID_BYTES = 1024
_CARD_ID = re.compile(r"[0-9A-Za-z_@-]{1,128}")
_INBOUND_ONLY = ("event", "unknown")


def check_delivery(request: DeliverReplyRequest) -> None:
    """An answer to deliver."""
    if not 1 <= len(request.request_id) <= _MAX_ID_CHARACTERS:
        raise InvalidRequest(f"request_id has {len(request.request_id)} characters: give 1 to {_MAX_ID_CHARACTERS}")
    _check_recipient(request.recipient)
    _check_contents(request.content)


def check_upload(header: UploadMediaHeader) -> None:
    """A file to give to the platform."""
    if not header.kind:
        raise InvalidRequest("header.kind is not set: say as what the file will be sent")
    for name in ("name", "media_type"):
        if not getattr(header.description, name):
            raise InvalidRequest(f"header.description.{name} is empty: the platform needs it")


def _check_recipient(recipient: Recipient) -> None:
    if not (recipient.conversation.id or recipient.member.id):
        raise InvalidRequest("recipient names neither conversation.id nor member.id")


def _check_contents(contents: Sequence[Content]) -> None:
    if not contents:
        raise InvalidRequest("content is empty: give at least one piece")
    for index, content in enumerate(contents):
        _check_content(f"content[{index}]", content)


def _check_content(where: str, content: Content) -> None:
    kind = content.WhichOneof("kind")
    if kind is None or kind in _INBOUND_ONLY:
        raise InvalidRequest(f"{where} is {kind or 'not set'}: that cannot be sent")
    if kind == "text":
        size = len(content.text.text.encode())
        if not content.text.text.strip() or size > _MAX_TEXT_BYTES:
            raise InvalidRequest(f"{where}.text.text has {size} bytes: give 1 to {_MAX_TEXT_BYTES}, not only blanks")
    if kind == "card":
        _check_card(f"{where}.card", content.card)


def _check_card(where: str, card: Card) -> None:
    if not _CARD_ID.fullmatch(card.card_id):
        raise InvalidRequest(f"{where}.card_id must be 1 to 128 characters of 0-9 A-Z a-z _ - @")
    if not card.title:
        raise InvalidRequest(f"{where}.title is empty")
    for index, action in enumerate(card.actions):
        if not action.label:
            raise InvalidRequest(f"{where}.actions[{index}].label is empty")
        if not action.url and not 1 <= len(action.action_id.encode()) <= _MAX_ACTION_ID_BYTES:
            raise InvalidRequest(f"{where}.actions[{index}] needs a url, or an action_id of 1 to 1024 bytes")
