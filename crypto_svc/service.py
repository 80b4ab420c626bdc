"""CryptoService: verifies, decrypts and encrypts for every channel."""

import asyncio
import re
import time
from collections.abc import Callable
from functools import cache

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import Counter

from assistant import telemetry
from assistant.api.crypto.v1.crypto_pb2 import (
    AddKeyRequest,
    AddKeyResponse,
    Challenge,
    Key,
    ListKeysRequest,
    ListKeysResponse,
    OpenCallbackRequest,
    OpenCallbackResponse,
    RetireKeyRequest,
    RetireKeyResponse,
    SealReplyRequest,
    SealReplyResponse,
)
from assistant.api.message.v1.message_pb2 import Account
from assistant.errors import AssistantError, InvalidRequest, PayloadTooLarge
from assistant.plugin import Callback
from assistant.server import Call
from assistant.settings import DEFAULT_ACCOUNT
from crypto_svc.keyring import AccountKeys, AccountName, KeyRecord, Keyring

MAX_BODY_BYTES = 256 * 1024

_callbacks = Counter("assistant_callbacks_opened", "Callbacks by what came of opening them.", ("channel", "outcome"))


@cache
def _outcome(channel: str, outcome: str) -> Counter:
    return _callbacks.labels(channel, outcome)


class CryptoService:
    """What is computed is answered inline; what waits for the disk is not."""

    def __init__(self, keyring: Keyring, max_age_s: float, clock: Callable[[], float] = time.time) -> None:
        self._keyring = keyring
        self._max_age_s = max_age_s
        self._clock = clock

    def OpenCallback(self, request: OpenCallbackRequest, call: Call) -> OpenCallbackResponse:
        channel, name = _name(request.account)
        keys = self._keyring.of((channel, name))
        if len(request.body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"the callback has {len(request.body)} bytes, and none has over {MAX_BODY_BYTES}")
        callback = Callback(request.method, request.query, request.headers, request.body)
        try:
            opened = keys.open(callback, self._clock(), self._max_age_s)
        except AssistantError as error:
            _outcome(channel, error.reason).inc()
            telemetry.warning(
                "callback_refused",
                channel=channel,
                account=name,
                reason=error.reason,
                advice=str(error),
            )
            raise
        _outcome(channel, "OPENED").inc()
        telemetry.info("callback_opened", channel=channel, account=name, key_id=opened.key_id)
        if opened.challenge is None:
            return OpenCallbackResponse(payload=opened.payload, key_id=opened.key_id)
        challenge = Challenge(body=opened.challenge.body, content_type=opened.challenge.content_type)
        return OpenCallbackResponse(challenge=challenge, key_id=opened.key_id)

    def SealReply(self, request: SealReplyRequest, call: Call) -> SealReplyResponse:
        keys = self._keyring.of(_name(request.account))
        sealed = keys.seal(request.payload, request.query, request.key_id, self._clock())
        return SealReplyResponse(body=sealed.body, content_type=sealed.content_type)

    def ListKeys(self, request: ListKeysRequest, call: Call) -> ListKeysResponse:
        keys = self._keyring.of(_name(request.account))
        return ListKeysResponse(keys=[_key(record, keys) for record in reversed(keys.records.values())])

    async def AddKey(self, request: AddKeyRequest, call: Call) -> AddKeyResponse:
        if not re.fullmatch("[a-z0-9-]{1,64}", request.key_id):
            raise InvalidRequest('key_id must be 1 to 64 characters of a-z, 0-9 and "-"')
        account = _name(request.account)
        material = dict(request.material)
        record = await asyncio.to_thread(self._keyring.add, account, request.key_id, material, call.caller)
        return AddKeyResponse(key=_key(record, self._keyring.of(account)))

    async def RetireKey(self, request: RetireKeyRequest, call: Call) -> RetireKeyResponse:
        account = _name(request.account)
        record = await asyncio.to_thread(self._keyring.retire, account, request.key_id, call.caller)
        return RetireKeyResponse(key=_key(record, self._keyring.of(account)))


def _name(account: Account) -> AccountName:
    return account.channel, account.name or DEFAULT_ACCOUNT


def _key(record: KeyRecord, keys: AccountKeys) -> Key:
    return Key(
        key_id=record.key_id,
        added_at=_timestamp(record.added_at),
        retired_at=_timestamp(record.retired_at),
        last_used_at=_timestamp(keys.last_used.get(record.key_id)),
        configured=record.key_id == keys.configured_id,
    )


def _timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    timestamp = Timestamp()
    timestamp.FromMicroseconds(int(seconds * 1e6))
    return timestamp
