"""Opening callbacks and sealing answers as WeCom does.

Source: WeCom developer documentation, 90930 回调配置 and 90968 加解密方案说明.
"""

import binascii
import hmac
import os
import struct
from collections.abc import Callable, Mapping
from hashlib import sha1
from urllib.parse import unquote

from Crypto.Cipher import AES

from assistant import plugin, xml
from assistant.errors import (
    InvalidKey,
    MalformedEnvelope,
    ReceiverMismatch,
    SignatureMismatch,
    StaleCallback,
    Undecryptable,
    UnsupportedMediaType,
)
from assistant.plugin import Callback, HttpBody, Opened
from plugins.channels.wecom import CryptoSettings, check_key

_BLOCK_BYTES = 32
"""Padding is counted in blocks of the key's size, not of the cipher's."""
_CIPHER_BLOCK_BYTES = 16
_SALT_BYTES = 16
_HEADER_BYTES = _SALT_BYTES + 4
_ENVELOPE = (
    "<xml><Encrypt><![CDATA[{encrypted}]]></Encrypt><MsgSignature><![CDATA[{signature}]]></MsgSignature>"
    "<TimeStamp>{timestamp}</TimeStamp><Nonce><![CDATA[{nonce}]]></Nonce></xml>"
)


_UNTYPED = ("text/plain", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types that clients send when nobody told them what it is."""


class Key:
    """A Token and an EncodingAESKey, decoded. For one thread only.

    Making a cipher costs several times what using it costs, so two are kept. A CBC cipher goes on where it ended,
    and each message must begin with the IV: both are led back to it by one block that is then left out.
    """

    __slots__ = ("_decryptor", "_encryptor", "_iv", "_last", "_to_iv", "token")

    def __init__(self, token: str, aes: bytes) -> None:
        self.token = token
        self._iv = self._last = aes[:_CIPHER_BLOCK_BYTES]
        self._to_iv = int.from_bytes(AES.new(aes, AES.MODE_ECB).decrypt(self._iv))
        self._decryptor = AES.new(aes, AES.MODE_CBC, self._iv)
        self._encryptor = AES.new(aes, AES.MODE_CBC, self._iv)

    def decrypt(self, ciphertext: bytes) -> bytes:
        """A block is read with the ciphertext before it."""
        return self._decryptor.decrypt(self._iv + ciphertext)[_CIPHER_BLOCK_BYTES:]

    def encrypt(self, plain: bytes) -> bytes:
        """The block in front encrypts to the IV, whatever was encrypted last."""
        lead = (self._to_iv ^ int.from_bytes(self._last)).to_bytes(_CIPHER_BLOCK_BYTES)
        ciphertext = self._encryptor.encrypt(lead + plain)[_CIPHER_BLOCK_BYTES:]
        self._last = ciphertext[-_CIPHER_BLOCK_BYTES:]
        return ciphertext


class Crypto(plugin.Crypto):
    """The callback of one self-built application."""

    def __init__(self, settings: CryptoSettings, random: Callable[[int], bytes] = os.urandom) -> None:
        self._settings = settings
        self._receiver = settings.corpid.encode()
        self._random = random

    def configured_material(self) -> dict[str, str]:
        """Token and EncodingAESKey of the settings."""
        return {"token": self._settings.token, "aeskey": self._settings.aeskey}

    def key(self, material: Mapping[str, str]) -> Key:
        """Parse {"token", "aeskey"}. The spare bits of the 43rd character may be set: the console sets them."""
        if material.keys() != {"token", "aeskey"}:
            raise InvalidKey("the material of a key is a token and an aeskey: give both, and nothing else")
        try:
            check_key(material["token"], material["aeskey"])
        except ValueError as error:
            raise InvalidKey(str(error)) from None
        return Key(material["token"], binascii.a2b_base64(material["aeskey"] + "="))

    def open(self, callback: Callback, keys: Mapping[str, Key], now: float, max_age_s: float) -> Opened:
        """Open a check of the address (GET) or a message (POST)."""
        query = _parameters(callback.query)
        match callback.method:
            case "GET":
                encrypted = query["echostr"]
            case "POST":
                _check_content_type(callback.headers.get("content-type", ""))
                encrypted = _encrypted(callback.body)
            case method:
                raise MalformedEnvelope(f"WeCom calls with GET and POST, not with {method[:16]!r}")
        signers = _signers(keys, query, encrypted)
        _check_age(query["timestamp"], now, max_age_s)
        key_id, message = self._decrypt(_ciphertext(encrypted), signers)
        if callback.method == "GET":
            _check_echo(message)
            return Opened(key_id, challenge=HttpBody(message, "text/plain"))
        return Opened(key_id, message)

    def seal(self, payload: bytes, query: str, key: Key, now: float) -> HttpBody:
        """Write the envelope of a passive reply (90968, 被动响应包). Its time stamp and nonce are its own."""
        plain = self._random(_SALT_BYTES) + struct.pack(">I", len(payload)) + payload + self._receiver
        padding = _BLOCK_BYTES - len(plain) % _BLOCK_BYTES
        ciphertext = key.encrypt(plain + bytes([padding]) * padding)
        encrypted = binascii.b2a_base64(ciphertext, newline=False).decode()
        timestamp, nonce = str(int(now)), str(int.from_bytes(self._random(4), "big"))
        envelope = _ENVELOPE.format(
            encrypted=encrypted,
            signature=_signature(key.token, timestamp, nonce, encrypted),
            timestamp=timestamp,
            nonce=nonce,
        )
        return HttpBody(envelope.encode(), "application/xml")

    def _decrypt(self, ciphertext: bytes, signers: Mapping[str, Key]) -> tuple[str, bytes]:
        """Keys may share a Token: then the one that decrypts it is meant."""
        for key_id, key in signers.items():
            opened = _unpack(key.decrypt(ciphertext))
            if opened is None:
                continue
            message, receiver = opened
            if receiver != self._receiver:
                raise ReceiverMismatch(
                    "the callback is for another company or suite than the configured corpid: "
                    "compare it with 我的企业 > 企业ID in the console"
                )
            return key_id, message
        raise Undecryptable(
            "the signature fits, but the EncodingAESKey does not: copy it from the console, "
            "from the same application as the Token"
        )


class _Query(dict[str, str]):
    def __missing__(self, name: str) -> str:
        raise MalformedEnvelope(f"the query has no {name}: this is no callback of WeCom, or a proxy removed it")


def _parameters(query: str) -> _Query:
    """Decode each value exactly once, and leave "+" as it is: base64 has it, and WeCom writes no spaces."""
    if not query.isascii():
        raise MalformedEnvelope("the query is not percent-encoded: this is no callback of WeCom")
    parameters = _Query()
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name in parameters:
            raise MalformedEnvelope("a parameter of the query is given twice: this is no callback of WeCom")
        parameters[name] = unquote(value)
    return parameters


def _check_content_type(content_type: str) -> None:
    """WeCom's documentation names none, so only what cannot be XML is refused."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind and not kind.endswith("xml") and kind not in _UNTYPED:
        raise UnsupportedMediaType(f"WeCom posts XML, not {kind[:40]!r}")


def _encrypted(body: bytes) -> str:
    try:
        encrypted = xml.read(body).findtext("Encrypt")
    except xml.NotWellFormed as error:
        raise MalformedEnvelope(f"the body is not the XML that WeCom sends: {error}") from None
    if not encrypted:
        raise MalformedEnvelope("the body has no Encrypt: this is no callback of WeCom")
    return encrypted


def _signature(token: str, timestamp: str, nonce: str, encrypted: str) -> str:
    """SHA-1 over the sorted parts, in hex (90968, 签名校验)."""
    parts = "".join(sorted((token, timestamp, nonce, encrypted)))
    return sha1(parts.encode(), usedforsecurity=False).hexdigest()


def _signers(keys: Mapping[str, Key], query: Mapping[str, str], encrypted: str) -> dict[str, Key]:
    """The keys that may have signed this. All are tried, so that the time taken tells nothing."""
    given, timestamp, nonce = query["msg_signature"].encode(), query["timestamp"], query["nonce"]
    signers = {
        key_id: key
        for key_id, key in keys.items()
        if hmac.compare_digest(_signature(key.token, timestamp, nonce, encrypted).encode(), given)
    }
    if not signers:
        raise SignatureMismatch(_advice(encrypted))
    return signers


def _advice(encrypted: str) -> str:
    if " " in encrypted:
        return 'a "+" of echostr arrived as a space: a proxy in front must forward the query unchanged'
    if "%" in encrypted:
        return "echostr arrived percent-encoded twice: a proxy in front must forward the query unchanged"
    return "the callback is not signed with the configured Token: copy the Token from the console again"


def _check_age(timestamp: str, now: float, max_age_s: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise MalformedEnvelope("timestamp is not a number of seconds")
    age_s = now - int(timestamp)
    if abs(age_s) > max_age_s:
        raise StaleCallback(
            f"the callback was signed {abs(age_s):.0f} s in the {'past' if age_s > 0 else 'future'}, and at most "
            f"{max_age_s:.0f} s are accepted: a replay, or this machine's clock is wrong (check NTP)"
        )


def _check_echo(message: bytes) -> None:
    """A signature says not what was signed: who saw a message could have it decrypted as an echostr otherwise."""
    if message.lstrip().startswith((b"<", b"{")):
        raise SignatureMismatch(
            "echostr holds a message, not what WeCom checks an address with: somebody wants to read it"
        )


def _ciphertext(encrypted: str) -> bytes:
    try:
        ciphertext = binascii.a2b_base64(encrypted, strict_mode=True)
    except ValueError:  # also for what is not ASCII
        raise MalformedEnvelope("the ciphertext is not base64") from None
    if not ciphertext or len(ciphertext) % _BLOCK_BYTES:
        raise MalformedEnvelope(f"the ciphertext's length is no multiple of {_BLOCK_BYTES} bytes")
    return ciphertext


def _unpack(padded: bytes) -> tuple[bytes, bytes] | None:
    """Message and receiver of 16 random bytes, length, message, receiver, padding. None if it is not that."""
    padding = padded[-1]
    if not 1 <= padding <= _BLOCK_BYTES or not padded.endswith(bytes([padding]) * padding):
        return None
    plain = padded[:-padding]
    if len(plain) < _HEADER_BYTES:
        return None
    (size,) = struct.unpack_from(">I", plain, _SALT_BYTES)
    end = _HEADER_BYTES + size
    return (plain[_HEADER_BYTES:end], plain[end:]) if end <= len(plain) else None
