"""What is WeCom's own in opening and sealing; what all channels keep is tested in tests/contract."""

import base64
import hashlib
import struct
from collections.abc import Mapping
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assistant.errors import (
    AssistantError,
    InvalidKey,
    InvalidSetting,
    MalformedEnvelope,
    ReceiverMismatch,
    SignatureMismatch,
    Undecryptable,
)
from assistant.plugin import Callback
from assistant.settings import Secret, Source
from plugins.channels.wecom import CryptoSettings, manifest
from plugins.channels.wecom.crypto import Crypto, Key

NOW = 1_700_000_000
CORPID = "ww1234567890abcdef"
TOKEN = "QDG6eK"
AESKEY = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C"
OTHER_AESKEY = "kWxPEV2UEDyxWpmPdKC3F4dgPDmOvfKX1HGnEUDS1aR"
REFUSALS = (SignatureMismatch, MalformedEnvelope, Undecryptable)


@pytest.fixture
def crypto() -> Crypto:
    return Crypto(CryptoSettings(corpid=CORPID, token=Secret(TOKEN), aeskey=Secret(AESKEY)))


@pytest.fixture
def keys(crypto: Crypto) -> dict[str, Key]:
    return {"configured": crypto.key(crypto.configured_material())}


def encrypted(plain: bytes, aeskey: str = AESKEY) -> str:
    """Any plaintext whose length is a multiple of 16, layout and padding included."""
    key = base64.b64decode(aeskey + "=")
    encryptor = Cipher(AES(key), CBC(key[:16])).encryptor()
    return base64.b64encode(encryptor.update(plain) + encryptor.finalize()).decode()


def packed(message: bytes, size: int | None = None, receiver: str = CORPID) -> bytes:
    plain = b"r" * 16 + struct.pack(">I", len(message) if size is None else size) + message + receiver.encode()
    padding = 32 - len(plain) % 32
    return plain + bytes([padding]) * padding


def posted(encrypt: str, timestamp: str = str(NOW), nonce: str = "n") -> Callback:
    """Only what is signed, and the least that must stand around it."""
    signature = hashlib.sha1("".join(sorted([TOKEN, timestamp, nonce, encrypt])).encode()).hexdigest()
    query = f"msg_signature={signature}&timestamp={quote(timestamp)}&nonce={quote(nonce)}"
    return Callback("POST", query, {}, f"<xml><Encrypt>{encrypt}</Encrypt></xml>".encode())


def refusal(crypto: Crypto, callback: Callback, keys: Mapping[str, Key]) -> AssistantError:
    with pytest.raises(REFUSALS) as refused:
        crypto.open(callback, keys, NOW, 300)
    return refused.value


def test_no_bit_of_a_callback_can_be_changed(crypto: Crypto, keys: dict[str, Key]) -> None:
    """Of a callback that holds only what is signed, no bit can be changed."""
    callback = posted(encrypted(packed(b"hello")))
    assert crypto.open(callback, keys, NOW, 300).payload == b"hello"
    query = callback.query.encode()
    for place in range(8 * (len(query) + len(callback.body))):
        changed = bytearray(query + callback.body)
        changed[place // 8] ^= 1 << place % 8
        forged = Callback("POST", changed[: len(query)].decode("latin-1"), {}, bytes(changed[len(query) :]))
        refusal(crypto, forged, keys)


@pytest.mark.parametrize("message", [b"<xml>words</xml>", b" <xml/>", b'{"msgid": "1"}'])
def test_a_message_is_no_echostr(crypto: Crypto, keys: dict[str, Key], message: bytes) -> None:
    """What was signed as a message is not decrypted as a check of the address."""
    ciphertext = encrypted(packed(message))
    asked = Callback("GET", f"{posted(ciphertext).query}&echostr={quote(ciphertext, safe='')}", {}, b"")
    assert "echostr holds a message" in str(refusal(crypto, asked, keys))


def test_keys_may_share_a_token(crypto: Crypto, keys: dict[str, Key]) -> None:
    """When only the EncodingAESKey was changed, each callback is opened with the key that encrypted it."""
    keys["new"] = crypto.key({"token": TOKEN, "aeskey": OTHER_AESKEY})
    for key_id, aeskey in (("configured", AESKEY), ("new", OTHER_AESKEY)):
        opened = crypto.open(posted(encrypted(packed(b"hello"), aeskey)), keys, NOW, 300)
        assert (opened.key_id, opened.payload) == (key_id, b"hello")


def test_an_aeskey_of_another_application_is_told(crypto: Crypto, keys: dict[str, Key]) -> None:
    """A right Token with a wrong EncodingAESKey says so."""
    error = refusal(crypto, posted(encrypted(packed(b"hello"), OTHER_AESKEY)), keys)
    assert isinstance(error, Undecryptable)
    assert "EncodingAESKey" in error.message


@pytest.mark.parametrize(
    "plain",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x20" * 32, id="padding alone"),
        pytest.param(b"\x00" * 32, id="padding of 0"),
        pytest.param(b"x" * 31 + b"\x21", id="padding of 33"),
        pytest.param(b"x" * 30 + b"\x01\x02", id="padding of two values"),
        pytest.param(b"x" * 15 + b"\x11" * 17, id="shorter than its header"),
        pytest.param(packed(b"hello", 2**32 - 1), id="length of 4 GiB"),
        pytest.param(packed(b"hello", 5 + len(CORPID) + 1), id="length one too large"),
    ],
)
def test_what_does_not_unpack_is_refused(crypto: Crypto, keys: dict[str, Key], plain: bytes) -> None:
    """A well signed callback with an impossible plaintext is refused with a named error."""
    refusal(crypto, posted(encrypted(plain)), keys)


