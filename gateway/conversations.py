"""Conversations as the engine sees them: what was said before, and the state it asked to keep.

They are read from the inbox, where every answered turn is; nothing is written twice. What was read or said
lately is kept in memory. Where other gateways write to the same inbox, it is asked what they added since.
"""

from collections import OrderedDict
from collections.abc import Iterable

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from assistant.api.message.v1.message_pb2 import Content, InboundMessage
from assistant.api.nlp.v1.nlp_pb2 import ROLE_ASSISTANT, ROLE_MEMBER, GenerateReplyRequest, Role
from assistant.api.storage.v1.storage_pb2 import TurnRecord
from gateway.inbox import Inbox


class Conversation:
    """What was said before in one conversation."""

    __slots__ = ("_most", "_turns", "last_delivery", "seq", "state")

    def __init__(self, turns: int) -> None:
        self._most = turns
        self._turns: list[bytes] = []
        """Oldest first. Each as a serialised request with the turn as its history: small to keep, cheap to join.

        A list, as most are short: an empty deque occupies more than ten short turns.
        """
        self.seq = 0
        """Place in the inbox of the newest turn that is known here."""
        self.state: Struct | None = None
        """What the engine asked to keep."""
        self.last_delivery = ""
        """Request id of the last answer, if it went out by the API: it may still be on its way."""

    def history(self) -> bytes:
        """What was said, as a part of a serialised GenerateReplyRequest: merge it into the rest."""
        return b"".join(self._turns)

    def remember(self, seq: int, message: InboundMessage, record: TurnRecord) -> None:
        """Add a turn that was answered, with its place in the inbox."""
        if record.starts_conversation:
            self._turns.clear()
        elif self._most and not record.refusal:
            turn = GenerateReplyRequest()
            _add(turn, ROLE_MEMBER, message.content, message.sent_at)
            if record.content:
                _add(turn, ROLE_ASSISTANT, record.content, record.answered_at)
            self._turns.append(turn.SerializeToString())
            del self._turns[: -self._most]
        self.seq = max(self.seq, seq)
        self.state = record.state if record.HasField("state") else None
        self.last_delivery = record.request_id


def _add(request: GenerateReplyRequest, role: "Role.ValueType", content: Iterable[Content], said_at: Timestamp) -> None:
    entry = request.history.add()
    entry.role = role
    entry.content.MergeFrom(content)
    entry.said_at.MergeFrom(said_at)


class Conversations:
    """The conversations, by lane."""

    def __init__(self, inbox: Inbox, turns: int, capacity: int = 10_000) -> None:
        self._inbox = inbox
        self._turns = turns
        self._capacity = capacity
        self._recent: OrderedDict[str, Conversation] = OrderedDict()

    async def get(self, lane: str) -> Conversation:
        """The conversation of a lane. Call it when no earlier turn of the lane is under way.

        A message that another gateway answers after a later one, as when a crash broke its turn off, is not seen by
        a gateway that knew the later one already.
        """
        conversation = self._recent.get(lane)
        if conversation is None or self._inbox.shared:
            conversation = conversation or Conversation(self._turns)
            # One turn at least, for the state.
            for said in await self._inbox.history(lane, conversation.seq, max(1, self._turns)):
                conversation.remember(*said)
        self._recent[lane] = conversation
        self._recent.move_to_end(lane)
        if len(self._recent) > self._capacity:
            self._recent.popitem(last=False)
        return conversation
