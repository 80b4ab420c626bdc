"""The directory: who is in which department, as the platform tells through reply_svc; kept for a while.

What the platform says is asked for again after FRESH_S. If it cannot be asked then, what it said last goes on
to count, for STALE_S at most: an outage neither locks out those who were let in, nor lets in those who were not.
"""

import asyncio
import functools
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import Counter

from assistant import telemetry
from assistant.api.message.v1.message_pb2 import Account
from assistant.api.reply.v1.reply_pb2 import GetMemberRequest
from assistant.errors import AssistantError

if TYPE_CHECKING:
    from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceAsyncStub

FRESH_S = 900.0
"""How long what the platform said of a member counts without asking again."""
STALE_S = 86_400.0
"""How long it counts when asking again fails."""
INSIST_S = 15.0
"""How long is gone on asking for a member of whom nothing is known."""
_PAUSE_S = 30.0
"""After asking failed, until it is tried again for a member of whom something is known."""
_TIMEOUT_S = 5.0
_CAPACITY = 100_000
_PASSES = (429, 503, 504)
"""What an error is in HTTP's terms if it may be over in a moment."""

_LOOK_UPS = Counter("assistant_member_lookups", "Members whose departments were asked for.", ["channel", "outcome"])
_count = functools.cache(_LOOK_UPS.labels)


@dataclass(slots=True)
class _Known:
    departments: frozenset[str]
    fresh_until: float
    stale_until: float


class Directory:
    """The departments of members."""

    def __init__(
        self,
        reply: "ReplyServiceAsyncStub",
        *,
        insist_s: float = INSIST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds."""
        self._reply = reply
        self._insist_s = insist_s
        self._clock = clock
        self._known: OrderedDict[tuple[str, str, str], _Known] = OrderedDict()

    async def departments(self, account: Account, member: str) -> frozenset[str]:
        """Ids of the departments that a member is in, and of those above them.

        Raises what asking fails with, if nothing is known of the member.
        """
        key = (account.channel, account.name, member)
        known = self._known.get(key)
        if known is not None and self._clock() < known.fresh_until:
            self._known.move_to_end(key)
            return known.departments
        usable = known is not None and self._clock() < known.stale_until
        try:
            departments = await self._ask(account, member, insist_s=0.0 if usable else self._insist_s)
        except AssistantError as error:
            telemetry.warning(
                "member_not_looked_up", member=member, reason=error.reason, detail=error.message, known_before=usable
            )
            if known is None or not usable:
                _count(account.channel, error.reason).inc()
                raise
            _count(account.channel, "stale").inc()
            known.fresh_until = self._clock() + _PAUSE_S
            return known.departments
        _count(account.channel, "ok").inc()
        now = self._clock()
        self._known[key] = _Known(departments, now + FRESH_S, now + STALE_S)
        self._known.move_to_end(key)
        if len(self._known) > _CAPACITY:
            self._known.popitem(last=False)
        return departments

    async def _ask(self, account: Account, member: str, insist_s: float) -> frozenset[str]:
        request = GetMemberRequest(account=account, member_id=member)
        give_up_at, pause_s = time.monotonic() + insist_s, 0.1
        while True:
            try:
                found = await self._reply.GetMember(request, timeout=_TIMEOUT_S)
            except AssistantError as error:
                if error.http not in _PASSES or time.monotonic() + pause_s > give_up_at:
                    raise
            else:
                return frozenset(found.department_ids)
            await asyncio.sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)