@given(plain=st.binary(max_size=200), size=st.integers(0, 2**32 - 1) | st.integers(0, 64), padding=st.integers(0, 255))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_plaintext_is_unpacked_or_refused(
    crypto: Crypto, keys: dict[str, Key], plain: bytes, size: int, padding: int
) -> None:
    """Whatever a well signed callback decrypts to is unpacked, or refused with a named error."""
    layout = b"r" * 16 + struct.pack(">I", size) + plain
    layout += bytes([padding]) * (32 - len(layout) % 32)
    try:
        opened = crypto.open(posted(encrypted(layout)), keys, NOW, 300)
    except (*REFUSALS, ReceiverMismatch):
        return
    assert opened.payload == plain[:size]


@pytest.mark.parametrize("encrypt", ["AAAA", "A" * 44 + "\n", "=" * 44, "é" * 44, "A" * 43, "A" * 22 + "=="])
def test_what_is_not_base64_of_blocks_is_refused(crypto: Crypto, keys: dict[str, Key], encrypt: str) -> None:
    """A well signed ciphertext must be base64, and whole blocks."""
    assert isinstance(refusal(crypto, posted(encrypt), keys), MalformedEnvelope)


@pytest.mark.parametrize("timestamp", ["", "now", "-1", "1e9", "١٧٠٠٠٠٠٠٠٠", "9" * 5000])
def test_a_timestamp_that_is_no_number_is_refused(crypto: Crypto, keys: dict[str, Key], timestamp: str) -> None:
    """A well signed time stamp must be a number of seconds."""
    callback = posted(encrypted(packed(b"hello")), timestamp)
    assert isinstance(refusal(crypto, callback, keys), MalformedEnvelope)


def test_an_unescaped_plus_is_a_plus(crypto: Crypto, keys: dict[str, Key]) -> None:
    """A "+" that arrives as it is stays one: base64 has it, and WeCom writes no spaces."""
    for number in range(100):
        callback = posted(encrypted(packed(b"%d" % number)))
        echostr = callback.body.decode().removeprefix("<xml><Encrypt>").removesuffix("</Encrypt></xml>")
        if "+" in echostr:
            break
    challenge = crypto.open(Callback("GET", f"{callback.query}&echostr={echostr}", {}, b""), keys, NOW, 300).challenge
    assert challenge is not None
    assert challenge.body == b"%d" % number
    assert challenge.content_type == "text/plain"


@pytest.mark.parametrize(("written", "advice"), [("%20", "as a space"), ("%252B", "encoded twice")])
def test_a_proxy_that_changes_the_query_is_told(
    crypto: Crypto, keys: dict[str, Key], written: str, advice: str
) -> None:
    """The two ways in which proxies spoil echostr are told from a wrong Token."""
    callback = Callback("GET", f"msg_signature=0&timestamp={NOW}&nonce=n&echostr=A{written}A", {}, b"")
    assert advice in refusal(crypto, callback, keys).message


@pytest.mark.parametrize(
    ("material", "told"),
    [
        ({"token": TOKEN}, "both"),
        ({"token": TOKEN, "aeskey": AESKEY, "corpid": CORPID}, "nothing else"),
        ({"token": "", "aeskey": AESKEY}, "token must be"),
        ({"token": "with space", "aeskey": AESKEY}, "token must be"),
        ({"token": TOKEN, "aeskey": AESKEY[:-1]}, "has 42 characters"),
        ({"token": TOKEN, "aeskey": AESKEY + "="}, "has 44 characters"),
        ({"token": TOKEN, "aeskey": AESKEY[:-1] + "\n"}, "aeskey must be"),
    ],
)
def test_a_wrong_key_is_told(crypto: Crypto, material: dict[str, str], told: str) -> None:
    """A key that the console cannot have shown is refused, and the message says which part and why."""
    with pytest.raises(InvalidKey, match=told) as refused:
        crypto.key(material)
    assert AESKEY[:20] not in refused.value.message


def test_a_wrong_setting_stops_the_start() -> None:
    """An EncodingAESKey that was not copied whole is found when settings are read, not with the first callback."""
    table = {"corpid": CORPID, "token": TOKEN, "aeskey": AESKEY[:-2]}
    source = Source({"channels": {"wecom": table}}, {}, "the test")
    with pytest.raises(InvalidSetting, match=r"channels\.wecom: aeskey must be 43 .* has 41 characters"):
        source.accounts(manifest.crypto, "wecom", manifest.settings())
