"""What every channel keeps: its vectors, its own simulator, and no way in for a forged callback."""

import ipaddress
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib import import_module, resources
from typing import Any

import aiohttp
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assistant import plugin
from assistant.api.message.v1.message_pb2 import Account, Content, Text
from assistant.errors import (
    AssistantError,
    InvalidKey,
    MalformedEnvelope,
    MalformedPayload,
    NotOffered,
    ReceiverMismatch,
    SignatureMismatch,
    StaleCallback,
    Undecryptable,
)
from assistant.plugin import Callback, Codec, Crypto, Opened, Sender, Simulator
from assistant.settings import DEFAULT_ACCOUNT, Source
from assistant.testing import served

CHANNELS = sorted(plugin.channels())
REFUSALS = (SignatureMismatch, StaleCallback, ReceiverMismatch, MalformedEnvelope, Undecryptable)
MAX_AGE_S = 300.0
WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), min_size=1)


def source(channel: str, account: Mapping[str, Any]) -> Source:
    return Source({"channels": {channel: dict(account)}}, {}, "the test")


def crypto(channel: str, account: Mapping[str, Any], *random: Any) -> Crypto:
    manifest = plugin.channels()[channel]
    given = source(channel, account).accounts(manifest.crypto, channel, manifest.settings())[DEFAULT_ACCOUNT]
    facet: Crypto = plugin.load("channels", channel, "crypto")(given, *random)
    return facet


def codec(channel: str, account: Mapping[str, Any]) -> Codec:
    manifest = plugin.channels()[channel]
    given = source(channel, account).accounts(manifest.codec, channel, manifest.settings())[DEFAULT_ACCOUNT]
    facet: Codec = plugin.load("channels", channel, "codec")(Account(channel=channel, name=DEFAULT_ACCOUNT), given)
    return facet


def configured(facet: Crypto) -> dict[str, Any]:
    return {"configured": facet.key(facet.configured_material())}


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_new_key_fits(channel: str) -> None:
    """What a channel makes for a new key is random, can be configured, and comes with what to do in both languages."""
    change = plugin.channels()[channel].key_change
    assert change
    account = plugin.load("channels", channel, "simulator").credentials()
    for _ in range(50):
        material = dict(change.make())
        assert material.keys() == crypto(channel, account).configured_material().keys()
        facet = crypto(channel, account | material)
        facet.key(material)
        assert facet.configured_material() == material
    assert not {*material.values()} & {*change.make().values()}
    assert len(change.steps["en"]) == len(change.steps["zh-CN"]) > 0


# --- Vectors ----------------------------------------------------------------------------------------------


def vectors(*parts: str) -> list[Any]:
    """The cases of all channels that have all of these parts."""
    return [
        pytest.param(channel, case, id=f"{channel}-{file}-{case['name']}")
        for channel in CHANNELS
        for file, case in _cases(channel)
        if set(parts) <= case.keys()
    ]


def _cases(channel: str) -> Iterator[tuple[str, dict[str, Any]]]:
    package = import_module(plugin.load("channels", channel, "crypto").__module__.rpartition(".")[0])
    for file in (resources.files(package) / "vectors").iterdir():
        for case in json.loads(file.read_text("utf-8")):
            yield file.name.removesuffix(".json"), case


def opened(channel: str, case: Mapping[str, Any]) -> Opened:
    facet = crypto(channel, case["account"])
    keys, request = configured(facet), case["callback"]
    callback = Callback(request["method"], request["query"], request.get("headers", {}), request["body"].encode())
    first = facet.open(callback, keys, case["now"], MAX_AGE_S)
    assert facet.open(callback, keys, case["now"], MAX_AGE_S) == first
    return first


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_has_vectors(channel: str) -> None:
    """A channel shows with cases of its own that it opens, seals and parses."""
    parts = {part for _, case in _cases(channel) for part in case}
    assert {"opened", "challenge", "error", "sealed", "inbound", "reply"} <= parts


@pytest.mark.parametrize(("channel", "case"), vectors("callback", "opened"))
def test_a_callback_opens(channel: str, case: dict[str, Any]) -> None:
    """A callback as the platform sends it gives the plaintext that was published, each time."""
    assert opened(channel, case) == Opened("configured", case["opened"].encode())


