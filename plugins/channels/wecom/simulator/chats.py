"""What the members of the company see in their chats with the app. In memory and bounded."""

import asyncio
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import count
from typing import Any, Literal

import msgspec

from plugins.channels.wecom.simulator.messages import Message

MEMBERS = 10_000
"""So many chats are kept; the one unused longest goes first."""
ENTRIES = 500
"""So many entries of a chat are kept."""
_MEMBER_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_\-@.]{0,63}")


class Entry(msgspec.Struct, kw_only=True):
    """One line of a chat: what a member sent, or what the app said."""

    id: int
    revision: int = 0
    """Grows with every change of the chat."""
    time: float
    """Unix time in seconds."""
    direction: Literal["inbound", "outbound"]
    """Inbound is from the member to the app."""
    kind: str
    """MsgType, msgtype, or name of the event."""
    text: str
    fields: dict[str, Any]
    """What else it says, by the platform's names."""
    message_id: str = ""
    """MsgId of an inbound message, msgid of an active one. Events and passive replies have none."""
    way: Literal["", "passive", "active"] = ""
    """How the app said it: in the HTTP answer to a callback, or by the API."""
    in_reply_to: int | None = None
    """`id` of the entry that a passive reply answers."""
    state: Literal["sending", "acknowledged", "answered", "lost", "forged", "shown", "recalled"]
    """What became of it: the first five of an inbound entry, the last two of an outbound one."""
    attempts: int = 0
    """How often the callback was sent."""
    duration_ms: float | None = None
    """From the first attempt to the answer that counted."""
    problem: str = ""
    """What went wrong, or what the platform did to it."""


class Chat:
    """One member's chat with the app."""

    def __init__(self, member: str, clock: Callable[[], float], ids: "count[int]") -> None:
        self.member = member
        self.employed = True
        """Whether the member still works here. Messages to others are refused."""
        self.departments = [1]
        """Ids of the departments that the member belongs to."""
        self.entries: deque[Entry] = deque(maxlen=ENTRIES)
        self._clock = clock
        self._ids = ids
        self._sent_at: deque[float] = deque(maxlen=ENTRIES * 2)
        self._revision = 0
        self._changed = asyncio.Event()

    def write(self, kind: str, text: str, fields: dict[str, Any], message_id: str) -> Entry:
        """Add what the member sends."""
        return self._add(
            direction="inbound", kind=kind, text=text, fields=fields, message_id=message_id, state="sending"
        )

    def show(
        self,
        message: Message,
        way: Literal["passive", "active"],
        *,
        message_id: str = "",
        in_reply_to: int | None = None,
    ) -> Entry:
        """Add what the app says."""
        return self._add(
            direction="outbound",
            kind=message.kind,
            text=message.text,
            fields=dict(message.fields),
            problem=message.note,
            message_id=message_id,
            way=way,
            in_reply_to=in_reply_to,
            state="shown",
        )

    def _add(self, **values: Any) -> Entry:
        entry = Entry(id=next(self._ids), time=self._clock(), **values)
        self.entries.append(entry)
        self.changed(entry)
        return entry

    def changed(self, entry: Entry) -> None:
        """Tell those who watch that an entry is new or different."""
        self._revision += 1
        entry.revision = self._revision
        self.wake()

    def wake(self) -> None:
        """Let those who watch look again."""
        before, self._changed = self._changed, asyncio.Event()
        before.set()

    def since(self, revision: int) -> list[Entry]:
        """The entries that are new or different since then."""
        return [entry for entry in self.entries if entry.revision > revision]

    async def change(self, timeout_s: float) -> None:
        """Return when something changes, or after the time."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return

    def within_quota(self, per_minute: int, per_hour: int) -> bool:
        """Whether the app may send this member another message now. If so it is counted."""
        now = self._clock()
        for sends, window_s in ((per_minute, 60), (per_hour, 3600)):
            if len(self._sent_at) >= sends and self._sent_at[-sends] > now - window_s:
                return False
        self._sent_at.append(now)
        return True


class Chats:
    """The chats of all members. Whoever has a possible id works here, until removed."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ids = count(1)
        self._chats: OrderedDict[str, Chat] = OrderedDict()

    def of(self, member: str) -> Chat:
        """A member's chat; ids are compared without regard to case. Raises ValueError for an impossible id."""
        if not _MEMBER_ID.fullmatch(member):
            raise ValueError(
                f"{member!r} cannot be a member's id: 1 to 64 letters, digits and _ - @ . beginning with a letter "
                "or digit"
            )
        key = member.lower()
        if key not in self._chats:
            self._chats[key] = Chat(member, self._clock, self._ids)
            if len(self._chats) > MEMBERS:
                self._chats.popitem(last=False)
        self._chats.move_to_end(key)
        return self._chats[key]

    def all(self) -> list[Chat]:
        """The chats of everyone who was heard of and works here."""
        return [chat for chat in self._chats.values() if chat.employed]

    def wake(self) -> None:
        """Let everyone who watches a chat look again."""
        for chat in self._chats.values():
            chat.wake()
