"""CryptoService as its callers see it: a real server on a socket, with the simulator as the platform."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from assistant import plugin
from assistant.api.crypto.v1.crypto_pb2 import (
    DESCRIPTOR,
    AddKeyRequest,
    ListKeysRequest,
    OpenCallbackRequest,
    RetireKeyRequest,
    SealReplyRequest,
)
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.api.message.v1.message_pb2 import Account
from assistant.audit import Audit
from assistant.client import connect
from assistant.errors import (
    InvalidRequest,
    LastKey,
    MalformedEnvelope,
    PayloadTooLarge,
    ServiceUnavailable,
    SignatureMismatch,
    StaleCallback,
    UnknownAccount,
    UnknownKey,
)
from assistant.plugin import Callback, Simulator
from assistant.server import Server
from assistant.settings import Source
from crypto_svc.keyring import SEALS_FOR_S, Keyring
from crypto_svc.service import MAX_BODY_BYTES, CryptoService

ACCOUNT = Account(channel="loopback")
SERVICE = DESCRIPTOR.services_by_name["CryptoService"]
SETTINGS: dict[str, Any] = plugin.load("channels", "loopback", "simulator").credentials()


def platform(**changes: Any) -> Simulator:
    simulator: Simulator = plugin.load("channels", "loopback", "simulator")(SETTINGS | changes)
    return simulator


def request(callback: Callback) -> OpenCallbackRequest:
    return OpenCallbackRequest(
        account=ACCOUNT,
        method=callback.method,
        query=callback.query,
        headers=dict(callback.headers),
        body=callback.body,
    )


def new_key() -> dict[str, str]:
    other = plugin.load("channels", "loopback", "simulator").credentials()
    return {"token": other["token"], "aeskey": other["aeskey"]}


class Clock:
    """A clock that a test sets ahead."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def crypto(tmp_path: Path, clock: Clock) -> AsyncIterator[Any]:
    manifest = plugin.channels()["loopback"]
    source = Source({"channels": {"loopback": SETTINGS}}, {}, "the test")
    settings = source.accounts(manifest.crypto, "loopback", manifest.settings())["default"]
    facet = plugin.load("channels", "loopback", "crypto")(settings)
    audit = Audit("crypto_svc", tmp_path / "audit")
    keyring = Keyring(tmp_path / "keys.json", {("loopback", "default"): facet}, audit, clock)
    listen = f"unix:{tmp_path}/crypto.sock"
    async with (
        Server({SERVICE: CryptoService(keyring, 300, clock)}, listen=listen, drain_s=0),
        connect(listen) as channel,
    ):
        yield CryptoServiceStub(channel)


async def test_a_callback_is_opened_and_answered(crypto: Any) -> None:
    """What a member says comes out, and what is sealed with the same key reaches the member."""
    callback, message_id = platform().callback("ping", "alice")
    opened = await crypto.OpenCallback(request(callback), timeout=5)
    assert message_id.encode() in opened.payload
    assert opened.key_id == "configured"
    sealing = SealReplyRequest(
        account=ACCOUNT, payload=b'{"text":"pong","markdown":false}', query=callback.query, key_id=opened.key_id
    )
    sealed = await crypto.SealReply(sealing, timeout=5)
    assert sealed.content_type == "application/json"
    assert platform().read_reply(sealed.body) == "pong"


async def test_a_forged_callback_is_refused(crypto: Any) -> None:
    """A callback signed with another token is not opened."""
    with pytest.raises(SignatureMismatch):
        await crypto.OpenCallback(request(platform(**new_key()).callback("ping", "alice")[0]), timeout=5)


@pytest.mark.parametrize("ahead_s", [302, -302])
async def test_a_stale_callback_is_refused(crypto: Any, clock: Clock, ahead_s: float) -> None:
    """A well signed callback is not opened long after it was signed, nor long before."""
    callback = request(platform().callback("ping", "alice")[0])
    clock.ahead_s = ahead_s
    with pytest.raises(StaleCallback):
        await crypto.OpenCallback(callback, timeout=5)


async def test_a_callback_without_a_signature_is_refused(crypto: Any) -> None:
    """A request that is no callback at all is told apart from a forged one."""
    with pytest.raises(MalformedEnvelope, match="signature"):
        await crypto.OpenCallback(request(Callback("POST", "timestamp=1&nonce=2", {}, b"{}")), timeout=5)


async def test_an_oversized_callback_is_refused(crypto: Any) -> None:
    """A body larger than any callback is not even looked at."""
    with pytest.raises(PayloadTooLarge):
        await crypto.OpenCallback(request(Callback("POST", "", {}, b" " * (MAX_BODY_BYTES + 1))), timeout=5)


async def test_an_account_that_is_not_configured_is_told(crypto: Any) -> None:
    """Every method names an account that it does not know."""
    stranger = Account(channel="loopback", name="stranger")
    for method, asked in (
        (crypto.OpenCallback, OpenCallbackRequest(account=stranger)),
        (crypto.SealReply, SealReplyRequest(account=stranger)),
        (crypto.ListKeys, ListKeysRequest(account=stranger)),
        (crypto.AddKey, AddKeyRequest(account=stranger, key_id="spring", material=new_key())),
        (crypto.RetireKey, RetireKeyRequest(account=stranger, key_id="spring")),
    ):
        with pytest.raises(UnknownAccount, match="'stranger'"):
            await method(asked, timeout=5)


