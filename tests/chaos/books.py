"""The books of one run: what the platform sent, what it was told, what its members saw, and the verdict on it.

They are kept by the platform alone. Nothing in them comes from the mesh's own tables, logs or metrics.
"""

import asyncio
import re
from dataclasses import dataclass, field
from typing import Literal

PATIENCE_S = 120.0
"""So long after the last fault an answer may take before it counts as lost."""

_MARK = re.compile(r"\b(begin|end)-(\d+)\b")

Way = Literal["passive", "active"]


@dataclass(eq=False)
class Message:
    """One message of a member. Times are seconds on the platform's monotonic clock."""

    number: int
    member: str
    sent_at: float
    asks: str
    """Seconds to think, and words of the answer."""
    tries: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    """When tries failed, and why."""
    overtaken: bool = False
    """Whether its answer came after that of a message which was sent while it was still on its way to us."""
    settled_at: float | None = None
    """When the platform had its 200."""
    refused: int | None = None
    """The HTTP status that a valid callback was answered with, if it was not 200."""
    given_up: bool = False
    """Whether all tries ended without an answer."""
    marks: list[tuple[str, int]] = field(default_factory=list)
    """"begin" and "end" of its answer, each with its place among everything that the member saw."""
    way: Way | None = None
    answered_at: float | None = None
    answered: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def names(self) -> list[str]:
        """Its marks without places."""
        return [name for name, _ in self.marks]


class Books:
    """Everything that was sent and shown."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.repeated_sends = 0
        """Requests that the platform recognised as repeated and did not show again. On a platform that cannot
        recognise them, each would be a second answer: the one window that stays open there."""
        self.over_quota = 0
        """Answers that the platform dropped, since the member was sent too many."""
        self.forged = 0
        self.strange: list[str] = []
        """What was shown to members and is no answer to anything."""
        self._places: dict[str, int] = {}

    def send(self, member: str, asks: str, now: float) -> Message:
        """A member writes."""
        message = Message(len(self.messages), member, now, asks)
        self.messages.append(message)
        return message

    def show(self, member: str, text: str, way: Way, now: float) -> None:
        """A member sees something."""
        found = _MARK.findall(text)
        if not found:
            self.strange.append(text[:80])
        for name, number in found:
            message = self.messages[int(number)]
            place = self._places[member] = self._places.get(member, 0) + 1
            message.marks.append((name, place))
            if message.member != member:
                self.strange.append(f"{member} saw the answer to message {number} of {message.member}")
            if name == "end" and message.answered_at is None:
                message.way, message.answered_at = way, now
                message.answered.set()

    def open(self) -> list[Message]:
        """Messages that wait for their answer."""
        return [message for message in self.messages if message.answered_at is None]

    def close(self) -> "Verdict":
        """Judge all messages."""
        verdict = Verdict(messages=len(self.messages), window_hits=self.repeated_sends, strange=len(self.strange))
        verdict.refused = sum(message.refused is not None for message in self.messages)
        verdict.retried = sum(message.tries > 1 for message in self.messages)
        verdict.lost = sum(not {"begin", "end"} <= set(message.names) for message in self.messages)
        verdict.doubled = sum(len(message.names) > len(set(message.names)) for message in self.messages)
        verdict.over_quota, verdict.forged = self.over_quota, self.forged
        verdict.passive = sum(message.way == "passive" for message in self.messages)
        verdict.active = sum(message.way == "active" for message in self.messages)
        verdict.slowest_s = max(
            (message.answered_at - message.sent_at for message in self.messages if message.answered_at), default=0.0
        )
        self._judge_order(verdict)
        return verdict

    def _judge_order(self, verdict: "Verdict") -> None:
        conversations: dict[str, list[Message]] = {}
        for message in self.messages:
            if message.names[:2] == ["begin", "end"]:
                conversations.setdefault(message.member, []).append(message)
            elif message.marks and not verdict.lost and not verdict.doubled:
                verdict.reordered += 1  # the parts of one answer
        for conversation in conversations.values():
            for place, message in enumerate(conversation):
                overtakers = [later for later in conversation[place + 1 :] if later.marks[0][1] < message.marks[1][1]]
                settled_at = message.settled_at if message.settled_at is not None else float("inf")
                verdict.reordered += any(later.sent_at >= settled_at for later in overtakers)
                message.overtaken = any(later.sent_at < settled_at for later in overtakers)
                verdict.overtaken += message.overtaken


@dataclass
class Verdict:
    """What the books say. Kept promises: everything in `broken` is zero."""

    messages: int
    passive: int = 0
    active: int = 0
    retried: int = 0
    """Messages that the platform had to send more than once."""
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    """Messages whose answer came after that of one which was sent when they had been accepted already."""
    overtaken: int = 0
    """Messages whose answer came after that of one which was sent while they were still on their way to us."""
    refused: int = 0
    """Valid callbacks that got another status than 200."""
    forged: int = 0
    over_quota: int = 0
    strange: int = 0
    window_hits: int = 0
    slowest_s: float = 0.0

    @property
    def broken(self) -> dict[str, int]:
        """The promises that were not kept, and how often."""
        names = ("lost", "doubled", "reordered", "refused", "forged", "over_quota", "strange")
        return {name: getattr(self, name) for name in names if getattr(self, name)}
