"""Opening callbacks and sealing answers: HMAC-SHA256 over everything, AES-256-GCM for the message.

A callback is `POST ?timestamp=…&nonce=…&signature=…` with an envelope in JSON. A check of the address is
`GET ?timestamp=…&nonce=…&challenge=…&signature=…`, answered with the challenge.
"""

import base64
import hmac
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import msgspec
from Crypto.Cipher import AES

from assistant import plugin
from assistant.errors import (
    InvalidKey,
    MalformedEnvelope,
    ReceiverMismatch,
    SignatureMismatch,
    StaleCallback,
    Undecryptable,
)
from assistant.plugin import Callback, HttpBody, Opened
from plugins.channels.loopback import CryptoSettings, check_key

_NONCE_BYTES = 12
_TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Key:
    """A token and an aeskey, decoded."""

    token: bytes = field(repr=False)
    aes: bytes = field(repr=False)


class Envelope(msgspec.Struct, frozen=True):
    """The body of a callback."""

    company: str
    sealed: bytes
    """Nonce, ciphertext and tag; in base64 on the wire."""


class SignedEnvelope(Envelope, frozen=True):
    """The body of an answer: it has no query to be signed in."""

    timestamp: str
    nonce: str
    signature: str


class Crypto(plugin.Crypto):
    """The callback of one account."""

    def __init__(self, settings: CryptoSettings, random: Callable[[int], bytes] = os.urandom) -> None:
        self._settings = settings
        self._random = random

    def configured_material(self) -> dict[str, str]:
        """Token and aeskey of the settings."""
        return {"token": self._settings.token, "aeskey": self._settings.aeskey}

    def key(self, material: Mapping[str, str]) -> Key:
        """Parse {"token", "aeskey"}."""
        if material.keys() != {"token", "aeskey"}:
            raise InvalidKey("the material of a key is a token and an aeskey: give both, and nothing else")
        try:
            check_key(material["token"], material["aeskey"])
        except ValueError as error:
            raise InvalidKey(str(error)) from None
        return Key(material["token"].encode(), base64.b64decode(material["aeskey"]))

    def open(self, callback: Callback, keys: Mapping[str, Key], now: float, max_age_s: float) -> Opened:
        """Verify before anything in the request is believed; then age, receiver, ciphertext."""
        query = _parameters(callback.query)
        is_check = callback.method == "GET"
        signed = query["challenge"].encode() if is_check else callback.body
        signers = _signers(keys, query, signed)
        _check_age(query["timestamp"], now, max_age_s)
        if is_check:
            return Opened(next(iter(signers)), challenge=HttpBody(signed, "text/plain"))
        envelope = _envelope(callback.body)
        if envelope.company != self._settings.company:
            raise ReceiverMismatch("the callback is for another company than the configured one")
        key_id, payload = _decrypt(envelope, signers)
        return Opened(key_id, payload)

    def seal(self, payload: bytes, query: str, key: Key, now: float) -> HttpBody:
        """Write the envelope of an answer, with a time stamp and a nonce of its own."""
        company, nonce = self._settings.company, self._random(_NONCE_BYTES)
        ciphertext, tag = _cipher(key, nonce, company).encrypt_and_digest(payload)
        sealed = nonce + ciphertext + tag
        timestamp, stamp_nonce = str(int(now)), self._random(8).hex()
        envelope = SignedEnvelope(
            company, sealed, timestamp, stamp_nonce, _signature(key, timestamp, stamp_nonce, sealed)
        )
        return HttpBody(msgspec.json.encode(envelope), "application/json")


class _Query(dict[str, str]):
    def __missing__(self, name: str) -> str:
        raise MalformedEnvelope(f"the query has no {name}")


def _parameters(query: str) -> _Query:
    if not query.isascii():
        raise MalformedEnvelope("the query is not percent-encoded")
    parameters = _Query()
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name in parameters:
            raise MalformedEnvelope("a parameter of the query is given twice")
        parameters[name] = unquote(value)
    return parameters


def _signature(key: Key, timestamp: str, nonce: str, signed: bytes) -> str:
    return hmac.digest(key.token, f"{timestamp}\n{nonce}\n".encode() + signed, "sha256").hex()


def _signers(keys: Mapping[str, Key], query: Mapping[str, str], signed: bytes) -> dict[str, Key]:
    """The keys that may have signed this. All are tried, so that the time taken tells nothing."""
    given, timestamp, nonce = query["signature"].encode(), query["timestamp"], query["nonce"]
    signers = {
        key_id: key
        for key_id, key in keys.items()
        if hmac.compare_digest(_signature(key, timestamp, nonce, signed).encode(), given)
    }
    if not signers:
        raise SignatureMismatch("the callback is not signed with the configured token")
    return signers


def _check_age(timestamp: str, now: float, max_age_s: float) -> None:
    if not re.fullmatch("[0-9]{1,12}", timestamp):
        raise MalformedEnvelope("timestamp is not a number of seconds")
    age_s = now - int(timestamp)
    if abs(age_s) > max_age_s:
        raise StaleCallback(
            f"the callback was signed {abs(age_s):.0f} s in the {'past' if age_s > 0 else 'future'}, "
            f"and at most {max_age_s:.0f} s are accepted"
        )


def _envelope(body: bytes) -> Envelope:
    try:
        return msgspec.json.decode(body, type=Envelope)
    except (ValueError, RecursionError):
        raise MalformedEnvelope("the body is not the JSON that the platform sends") from None


def _decrypt(envelope: Envelope, signers: Mapping[str, Key]) -> tuple[str, bytes]:
    """Keys may share a token: then the one that decrypts it is meant."""
    nonce, ciphertext, tag = (
        envelope.sealed[:_NONCE_BYTES],
        envelope.sealed[_NONCE_BYTES:-_TAG_BYTES],
        envelope.sealed[-_TAG_BYTES:],
    )
    if len(envelope.sealed) < _NONCE_BYTES + _TAG_BYTES:
        raise MalformedEnvelope("sealed is too short for a nonce and a tag")
    for key_id, key in signers.items():
        try:
            return key_id, _cipher(key, nonce, envelope.company).decrypt_and_verify(ciphertext, tag)
        except ValueError:
            continue
    raise Undecryptable("the signature fits, but the aeskey does not: it belongs to another token")


def _cipher(key: Key, nonce: bytes, company: str) -> Any:
    """The company is sealed in: no envelope of one opens as another's."""
    cipher = AES.new(key.aes, AES.MODE_GCM, nonce=nonce)
    cipher.update(company.encode())
    return cipher
