"""What strangers, broken proxies and broken platforms send: refused at once, with a reason in our log.

Everything goes through Envoy to all services. Envelopes are sealed by wechatpy, which shares no code with us.
"""

import base64
import json
import os
import socket
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from xml.sax.saxutils import escape

import pytest
from Crypto.Cipher import AES
from wechatpy.enterprise.crypto import WeChatCrypto
from wechatpy.utils import WeChatSigner

REFUSED = {"error": "CALLBACK_REFUSED", "message": "The callback is not one of this account's platform."}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: bytes

    @property
    def error(self) -> str:
        """The reason in the body."""
        return str(json.loads(self.body)["error"])


class Attacker:
    """Knows the keys where a test needs it, and sends what it likes."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh
        found = tomllib.loads((mesh.home / "simulator.toml").read_text())
        settings: dict[str, Any] = found["wecom"]
        self.settings = settings
        self.corpid = settings["corpid"]
        self.number = int.from_bytes(os.urandom(6), "big")
        self.looked_at = len(self.refusals())

    def payload(self, text: str = "ping", kind: str = "text", corpid: str = "") -> str:
        """The XML of a new message."""
        self.number += 1
        return (
            f"<xml><ToUserName>{corpid or self.corpid}</ToUserName><FromUserName>mallory</FromUserName>"
            f"<CreateTime>{int(time.time())}</CreateTime><MsgType>{kind}</MsgType><Content>{escape(text)}</Content>"
            f"<MsgId>{self.number}</MsgId><AgentID>{self.settings['agentid']}</AgentID></xml>"
        )

    def seal(self, payload: str, *, corpid: str = "", age_s: int = 0) -> tuple[dict[str, str], str]:
        """Query and ciphertext of a payload, by wechatpy."""
        crypto = WeChatCrypto(self.settings["token"], self.settings["aeskey"], corpid or self.corpid)
        timestamp = str(int(time.time()) - age_s)
        envelope = crypto.encrypt_message(payload, "nonce", timestamp)
        encrypted = envelope.split("<Encrypt><![CDATA[")[1].split("]]>")[0]
        return self.sign(encrypted, timestamp), encrypted

    def sign(self, encrypted: str, timestamp: str = "") -> dict[str, str]:
        """The query that goes with any ciphertext."""
        timestamp = timestamp or str(int(time.time()))
        signer = WeChatSigner()
        signer.add_data(self.settings["token"], timestamp, "nonce", encrypted)
        return {"msg_signature": signer.signature, "timestamp": timestamp, "nonce": "nonce"}

    def ciphertext(self, plain: bytes) -> str:
        """Any bytes, encrypted with the account's key."""
        key = base64.b64decode(self.settings["aeskey"] + "=")
        return base64.b64encode(AES.new(key, AES.MODE_CBC, key[:16]).encrypt(plain)).decode()

    def post(self, query: dict[str, str], encrypted: str, path: str = "/wecom") -> Answer:
        """A callback as the platform posts it."""
        body = f"<xml><ToUserName>{self.corpid}</ToUserName><Encrypt><![CDATA[{encrypted}]]></Encrypt></xml>"
        return self.send("POST", f"{path}?{urlencode(query)}", body.encode())

    def send(self, method: str, target: str, body: bytes = b"", content_type: str = "text/xml") -> Answer:
        """Any HTTP request."""
        headers = {"Content-Type": content_type} if content_type else {}
        request = urllib.request.Request(self.mesh.edge + target, body or None, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read())

    def connect(self) -> socket.socket:
        """A connection to Envoy, for what no HTTP library sends."""
        address = urlsplit(self.mesh.edge)
        return socket.create_connection((address.hostname, address.port), timeout=30)

    def log(self) -> str:
        """What the gateway logged."""
        return Path(self.mesh.home / "logs" / "gateway.log").read_text()

    def logged(self, words: str) -> None:
        """The gateway said this. Lines take a moment to reach the file."""
        self.mesh.until(lambda: words in self.log())

    def refusals(self) -> list[str]:
        """Why callbacks were refused, oldest first."""
        lines = [line for line in self.log().splitlines() if '"callback_refused"' in line]
        return [json.loads(line)["reason"] for line in lines]

    def refused_for(self, *reasons: str) -> None:
        """The callbacks since the last look were refused, the last one for one of these reasons."""
        found = self.mesh.until(lambda: self.refusals()[self.looked_at :])
        self.looked_at += len(found)
        assert found[-1] in reasons


@pytest.fixture
def attacker(healthy_mesh: Any) -> Iterator[Attacker]:
    """Afterwards the mesh still answers the next valid message, and has failed at nothing."""
    attacker = Attacker(healthy_mesh)
    yield attacker
    answer = attacker.post(*attacker.seal(attacker.payload("ping")))
    assert answer.status == 200
    assert b"<Encrypt>" in answer.body
    assert '"callback_broken"' not in attacker.log()


