"""Intake: from a callback to its HTTP answer, the whole pipeline on one screen.

open (crypto_svc) > parse (codec) > admit and answer (turns) > seal (crypto_svc), or acknowledge.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import orjson
from prometheus_client import Counter

from assistant import telemetry
from assistant.api.crypto.v1.crypto_pb2 import OpenCallbackRequest, OpenCallbackResponse, SealReplyRequest
from assistant.api.message.v1.message_pb2 import Account
from assistant.errors import AssistantError, Internal
from assistant.plugin import Callback, Codec
from gateway.loop import Answer
from gateway.turns import Turns

if TYPE_CHECKING:
    from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceAsyncStub

T = TypeVar("T")

_CRYPTO_TIMEOUT_S = 3.0
"""Twice within the platform's patience. Not less: under load a repeated call adds to the load, and loses its place."""
_OUTSIDE = {"SIGNATURE_MISMATCH", "STALE_CALLBACK", "RECEIVER_MISMATCH", "UNDECRYPTABLE"}
"""Reasons that look the same from outside, so that nobody learns from our answer how far a forgery came."""
_CALLBACKS = Counter("assistant_callbacks", "Callbacks by how they were answered.", ["channel", "outcome"])


class Intake:
    """Answers callbacks of all accounts."""

    def __init__(self, crypto: "CryptoServiceAsyncStub", turns: Turns, *, passive_budget_s: float) -> None:
        self._crypto = crypto
        self._turns = turns
        self._passive_budget_s = passive_budget_s

    async def answer(self, account: Account, codec: Codec, callback: Callback, arrived_at: float) -> Answer:
        """Answer one callback. A valid one is never refused: trouble of ours is waited out."""
        try:
            answer, outcome = await self._answer(account, codec, callback, arrived_at)
        except AssistantError as error:
            telemetry.warning("callback_refused", channel=account.channel, reason=error.reason, detail=error.message)
            answer, outcome = refusal(error), error.reason.lower()
        except Exception as error:
            telemetry.error("callback_broken", error, channel=account.channel)
            answer, outcome = refusal(Internal()), Internal.reason.lower()
        _count(account.channel, outcome).inc()
        return answer

    async def _answer(
        self, account: Account, codec: Codec, callback: Callback, arrived_at: float
    ) -> tuple[Answer, str]:
        # Past the platform's own limit it has given up on this callback and will repeat it.
        give_up_at = arrived_at + codec.reply_limit_s + 1.0
        opened = await _insist(lambda: self._open(account, callback), give_up_at)
        if opened.HasField("challenge"):
            return Answer(opened.challenge.body, opened.challenge.content_type), "challenge"
        message = codec.parse(opened.payload)
        budget_s = min(self._passive_budget_s, codec.reply_limit_s)
        payload = await _insist(lambda: self._turns.answer(message, codec, arrived_at, budget_s), give_up_at)
        if payload is None:
            return Answer(codec.acknowledgement.body, codec.acknowledgement.content_type), "acknowledged"
        try:
            return await _insist(lambda: self._seal(account, payload, callback, opened.key_id), give_up_at), "passive"
        finally:
            self._turns.handed_out(message)

    async def _open(self, account: Account, callback: Callback) -> OpenCallbackResponse:
        request = OpenCallbackRequest(
            account=account,
            method=callback.method,
            query=callback.query,
            headers=callback.headers,
            body=callback.body,
        )
        return await self._crypto.OpenCallback(request, timeout=_CRYPTO_TIMEOUT_S)

    async def _seal(self, account: Account, payload: bytes, callback: Callback, key_id: str) -> Answer:
        request = SealReplyRequest(account=account, payload=payload, query=callback.query, key_id=key_id)
        sealed = await self._crypto.SealReply(request, timeout=_CRYPTO_TIMEOUT_S)
        return Answer(sealed.body, sealed.content_type)


async def _insist(attempt: Callable[[], Awaitable[T]], give_up_at: float) -> T:
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
