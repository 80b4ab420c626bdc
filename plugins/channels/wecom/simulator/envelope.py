"""How WeCom signs and encrypts what it and an app send each other.

Source: WeCom developer documentation, 90968, 加解密方案说明.
"""

import base64
import hashlib
import hmac
import os
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

_RANDOM_BYTES = 16
_LENGTH_BYTES = 4
_PADDING_BITS = 32 * 8  # the platform pads to 32 bytes, not to AES' block of 16


class Envelope:
    """Token and EncodingAESKey of one app, and the CorpID that it belongs to."""

    def __init__(self, token: str, aeskey: str, corpid: str, random: Callable[[int], bytes] = os.urandom) -> None:
        """Raises ValueError if the EncodingAESKey is none."""
        try:
            key = base64.b64decode(aeskey + "=", validate=True)
        except ValueError:
            key = b""
        if len(aeskey) != 43 or len(key) != 32:
            raise ValueError("aeskey is not 43 characters of base64: copy EncodingAESKey from the app's callback page")
        self._token = token
        self._corpid = corpid
        self._random = random
        self._cipher = Cipher(AES(key), CBC(key[:16]))

    def signature(self, timestamp: str, nonce: str, encrypted: str) -> str:
        """SHA-1 over the sorted parts, in hex."""
        parts = sorted((self._token, timestamp, nonce, encrypted))
        return hashlib.sha1("".join(parts).encode(), usedforsecurity=False).hexdigest()

    def verify(self, signature: str, timestamp: str, nonce: str, encrypted: str) -> None:
        """Raises ValueError unless the signature is that of the other three."""
        if not hmac.compare_digest(signature.encode(), self.signature(timestamp, nonce, encrypted).encode()):
            raise ValueError("the signature does not fit: Token differs, or the content was changed on its way")

    def encrypt(self, message: bytes, receiver: str | None = None) -> str:
        """Base64 of random bytes, length, message and receiver (by default the CorpID), encrypted."""
        receiver = self._corpid if receiver is None else receiver
        plain = self._random(_RANDOM_BYTES) + len(message).to_bytes(_LENGTH_BYTES) + message + receiver.encode()
        padder, encryptor = PKCS7(_PADDING_BITS).padder(), self._cipher.encryptor()
        padded = padder.update(plain) + padder.finalize()
        return base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode()

    def decrypt(self, encrypted: str) -> bytes:
        """The message. Raises ValueError if it was not encrypted with this key for this CorpID."""
        decryptor, unpadder = self._cipher.decryptor(), PKCS7(_PADDING_BITS).unpadder()
        try:
            padded = decryptor.update(base64.b64decode(encrypted, validate=True)) + decryptor.finalize()
            plain = unpadder.update(padded) + unpadder.finalize()
        except ValueError:
            raise ValueError("it does not decrypt: EncodingAESKey differs, or the content was changed") from None
        start = _RANDOM_BYTES + _LENGTH_BYTES
        end = start + int.from_bytes(plain[_RANDOM_BYTES:start])
        if len(plain) < start or end > len(plain):
            raise ValueError("the length in it is larger than the message")
        if plain[end:] != self._corpid.encode():
            raise ValueError("it was encrypted for another CorpID")
        return plain[start:end]
