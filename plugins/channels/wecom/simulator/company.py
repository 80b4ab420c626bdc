"""One company with one app on the simulated platform: everything that is remembered."""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from plugins.channels.wecom.simulator.callbacks import Callbacks, Sealer
from plugins.channels.wecom.simulator.chats import Chat, Chats, Entry
from plugins.channels.wecom.simulator.errors import ApiError
from plugins.channels.wecom.simulator.kinds import Kind
from plugins.channels.wecom.simulator.media import Media
from plugins.channels.wecom.simulator.messages import INTERACTIVE_CARDS, Message
from plugins.channels.wecom.simulator.rules import Books, Faults, Rules
from plugins.channels.wecom.simulator.tokens import Tokens

_REMEMBERED = 10_000
"""So many sent messages can be recalled, and so many requests recognised."""
_RECALL_S = 24 * 3600
_CARD_UPDATE_S = 72 * 3600
_LONGEST_DUPLICATE_CHECK_S = 4 * 3600


@dataclass(frozen=True)
class Sent:
    """One message that an app sent by the API."""

    at: float
    shown: list[tuple[Chat, Entry]] = field(default_factory=list)


@dataclass(frozen=True)
class CardUpdate:
    """Permission to change the cards of one task, once."""

    at: float
    task_id: str


class Remembered(OrderedDict[str, Any]):
    """A dictionary that forgets the oldest."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if len(self) > _REMEMBERED:
            self.popitem(last=False)


class Company:
    """What qyapi and the control API work on."""

    def __init__(
        self, settings: Mapping[str, Any], sealer: Sealer, callback_url: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.corpid = str(settings["corpid"])
        self.agentid = sealer.agentid
        self.closed = False
        self.rules = Rules()
        self.faults = Faults()
        self.books = Books()
        self.chats = Chats(clock)
        self.media = Media(clock)
        self.tokens = Tokens(self.corpid, str(settings.get("secret", "")), self.rules, clock)
        self.callbacks = Callbacks(callback_url, sealer, self.rules, self.faults, self.books)
        self._faults_changed = asyncio.Event()
        self._clock = clock
        self._sent = Remembered()
        self._recognised = Remembered()
        self._card_updates = Remembered()

    async def open(self, _: object) -> None:
        """Begin."""
        await self.callbacks.open()

    async def close(self, _: object) -> None:
        """End: let everyone go who waits for something."""
        self.closed = True
        self.change_faults(Faults())
        self.chats.wake()
        await self.callbacks.close()

    def change_rules(self, rules: Rules) -> None:
        """From now on the platform behaves so."""
        self.rules = self.tokens.rules = self.callbacks.rules = rules

    def change_faults(self, faults: Faults) -> None:
        """From now on this goes wrong, and nothing else."""
        self.faults = self.callbacks.faults = faults
        before, self._faults_changed = self._faults_changed, asyncio.Event()
        before.set()

    async def keep_waiting(self) -> None:
        """Return when a call may be answered, as far as the faults say."""
        if self.faults.latency_ms:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._faults_changed.wait(), self.faults.latency_ms / 1000)
        while self.faults.hang:
            await self._faults_changed.wait()

    # --- From members -------------------------------------------------------------------------------------

    def write(self, chat: Chat, kind: Kind, fields: dict[str, Any], message_id: str = "") -> Entry:
        """A member sends a message, or causes an event."""
        if "ResponseCode" in fields and not fields["ResponseCode"]:
            fields["ResponseCode"] = self.permit_card_update(str(fields["TaskId"]))
        if not kind.event:
            message_id = message_id or new_message_id()
        key = fields.get("EventKey", "")
        text = fields["Content"] if kind.name == "text" else f"[{kind.name}] {key}".strip()
        return chat.write(kind.name, text, fields, message_id)

    # --- From the app -------------------------------------------------------------------------------------

    def send(self, chats: list[Chat], message: Message) -> dict[str, str]:
        """Show a message to members, each within the quota; what the API says of it."""
        message_id = secrets.token_urlsafe(32)
        self._sent[message_id] = sent = Sent(self._clock())
        for chat in chats:
            if chat.within_quota(self.rules.sends_per_minute, self.rules.sends_per_hour):
                sent.shown.append((chat, chat.show(message, "active", message_id=message_id)))
                self.books.answered_actively += 1
            else:
                self.books.dropped_by_quota += 1
        told = {"msgid": message_id}
        if message.fields.get("card_type") in INTERACTIVE_CARDS:
            told["response_code"] = self.permit_card_update(str(message.fields["task_id"]))
        return told

    def recognise(self, request: str, interval_s: float) -> dict[str, Any] | None:
        """The answer to the same request within the interval, None if there was none."""
        at, answer = self._recognised.get(request, (0.0, None))
        if answer is None or at + min(interval_s, _LONGEST_DUPLICATE_CHECK_S) <= self._clock():
            return None
        self.books.duplicates_suppressed += 1
        return dict(answer)

    def remember(self, request: str, answer: Mapping[str, Any]) -> None:
        """Let `recognise` know."""
        self._recognised[request] = (self._clock(), answer)

    def recall(self, message_id: str) -> None:
        """Take a message back. Raises ApiError when there is none, or no longer."""
        sent = self._sent.get(message_id)
        if sent is None or sent.at + _RECALL_S <= self._clock():
            raise ApiError(40058, "invalid Request Parameter: msgid")
        for chat, entry in sent.shown:
            entry.state, entry.text, entry.fields = "recalled", "", {}
            chat.changed(entry)

    def permit_card_update(self, task_id: str) -> str:
        """A new response_code for the cards of a task."""
        code = secrets.token_urlsafe(24)
        self._card_updates[code] = CardUpdate(self._clock(), task_id)
        return code

    def use_card_update(self, code: str) -> str:
        """The task that the response_code is for. It works once. Raises ApiError."""
        permission = self._card_updates.pop(code, None)
        if permission is None or permission.at + _CARD_UPDATE_S <= self._clock():
            raise ApiError(42014, "invalid response_code: unknown, used or expired")
        return str(permission.task_id)


def new_message_id() -> str:
    """A MsgId: a number of 63 bits."""
    return str(2**62 + secrets.randbelow(2**62))