@pytest.mark.parametrize(("channel", "case"), vectors("callback", "challenge"))
def test_a_check_of_the_address_is_answered(channel: str, case: dict[str, Any]) -> None:
    """The platform's check of the address gives exactly the bytes that it wants to see."""
    challenge = opened(channel, case).challenge
    assert challenge is not None
    assert challenge.body == case["challenge"].encode()


@pytest.mark.parametrize(("channel", "case"), vectors("callback", "error"))
def test_a_wrong_callback_is_refused(channel: str, case: dict[str, Any]) -> None:
    """A callback that is wrong in a known way is refused with the error for that."""
    with pytest.raises(REFUSALS) as refused:
        opened(channel, case)
    assert refused.value.reason == case["error"]


@pytest.mark.parametrize(("channel", "case"), vectors("seal", "sealed"))
def test_an_answer_is_sealed(channel: str, case: dict[str, Any]) -> None:
    """With the same random bytes, an answer is sealed to exactly what the platform publishes, each time."""
    random = itertools.cycle(bytes.fromhex(given) for given in case["seal"]["random"])
    facet = crypto(channel, case["account"], lambda _: next(random))
    key = configured(facet)["configured"]
    for _ in range(3):
        sealed = facet.seal(case["seal"]["payload"].encode(), "", key, case["seal"]["now"])
        assert sealed.body.decode() == case["sealed"]


@pytest.mark.parametrize(("channel", "case"), vectors("opened", "inbound"))
def test_a_payload_is_parsed(channel: str, case: dict[str, Any]) -> None:
    """A message or event of the platform becomes the one of ours that means the same."""
    message = codec(channel, case["account"]).parse(case["opened"].encode())
    assert MessageToDict(message, preserving_proto_field_name=True) == case["inbound"]


@pytest.mark.parametrize(("channel", "case"), vectors("opened", "parse_error"))
def test_a_wrong_payload_is_refused(channel: str, case: dict[str, Any]) -> None:
    """A payload that is wrong in a known way is refused with the error for that."""
    with pytest.raises((MalformedPayload, ReceiverMismatch)) as refused:
        codec(channel, case["account"]).parse(case["opened"].encode())
    assert refused.value.reason == case["parse_error"]


@pytest.mark.parametrize(("channel", "case"), vectors("opened", "reply"))
def test_an_answer_is_formatted(channel: str, case: dict[str, Any]) -> None:
    """An answer that fits the HTTP answer is written as the platform reads it, and any other is not."""
    facet = codec(channel, case["account"])
    content = [ParseDict(piece, Content()) for piece in case["reply"]["content"]]
    written = facet.format(facet.parse(case["opened"].encode()), content)
    assert (None if written is None else written.decode()) == case["reply"]["formatted"]


# --- Against the simulator --------------------------------------------------------------------------------


