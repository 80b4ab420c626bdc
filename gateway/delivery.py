"""Active answers: handed to reply_svc, for as long as it takes."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from assistant import telemetry
from assistant.api.message.v1.message_pb2 import Content, InboundMessage, Recipient
from assistant.api.reply.v1.reply_pb2 import DELIVERY_STATE_PENDING, DeliverReplyRequest, GetDeliveryRequest
from assistant.errors import AssistantError, InvalidRequest, UnknownAccount, UnknownDelivery
from gateway.conversations import Conversation

if TYPE_CHECKING:
    from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceAsyncStub

_DELIVER_TIMEOUT_S = 10.0
_LOOK_UP_TIMEOUT_S = 1.0


class Delivery:
    """reply_svc, as a turn needs it."""

    def __init__(self, reply: "ReplyServiceAsyncStub") -> None:
        self._reply = reply

    async def deliver(
        self, request_id: str, message: InboundMessage, content: Iterable[Content]
    ) -> AssistantError | None:
        """Hand over the answer to a message; returns when reply_svc has it durably.

        Insists while reply_svc is away or its disk is full. Returns the reason if it will never take it.
        """
        request = DeliverReplyRequest(
            request_id=request_id,
            account=message.account,
            recipient=Recipient(conversation=message.conversation, member=message.sender),
            content=content,
        )
        pause_s = 0.05
        while True:
            try:
                await self._reply.DeliverReply(request, timeout=_DELIVER_TIMEOUT_S)
            except (InvalidRequest, UnknownAccount) as error:
                return error
            except AssistantError as error:
                telemetry.warning("delivery_postponed", reason=error.reason)
                await asyncio.sleep(pause_s)
                pause_s = min(5.0, pause_s * 2)
            else:
                return None

    async def has_arrived(self, conversation: Conversation) -> bool:
        """Whether the conversation's last active answer is out: a passive one would overtake it otherwise."""
        if not conversation.last_delivery:
            return True
        request = GetDeliveryRequest(request_id=conversation.last_delivery)
        try:
            found = await self._reply.GetDelivery(request, timeout=_LOOK_UP_TIMEOUT_S)
        except UnknownDelivery:
            pass
        except AssistantError:
            return False
        else:
            if found.delivery.state == DELIVERY_STATE_PENDING:
                return False
        conversation.last_delivery = ""
        return True
