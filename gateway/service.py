"""InboxService: the contract, unpacked and packed."""

from assistant.api.inbox.v1.inbox_pb2 import (
    ANSWER_PATH_ACTIVE,
    ANSWER_PATH_PASSIVE,
    ANSWER_PATH_UNSPECIFIED,
    MESSAGE_STATE_ACKNOWLEDGED,
    MESSAGE_STATE_ANSWERED,
    MESSAGE_STATE_DEAD,
    MESSAGE_STATE_RECEIVED,
    MESSAGE_STATE_UNCONFIRMED,
    MESSAGE_STATE_UNSPECIFIED,
    AnswerPath,
    GetMessageRequest,
    GetMessageResponse,
    InboxMessage,
    ListMessagesRequest,
    ListMessagesResponse,
    MessageState,
    RetryMessageRequest,
    RetryMessageResponse,
)
from assistant.api.message.v1.message_pb2 import InboundMessage
from assistant.api.storage.v1 import storage_pb2
from assistant.errors import InvalidRequest, NotRetryable, UnknownMessage
from assistant.journal import Row
from assistant.paging import before, next_page_token, page_size
from assistant.server import Call, to_its_end
from gateway.inbox import Inbox, InboxState
from gateway.turns import Turns

_ON_THE_WIRE: dict[int, "MessageState.ValueType"] = {
    InboxState.RECEIVED: MESSAGE_STATE_RECEIVED,
    InboxState.ACKNOWLEDGED: MESSAGE_STATE_ACKNOWLEDGED,
    InboxState.ANSWERED: MESSAGE_STATE_ANSWERED,
    InboxState.DEAD: MESSAGE_STATE_DEAD,
    InboxState.UNCONFIRMED: MESSAGE_STATE_UNCONFIRMED,
}
_FROM_THE_WIRE = {state: number for number, state in _ON_THE_WIRE.items()}
_PATHS: dict[int, "AnswerPath.ValueType"] = {
    storage_pb2.ANSWER_PATH_UNSPECIFIED: ANSWER_PATH_UNSPECIFIED,
    storage_pb2.ANSWER_PATH_PASSIVE: ANSWER_PATH_PASSIVE,
    storage_pb2.ANSWER_PATH_ACTIVE: ANSWER_PATH_ACTIVE,
}


class InboxService:
    """Shows operators the messages, and takes up again what was given up."""

    def __init__(self, inbox: Inbox, turns: Turns) -> None:
        self._inbox = inbox
        self._turns = turns

    async def ListMessages(self, request: ListMessagesRequest, call: Call) -> ListMessagesResponse:
        size = page_size(request.page_size)
        found = await self._inbox.list(_states(request.state), before(request.page_token), size + 1)
        return ListMessagesResponse(
            messages=[_described(row) for row in found[:size]],
            next_page_token=next_page_token(found, size),
        )

    async def GetMessage(self, request: GetMessageRequest, call: Call) -> GetMessageResponse:
        return GetMessageResponse(message=_with_words(await self._row(request.key)))

    async def RetryMessage(self, request: RetryMessageRequest, call: Call) -> RetryMessageResponse:
        row = await self._row(request.key)
        if not await to_its_end(self._turns.retry(row.key)):
            state = InboxState(row.state).name.lower()
            raise NotRetryable(f"{row.key} is {state}: only a dead or unconfirmed message is tried again")
        return RetryMessageResponse(message=_with_words(await self._row(row.key)))

    async def _row(self, key: str) -> Row:
        row = await self._inbox.get(key)
        if row is None:
            raise UnknownMessage(f"no message {key!r} in the inbox; its key is channel:account:message id")
        return row


def _described(row: Row) -> InboxMessage:
    """A message without its words."""
    inbound = InboundMessage.FromString(row.body)
    message = InboxMessage(
        key=row.key,
        state=_ON_THE_WIRE[row.state],
        account=inbound.account,
        conversation=inbound.conversation,
        sender=inbound.sender,
        kinds=[content.WhichOneof("kind") or "" for content in inbound.content],
        attempts=row.attempts,
        error=row.error,
    )
    message.received_at.FromNanoseconds(int(row.created_at * 1e9))
    message.updated_at.FromNanoseconds(int(row.updated_at * 1e9))
    return message


def _with_words(row: Row) -> InboxMessage:
    message = _described(row)
    message.content.extend(InboundMessage.FromString(row.body).content)
    record = storage_pb2.TurnRecord.FromString(row.result or b"")
    message.answer.extend(record.content)
    message.path = _PATHS[record.path]
    return message


def _states(wanted: "MessageState.ValueType") -> list[int] | None:
    """Those to look for. None: all."""
    if wanted == MESSAGE_STATE_UNSPECIFIED:
        return None
    if wanted not in _FROM_THE_WIRE:
        raise InvalidRequest(f"state {wanted} is unknown")
    return [_FROM_THE_WIRE[wanted]]