@pytest.fixture(params=CHANNELS)
def channel(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def account(channel: str) -> dict[str, Any]:
    return simulator_class(channel).credentials()


def simulator_class(channel: str) -> type[Simulator]:
    try:
        return plugin.load("channels", channel, "simulator")
    except ModuleNotFoundError:
        pytest.skip(f"the channel {channel} has no simulator")


@given(said=WORDS, answer=WORDS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_go_there_and_back(channel: str, account: dict[str, Any], said: str, answer: str) -> None:
    """What a member says on the simulated platform arrives, and the answer to it arrives there."""
    facet, reader, platform = crypto(channel, account), codec(channel, account), simulator_class(channel)(account)
    keys = configured(facet)
    callback, message_id = platform.callback(said, "zhangsan")
    message = reader.parse(facet.open(callback, keys, time.time(), MAX_AGE_S).payload)
    assert (message.message_id, message.sender.id) == (message_id, "zhangsan")
    assert [piece.text.text for piece in message.content] == [said]
    written = reader.format(message, [Content(text=Text(text=answer))])
    assert written is not None
    sealed = facet.seal(written, callback.query, keys["configured"], time.time())
    assert platform.read_reply(sealed.body) == answer


def test_an_acknowledgement_says_nothing(channel: str, account: dict[str, Any]) -> None:
    """The platform reads no reply in an acknowledgement."""
    assert simulator_class(channel)(account).read_reply(codec(channel, account).acknowledgement.body) is None


def test_two_answers_are_never_sealed_alike(channel: str, account: dict[str, Any]) -> None:
    """The same answer is sealed with new random bytes each time."""
    facet = crypto(channel, account)
    key = configured(facet)["configured"]
    assert len({facet.seal(b"same", "", key, 1_700_000_000).body for _ in range(20)}) == 20


def test_another_accounts_callback_is_refused(channel: str, account: dict[str, Any]) -> None:
    """A callback sealed with another account's key is not opened."""
    facet = crypto(channel, account)
    other = simulator_class(channel)(account | _key_of_another(channel))
    with pytest.raises(SignatureMismatch):
        facet.open(other.callback("hello", "zhangsan")[0], configured(facet), time.time(), MAX_AGE_S)


def test_any_live_key_opens(channel: str, account: dict[str, Any]) -> None:
    """During a change of keys, callbacks sealed with the old and with the new one are opened, each with its own."""
    facet = crypto(channel, account)
    new = account | _key_of_another(channel)
    keys = {"new": crypto(channel, new).key(crypto(channel, new).configured_material())} | configured(facet)
    for settings_, key_id in ((account, "configured"), (new, "new")):
        callback, _ = simulator_class(channel)(settings_).callback("hello", "zhangsan")
        assert facet.open(callback, keys, time.time(), MAX_AGE_S).key_id == key_id


@pytest.mark.parametrize("max_age_s", [300, 10])
@pytest.mark.parametrize("sign", [1, -1], ids=["past", "future"])
def test_only_fresh_callbacks_are_opened(channel: str, account: dict[str, Any], max_age_s: int, sign: int) -> None:
    """The window is as wide as the operator says, on either side of now, its last second included."""
    facet, now = crypto(channel, account), 1_700_000_000

    def opened(age_s: int) -> Opened:
        platform = simulator_class(channel)(account, clock=lambda: now - sign * age_s)
        return facet.open(platform.callback("hello", "zhangsan")[0], configured(facet), now, max_age_s)

    assert opened(0).payload
    assert opened(max_age_s).payload
    with pytest.raises(StaleCallback) as refused:
        opened(max_age_s + 1)
    for words in (f"{max_age_s + 1} s", f"at most {max_age_s} s", "past" if sign > 0 else "future"):
        assert words in refused.value.message


async def test_a_channel_says_what_its_platform_tells(channel: str, account: dict[str, Any]) -> None:
    """Its policy promises departments and published addresses exactly where its sender can ask for them."""
    manifest = plugin.channels()[channel]
    async with served(simulator_class(channel)(account).application("http://127.0.0.1:1/")) as url:
        given = source(channel, {**account, "api_base": url}).accounts(manifest.sender, channel, manifest.settings())
        async with aiohttp.ClientSession() as http:
            facet: Sender = plugin.load("channels", channel, "sender")(given[DEFAULT_ACCOUNT], http)
            token = (await facet.fetch_token()).value
            calls = {
                "departments_of": facet.departments_of("zhangsan", token),
                "departments": facet.departments(token),
                "callback_sources": facet.callback_sources(token),
            }
            told = {name: await _told(call) for name, call in calls.items()}
    tells, publishes = manifest.policy.tells_departments, manifest.policy.publishes_sources
    assert {name: answer is not None for name, answer in told.items()} == {
        "departments_of": tells,
        "departments": tells,
        "callback_sources": publishes,
    }
    for network in told["callback_sources"] or ():
        assert str(ipaddress.ip_network(network)) == network
    if told["departments"] is not None:
        assert set(told["departments_of"]) <= set(told["departments"])


async def _told(call: Awaitable[Any]) -> Any:
    """What the platform says; None if it offers no such thing."""
    try:
        return await call
    except NotOffered:
        return None


def _key_of_another(channel: str) -> dict[str, Any]:
    other = simulator_class(channel).credentials()
    return {name: other[name] for name in crypto(channel, other).configured_material()}


# --- Attacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutate", [lambda byte: bytes([byte ^ 1]), lambda byte: bytes([byte ^ 0x20]), lambda _: b""])
def test_a_changed_callback_is_never_another_one(
    channel: str, account: dict[str, Any], mutate: Callable[[int], bytes]
) -> None:
    """Whichever byte of a callback is changed or lost, it is refused, or says what it said before."""
    facet, keys = crypto(channel, account), configured(crypto(channel, account))
    callback, _ = simulator_class(channel)(account).callback("pay 100 to zhangsan", "zhangsan")
    genuine = facet.open(callback, keys, time.time(), MAX_AGE_S)
    query, refused = callback.query.encode(), 0
    for position in range(len(query) + len(callback.body)):
        changed = _changed(query + callback.body, position, mutate)
        border = len(query) - (len(query) + len(callback.body) - len(changed)) * (position < len(query))
        forged = Callback(
            callback.method, changed[:border].decode("ascii", "replace"), callback.headers, changed[border:]
        )
        try:
            assert facet.open(forged, keys, time.time(), MAX_AGE_S) == genuine
        except REFUSALS as error:
            refused += 1
            assert_tells_nothing(error, account)
    assert refused > len(query) / 2


def _changed(data: bytes, position: int, mutate: Callable[[int], bytes]) -> bytes:
    return data[:position] + mutate(data[position]) + data[position + 1 :]


@given(method=st.sampled_from(["GET", "POST", "PUT", ""]), query=st.text(), body=st.binary())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_refused(channel: str, account: dict[str, Any], method: str, query: str, body: bytes) -> None:
    """Whatever is called a callback, what comes of it is one of the named errors."""
    facet = crypto(channel, account)
    with pytest.raises(REFUSALS) as refused:
        facet.open(Callback(method, query, {}, body), configured(facet), 1_700_000_000, MAX_AGE_S)
    assert_tells_nothing(refused.value, account)


@given(payload=st.binary())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_payload_of_noise_is_refused(channel: str, account: dict[str, Any], payload: bytes) -> None:
    """Whatever a payload is, what comes of it is one of the named errors."""
    with pytest.raises((MalformedPayload, ReceiverMismatch)):
        codec(channel, account).parse(payload)


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_payload_is_parsed_or_refused(channel: str, account: dict[str, Any], data: st.DataObject) -> None:
    """A genuine payload in which anything is replaced by anything is parsed, or refused with a named error."""
    facet = crypto(channel, account)
    callback, _ = simulator_class(channel)(account).callback("hello", "zhangsan")
    payload = facet.open(callback, configured(facet), time.time(), MAX_AGE_S).payload
    start = data.draw(st.integers(0, len(payload)))
    end = data.draw(st.integers(start, len(payload)))
    damaged = payload[:start] + data.draw(st.binary()) + payload[end:]
    try:
        codec(channel, account).parse(damaged).SerializeToString()
    except (MalformedPayload, ReceiverMismatch) as error:
        assert_tells_nothing(error, account)


@given(
    material=st.dictionaries(
        st.sampled_from(["token", "aeskey", "secret", ""]),
        st.text() | st.text("abcXYZ019+/=", min_size=43, max_size=44),
    )
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_key_is_parsed_or_refused(channel: str, account: dict[str, Any], material: dict[str, str]) -> None:
    """Whatever is called a key's material is parsed or refused, and shown in neither case."""
    try:
        shown = repr(crypto(channel, account).key(material))
    except InvalidKey as error:
        shown = str(error)
    assert not [value for value in material.values() if len(value) > 16 and value in shown]


def test_secrets_are_not_shown(channel: str, account: dict[str, Any]) -> None:
    """Neither settings nor keys show a secret in their repr."""
    manifest = plugin.channels()[channel]
    facet = crypto(channel, account)
    parts = (manifest.codec, manifest.crypto, manifest.sender, manifest.policy)
    shown = repr([source(channel, account).accounts(part, channel, manifest.settings()) for part in parts])
    shown += repr(configured(facet)) + repr(facet)
    assert not [name for name, value in facet.configured_material().items() if value in shown]


def assert_tells_nothing(error: AssistantError, account: Mapping[str, Any]) -> None:
    told = f"{error}{error!r}{error.metadata}"
    assert "pay 100" not in told
    assert account["token"] not in told
    assert account["aeskey"] not in told