def test_a_wrong_missing_or_truncated_signature_is_refused(attacker: Attacker) -> None:
    """Nothing is believed that is not signed, and the answer does not tell how close it was."""
    query, encrypted = attacker.seal(attacker.payload())
    signature = query["msg_signature"]
    for wrong in ("0" * 40, signature[:-1], signature[:-1] + ("0" if signature[-1] != "0" else "1"), "", "é"):
        answer = attacker.post(query | {"msg_signature": wrong}, encrypted)
        assert (answer.status, json.loads(answer.body)) == (401, REFUSED)
    del query["msg_signature"]
    assert attacker.post(query, encrypted).status == 400


def test_a_replayed_callback_is_refused(attacker: Attacker) -> None:
    """A callback older than the freshness window is stale, however well it is signed."""
    answer = attacker.post(*attacker.seal(attacker.payload(), age_s=400))
    assert (answer.status, json.loads(answer.body)) == (401, REFUSED)
    attacker.refused_for("STALE_CALLBACK")


def test_a_callback_for_another_company_is_refused(attacker: Attacker) -> None:
    """Neither another receiveid in the envelope nor another ToUserName in the message is ours."""
    other = "ww0123456789abcdef"
    assert attacker.post(*attacker.seal(attacker.payload(), corpid=other)).status == 401
    attacker.refused_for("RECEIVER_MISMATCH")
    assert attacker.post(*attacker.seal(attacker.payload(corpid=other))).status == 401
    attacker.refused_for("RECEIVER_MISMATCH")


def test_a_flipped_bit_anywhere_in_the_ciphertext_is_refused(attacker: Attacker) -> None:
    """No position of the ciphertext can be changed."""
    query, encrypted = attacker.seal(attacker.payload())
    raw = base64.b64decode(encrypted)
    for position in range(len(raw)):
        flipped = raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
        answer = attacker.post(query, base64.b64encode(flipped).decode())
        assert (answer.status, json.loads(answer.body)) == (401, REFUSED), position


def test_bad_padding_looks_like_a_bad_signature(attacker: Attacker) -> None:
    """Even to somebody who can sign, padding, length and key errors all look the same."""
    for plain in (b"\0" * 64, b"\xff" * 64, os.urandom(16) + b"\xff\xff\xff\xff" + b"x" * 11 + b"\x01", b"\x21" * 96):
        encrypted = attacker.ciphertext(plain)
        answer = attacker.post(attacker.sign(encrypted), encrypted)
        assert (answer.status, json.loads(answer.body)) == (401, REFUSED)
        attacker.refused_for("UNDECRYPTABLE", "RECEIVER_MISMATCH")


def test_what_is_not_base64_is_refused(attacker: Attacker) -> None:
    """A signed ciphertext that is none is malformed."""
    for encrypted in ("not base64!", "====", "YWJj", ""):
        assert attacker.post(attacker.sign(encrypted), encrypted).status == 400


def test_an_echostr_whose_plus_became_a_space_says_so_in_the_log(attacker: Attacker) -> None:
    """The operator reads which proxy mistake it is; the platform's check fails."""
    encrypted = ""
    while "+" not in encrypted:
        query, encrypted = attacker.seal("1234567890")
    target = f"/wecom?{urlencode(query)}&echostr="
    assert attacker.send("GET", target + quote(encrypted, safe="")).body == b"1234567890"
    spoiled = quote(encrypted.replace("+", " "), safe="")
    assert attacker.send("GET", target + spoiled).status == 401
    attacker.logged("arrived as a space")


def test_a_message_is_decrypted_for_nobody(attacker: Attacker) -> None:
    """Who saw a callback or an answer learns no word of it by sending it as a check of the address."""
    query, encrypted = attacker.seal(attacker.payload("my salary is 100"))
    sealed = attacker.post(*attacker.seal(attacker.payload("ping"))).body.decode()
    fields = {name: sealed.split(f"<{name}>")[1].split(f"</{name}>")[0] for name in ("TimeStamp", "Nonce", "Encrypt")}
    fields = {name: value.removeprefix("<![CDATA[").removesuffix("]]>") for name, value in fields.items()}
    signature = sealed.split("<MsgSignature><![CDATA[")[1].split("]]>")[0]
    answer = {"msg_signature": signature, "timestamp": fields["TimeStamp"], "nonce": fields["Nonce"]}
    for seen, ciphertext in ((query, encrypted), (answer, fields["Encrypt"])):
        asked = attacker.send("GET", f"/wecom?{urlencode({**seen, 'echostr': ciphertext})}")
        assert (asked.status, json.loads(asked.body)) == (401, REFUSED)


