"""Callbacks that wait for their HTTP answer, and what such an answer may be."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import orjson
from prometheus_client import Counter

from assistant import telemetry
from assistant.api.crypto.v1.crypto_pb2 import SealReplyRequest
from assistant.api.message.v1.message_pb2 import Account
from assistant.errors import AssistantError, Internal
from assistant.plugin import HttpBody
from gateway.loop import Answer, Exchange

if TYPE_CHECKING:
    from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceAsyncStub

T = TypeVar("T")

CRYPTO_TIMEOUT_S = 3.0
"""Twice within the platform's patience. Not less: under load a repeated call adds to the load, and loses its place."""
_OUTSIDE = {"SIGNATURE_MISMATCH", "STALE_CALLBACK", "RECEIVER_MISMATCH", "UNDECRYPTABLE"}
"""Reasons that look the same from outside, so that nobody learns from our answer how far a forgery came."""
_CALLBACKS = Counter("assistant_callbacks", "Callbacks by how they were answered.", ["channel", "outcome"])


class HeldCallback:
    """A callback that was opened and is not answered yet. It is answered once; what comes later has no effect."""

    __slots__ = ("_account", "_acknowledgement", "_crypto", "_exchange", "_query", "give_up_at", "key_id")

    def __init__(
        self,
        exchange: Exchange,
        crypto: "CryptoServiceAsyncStub",
        account: Account,
        query: str,
        acknowledgement: HttpBody,
        give_up_at: float,
    ) -> None:
        self._exchange = exchange
        self._crypto = crypto
        self._account = account
        self._query = query
        self._acknowledgement = acknowledgement
        self.give_up_at = give_up_at
        """When the platform has given up on this attempt for sure: on the monotonic clock."""
        self.key_id = ""
        """The key that opened it."""

    @property
    def is_open(self) -> bool:
        """Whether an answer would still reach the platform."""
        return self._exchange.is_open

    async def reply(self, payload: bytes) -> None:
        """Answer with a passive reply, sealed. If that cannot be had in time, refuse."""
        request = SealReplyRequest(account=self._account, payload=payload, query=self._query, key_id=self.key_id)
        try:
            sealed = await insist(lambda: self._crypto.SealReply(request, timeout=CRYPTO_TIMEOUT_S), self.give_up_at)
        except AssistantError as error:
            self.refuse(error)
        else:
            self.respond(Answer(sealed.body, sealed.content_type), "passive")

    def acknowledge(self) -> None:
        """Answer that the message was received, and no more."""
        self.respond(Answer(self._acknowledgement.body, self._acknowledgement.content_type), "acknowledged")

    def refuse(self, error: AssistantError) -> None:
        """Answer that the callback cannot be accepted."""
        telemetry.warning("callback_refused", channel=self._account.channel, reason=error.reason, detail=error.message)
        self.respond(refusal(error), error.reason.lower())

    def respond(self, answer: Answer, outcome: str) -> None:
        """Answer with this, and count it."""
        if self._exchange.is_open:
            self._exchange.respond(answer)
            _count(self._account.channel, outcome).inc()


async def insist(attempt: Callable[[], Awaitable[T]], give_up_at: float) -> T:
    """Repeat what fails for a reason that passes: a fast 5xx could cost the message, a slow one never does.

    Sources disagree whether a platform repeats a callback that was answered with an error; that it repeats one
    that was not answered in time is certain. So we go on until it must have given up.
    """
    pause_s = 0.02
    while True:
        try:
            return await attempt()
        except AssistantError as error:
            if error.http < 500 or isinstance(error, Internal) or time.monotonic() > give_up_at:
                raise
            telemetry.warning("callback_waits", reason=error.reason, detail=error.message)
        await asyncio.sleep(pause_s)
        pause_s = min(0.5, pause_s * 2)


@functools.cache
def _count(channel: str, outcome: str) -> Counter:
    return _CALLBACKS.labels(channel, outcome)


def refusal(error: AssistantError) -> Answer:
    """The HTTP answer to what cannot be accepted. Says what is wrong as far as a stranger may know."""
    if error.reason in _OUTSIDE:
        return error_answer(401, "CALLBACK_REFUSED", "The callback is not one of this account's platform.")
    if error.http >= 500:
        return error_answer(503, error.reason, "The assistant is not available right now.")
    return error_answer(error.http, error.reason, error.message)


def error_answer(status: int, reason: str, message: str) -> Answer:
    """An error as JSON."""
    return Answer(orjson.dumps({"error": reason, "message": message}), "application/json", status)