async def test_a_reply_is_not_sealed_with_a_key_that_is_not_there(crypto: Any) -> None:
    """A key that is not live seals nothing."""
    with pytest.raises(UnknownKey):
        await crypto.SealReply(SealReplyRequest(account=ACCOUNT, key_id="autumn"), timeout=5)


async def test_keys_are_changed_without_losing_a_callback(crypto: Any, tmp_path: Path) -> None:
    """Old and new key both open while both are live; then only the new one does, and it seals."""
    key, old = new_key(), platform()
    new = platform(**key)
    added = (await crypto.AddKey(AddKeyRequest(account=ACCOUNT, key_id="spring", material=key), timeout=5)).key
    assert added.HasField("added_at")
    for sender, key_id in ((old, "configured"), (new, "spring")):
        opened = await crypto.OpenCallback(request(sender.callback("ping", "alice")[0]), timeout=5)
        assert opened.key_id == key_id
    retired = await crypto.RetireKey(RetireKeyRequest(account=ACCOUNT, key_id="configured"), timeout=5)
    assert retired.key.HasField("retired_at")
    with pytest.raises(SignatureMismatch):
        await crypto.OpenCallback(request(old.callback("ping", "alice")[0]), timeout=5)
    sealed = await crypto.SealReply(SealReplyRequest(account=ACCOUNT, payload=b'{"text":"pong"}'), timeout=5)
    assert new.read_reply(sealed.body) == "pong"
    with pytest.raises(LastKey):
        await crypto.RetireKey(RetireKeyRequest(account=ACCOUNT, key_id="spring"), timeout=5)
    records = [json.loads(line) for line in (tmp_path / "audit" / "crypto_svc.jsonl").read_text().splitlines()]
    assert [(record["action"], record["actor"]) for record in records[1:]] == [
        ("key.add", "unauthenticated (loopback)"),
        ("key.retire", "unauthenticated (loopback)"),
    ]


async def test_what_a_retired_key_opened_is_answered_with_it(crypto: Any, clock: Clock) -> None:
    """A callback that waits for its answer while its key is retired still gets it; later the key is gone."""
    await crypto.AddKey(AddKeyRequest(account=ACCOUNT, key_id="spring", material=new_key()), timeout=5)
    callback, _ = platform().callback("ping", "alice")
    opened = await crypto.OpenCallback(request(callback), timeout=5)
    await crypto.RetireKey(RetireKeyRequest(account=ACCOUNT, key_id="configured"), timeout=5)
    answer = SealReplyRequest(account=ACCOUNT, payload=b'{"text":"pong"}', query=callback.query, key_id=opened.key_id)
    assert platform().read_reply((await crypto.SealReply(answer, timeout=5)).body) == "pong"
    with pytest.raises(SignatureMismatch):
        await crypto.OpenCallback(request(platform().callback("ping", "alice")[0]), timeout=5)
    clock.ahead_s = SEALS_FOR_S + 1
    with pytest.raises(UnknownKey):
        await crypto.SealReply(answer, timeout=5)


async def test_keys_are_listed_without_their_material(crypto: Any) -> None:
    """A list of keys says which there are and when they were used, newest first, and nothing secret."""
    key = new_key()
    await crypto.AddKey(AddKeyRequest(account=ACCOUNT, key_id="spring", material=key), timeout=5)
    await crypto.OpenCallback(request(platform().callback("ping", "alice")[0]), timeout=5)
    listed = await crypto.ListKeys(ListKeysRequest(account=ACCOUNT), timeout=5)
    assert [(each.key_id, each.HasField("last_used_at"), each.configured) for each in listed.keys] == [
        ("spring", False, False),
        ("configured", True, True),
    ]
    secrets = [*key.values(), SETTINGS["token"], SETTINGS["aeskey"]]
    assert not [secret for secret in secrets if secret.encode() in listed.SerializeToString()]


@pytest.mark.parametrize("key_id", ["", "Spring", "a b", "x" * 65])
async def test_a_name_that_no_key_can_have_is_refused(crypto: Any, key_id: str) -> None:
    """A key's name is short and plain, since people type it."""
    with pytest.raises(InvalidRequest, match="key_id"):
        await crypto.AddKey(AddKeyRequest(account=ACCOUNT, key_id=key_id, material=new_key()), timeout=5)


@pytest.mark.parametrize("configured", [True, False])
async def test_the_process_says_whether_it_is_of_use(tmp_path: Path, reserve_ports: Any, configured: bool) -> None:
    """`python -m crypto_svc` serves the accounts of its configuration; without any it says that it serves none."""
    names = ("company", "token", "aeskey") if configured else ()
    with reserve_ports() as offset:
        environment = {
            "PATH": os.environ["PATH"],
            "AI_ASSISTANT_HOME": str(tmp_path),
            "AI_ASSISTANT_PORT_OFFSET": str(offset),
            **{f"LOOPBACK_{name.upper()}": SETTINGS[name] for name in names},
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "crypto_svc", env=environment, stdout=asyncio.subprocess.DEVNULL
        )
        try:
            async with connect(f"127.0.0.1:{7001 + offset}") as channel:
                asked = HealthCheckRequest(service=SERVICE.full_name)
                answer = await asyncio.wait_for(_first_answer(HealthStub(channel), asked), timeout=30)
            assert (answer.status == HealthCheckResponse.SERVING) is configured
        finally:
            process.terminate()
            assert await process.wait() == 0


async def _first_answer(health: HealthStub, asked: HealthCheckRequest) -> Any:
    while True:
        try:
            return await health.Check(asked, timeout=5)
        except ServiceUnavailable:
            await asyncio.sleep(0.05)
