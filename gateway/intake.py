"""Intake: from a callback to its HTTP answer, the whole pipeline on one screen.

open (crypto_svc) > parse (codec) > admit and answer (turns) > seal (crypto_svc), or acknowledge.
"""

from typing import TYPE_CHECKING

from assistant import telemetry
from assistant.api.crypto.v1.crypto_pb2 import OpenCallbackRequest
from assistant.api.message.v1.message_pb2 import Account
from assistant.errors import AssistantError, Internal
from assistant.plugin import Callback, Codec
from gateway.held import CRYPTO_TIMEOUT_S, HeldCallback, insist
from gateway.loop import Answer, Exchange
from gateway.sources import Sources
from gateway.turns import Turns

if TYPE_CHECKING:
    from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceAsyncStub


class Intake:
    """Takes callbacks of all accounts."""

    def __init__(
        self, crypto: "CryptoServiceAsyncStub", turns: Turns, *, passive_budget_s: float, sources: Sources | None = None
    ) -> None:
        """`sources` None: callbacks are accepted from everywhere."""
        self.sources = sources
        self._crypto = crypto
        self._turns = turns
        self._passive_budget_s = passive_budget_s

    async def take(
        self,
        account: Account,
        codec: Codec,
        callback: Callback,
        arrived_at: float,
        exchange: Exchange,
        request_id: str,
        source: str = "",
    ) -> None:
        """See one callback to its end. A valid one is never refused: trouble of ours is waited out.

        `arrived_at` is on the monotonic clock; `request_id` is the edge's name for the callback; `source` the address
        that it came from, needed where there are `sources`. The HTTP answer is given on the way; where it only
        acknowledges, the turn goes on after it.
        """
        telemetry.request_id.set(request_id)
        # Past the platform's own limit it has given up on this callback and will repeat it.
        give_up_at = arrived_at + codec.reply_limit_s + 1.0
        held = HeldCallback(exchange, self._crypto, account, callback.query, codec.acknowledgement, give_up_at)
        try:
            if self.sources is not None:
                self.sources.check(account, source)
            await self._take(account, codec, callback, arrived_at, held)
        except AssistantError as error:
            held.refuse(error)
        except Exception as error:
            telemetry.error("callback_broken", error, channel=account.channel)
            held.refuse(Internal())

    async def _take(
        self, account: Account, codec: Codec, callback: Callback, arrived_at: float, held: HeldCallback
    ) -> None:
        request = OpenCallbackRequest(account=account, method=callback.method, query=callback.query, body=callback.body)
        for name, value in callback.headers.items():
            request.headers[name] = value
        opened = await insist(lambda: self._crypto.OpenCallback(request, timeout=CRYPTO_TIMEOUT_S), held.give_up_at)
        if opened.HasField("challenge"):
            held.respond(Answer(opened.challenge.body, opened.challenge.content_type), "challenge")
            return
        held.key_id = opened.key_id
        message = codec.parse(opened.payload)
        budget_s = min(self._passive_budget_s, codec.reply_limit_s)
        await insist(lambda: self._turns.take(message, codec, held, arrived_at, budget_s), held.give_up_at)