MALFORMED_XML = {
    "not XML": b"hello",
    "cut off": b"<xml><Encrypt>abc",
    "empty": b"<xml/>",
    "deeply nested": b"<a>" * 20_000 + b"</a>" * 20_000,
    "external entity": b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><xml><Encrypt>&e;</Encrypt></xml>',
    "entity bomb": b'<!DOCTYPE x [<!ENTITY a "aaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><xml><Encrypt>&b;</Encrypt></xml>',
    "huge attribute": b'<xml a="' + b"a" * 200_000 + b'"><Encrypt>x</Encrypt></xml>',
    "invalid UTF-8": b"<xml><Encrypt>\xff\xfe</Encrypt></xml>",
    "NUL": b"<xml><Encrypt>\0</Encrypt></xml>",
}


@pytest.mark.parametrize("body", MALFORMED_XML.values(), ids=MALFORMED_XML.keys())
def test_malformed_envelopes_are_refused(attacker: Attacker, body: bytes) -> None:
    """The envelope is read before anything is believed, so it must survive everything."""
    answer = attacker.send("POST", f"/wecom?{urlencode(attacker.sign('x'))}", body)
    assert answer.status in (400, 401)


@pytest.mark.parametrize("body", [*MALFORMED_XML.values()], ids=[*MALFORMED_XML.keys()])
def test_malformed_messages_are_refused(attacker: Attacker, body: bytes) -> None:
    """A message that is sealed as it should be may still be anything."""
    crypto = WeChatCrypto(attacker.settings["token"], attacker.settings["aeskey"], attacker.corpid)
    length = len(body).to_bytes(4, "big")
    plain = os.urandom(16) + length + body + attacker.corpid.encode()
    padding = 32 - len(plain) % 32
    encrypted = attacker.ciphertext(plain + bytes([padding]) * padding)
    assert crypto.corp_id == attacker.corpid
    answer = attacker.post(attacker.sign(encrypted), encrypted)
    assert answer.status in (400, 413)


def test_an_unknown_kind_of_message_is_acknowledged(attacker: Attacker) -> None:
    """The platform may learn new kinds: they are recorded, and no error."""
    answer = attacker.post(*attacker.seal(attacker.payload(kind="hologram")))
    assert (answer.status, answer.body) == (200, b"")


def test_wrong_methods_paths_and_types_are_refused(attacker: Attacker) -> None:
    """Each gets its own status, and says what is wrong."""
    for method, target, status in (
        ("PUT", "/wecom", 405),
        ("DELETE", "/wecom", 405),
        ("GET", "/wecom/nobody", 404),
        ("GET", "/telegram", 404),
        ("GET", "/", 404),
        ("GET", "/metrics", 404),
        ("GET", "/inbox", 404),
        ("GET", "/healthz", 404),
        ("GET", "/wecom/../inbox", 404),
        ("GET", "/wecom%2f..%2finbox", 400),
        ("GET", "/wecom", 400),
    ):
        assert attacker.send(method, target).status == status, (method, target)
    query, encrypted = attacker.seal(attacker.payload())
    body = f"<xml><Encrypt>{encrypted}</Encrypt></xml>".encode()
    for content_type in ("application/json", "multipart/form-data; boundary=x", "image/png"):
        answer = attacker.send("POST", f"/wecom?{urlencode(query)}", body, content_type)
        assert (answer.status, answer.error) == (415, "UNSUPPORTED_MEDIA_TYPE")


def test_a_body_of_a_megabyte_is_refused(attacker: Attacker) -> None:
    """Envoy refuses what no platform sends, before it reaches us."""
    with attacker.connect() as connection:
        connection.sendall(b"POST /wecom HTTP/1.1\r\nHost: x\r\nContent-Length: 1100000\r\n\r\n")
        try:
            for _ in range(1100):
                connection.sendall(b"a" * 1000)
        except OSError:  # refused before its end
            pass
        assert b" 413 " in connection.recv(100)


def test_a_slow_client_is_cut_off_and_delays_nobody(attacker: Attacker) -> None:
    """Somebody who never finishes its request costs a connection for some seconds, and no worker."""
    with attacker.connect() as slow:
        slow.sendall(b"POST /wecom HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n<xml>")
        assert attacker.post(*attacker.seal(attacker.payload("ping"))).status == 200
        assert b" 408 " in slow.recv(100)


def test_nothing_secret_is_logged(attacker: Attacker) -> None:
    """Neither keys and secrets nor what members write are in any log."""
    words = f"confidential-{os.urandom(8).hex()}"
    query, encrypted = attacker.seal(attacker.payload(words))
    assert attacker.post(query, encrypted).status == 200
    attacker.mesh.cli("test", "wecom", "--message", words)
    logs = b"".join(path.read_bytes() for path in Path(attacker.mesh.home / "logs").iterdir()).decode()
    secrets = [attacker.settings[name] for name in ("secret", "token", "aeskey")]
    for secret in (words, query["msg_signature"], encrypted[:40], *secrets):
        assert secret not in logs
