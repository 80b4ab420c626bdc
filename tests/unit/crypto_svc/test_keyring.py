"""Keys that are added and retired while callbacks come in."""

import asyncio
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from assistant import audit, plugin
from assistant.audit import Audit
from assistant.errors import (
    InvalidKey,
    InvalidSetting,
    KeyExists,
    LastKey,
    StorageUnavailable,
    UnknownAccount,
    UnknownKey,
)
from assistant.plugin import Crypto
from assistant.settings import Source
from crypto_svc.keyring import CONFIGURED, SEALS_FOR_S, Keyring

ACCOUNT = ("loopback", "default")
NOW = 1_700_000_000.0
CALLER = "operator"


def credentials() -> dict[str, Any]:
    return plugin.load("channels", "loopback", "simulator").credentials()


def crypto(account: dict[str, Any]) -> Crypto:
    manifest = plugin.channels()["loopback"]
    source = Source({"channels": {"loopback": account}}, {}, "the test")
    settings = source.accounts(manifest.crypto, "loopback", manifest.settings())["default"]
    facet: Crypto = plugin.load("channels", "loopback", "crypto")(settings)
    return facet


def material() -> dict[str, str]:
    account = credentials()
    return {"token": account["token"], "aeskey": account["aeskey"]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.json"


@pytest.fixture
def account() -> dict[str, Any]:
    return credentials()


def ring(file: Path, account: dict[str, Any], now: float = NOW) -> Keyring:
    return Keyring(file, {ACCOUNT: crypto(account)}, Audit("crypto_svc", file.parent.parent / "audit"), lambda: now)


def recorded(file: Path) -> list[tuple[str, str, str]]:
    records = audit.records(audit.chains(file.parent.parent / "audit"))
    return [(record["action"], record["actor"], record["facts"]["key_id"]) for record in records]


def reload_failures() -> float:
    return REGISTRY.get_sample_value("assistant_keyring_reload_failures_total") or 0.0


def nothing_can_be_written_to(file: Path) -> None:
    file.with_name(f"{file.name}.new").mkdir(parents=True, exist_ok=True)


def live(keyring: Keyring) -> list[str]:
    return list(keyring.of(ACCOUNT).live)


def test_the_configured_key_needs_no_file(file: Path, account: dict[str, Any]) -> None:
    """An account works with the key of its settings, even if nothing can be written."""
    nothing_can_be_written_to(file)
    assert live(ring(file, account)) == [CONFIGURED]


def test_the_age_of_the_configured_key_is_known(file: Path, account: dict[str, Any]) -> None:
    """When it was seen first is kept over restarts, without its material, and begins anew with another key."""
    later = NOW + 86_400
    for clock in (NOW, later):
        keyring = ring(file, account, clock)
        assert keyring.of(ACCOUNT).records[CONFIGURED].added_at == NOW
        assert _added(CONFIGURED) == NOW
    assert not [value for value in (account["token"], account["aeskey"]) if value in file.read_text()]
    ring(file, account | material(), later)
    assert _added(CONFIGURED) == later


def test_a_retired_key_has_no_age(file: Path, account: dict[str, Any]) -> None:
    """The metric tells of live keys only."""
    keyring = ring(file, account)
    keyring.add(ACCOUNT, "spring", material(), CALLER)
    assert _added("spring") == NOW
    keyring.retire(ACCOUNT, "spring", CALLER)
    assert _added("spring") is None


def _added(key_id: str) -> float | None:
    labels = {"channel": ACCOUNT[0], "account": ACCOUNT[1], "key_id": key_id}
    return REGISTRY.get_sample_value("assistant_key_added_timestamp_seconds", labels)


def test_an_added_key_outlives_the_process(file: Path, account: dict[str, Any]) -> None:
    """An added key is live at once, before the older ones, and still after a restart."""
    keyring = ring(file, account)
    added = keyring.add(ACCOUNT, "spring", material(), CALLER)
    assert (added.key_id, added.added_at, added.retired_at) == ("spring", NOW, None)
    assert live(keyring) == live(ring(file, account)) == ["spring", CONFIGURED]


def test_the_file_is_for_the_service_alone(file: Path, account: dict[str, Any]) -> None:
    """Nobody else may read the keys, whatever the umask."""
    ring(file, account).add(ACCOUNT, "spring", material(), CALLER)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert {path.name for path in file.parent.iterdir()} == {file.name, f"{file.name}.lock"}


def test_adding_is_repeatable(file: Path, account: dict[str, Any]) -> None:
    """The same key under the same name is answered as before; another one under it is refused."""
    keyring, key = ring(file, account), material()
    assert keyring.add(ACCOUNT, "spring", key, CALLER) == keyring.add(ACCOUNT, "spring", key, CALLER)
    with pytest.raises(KeyExists):
        keyring.add(ACCOUNT, "spring", material(), CALLER)
    with pytest.raises(KeyExists):
        keyring.add(ACCOUNT, CONFIGURED, material(), CALLER)


def test_a_retired_key_leaves_no_material(file: Path, account: dict[str, Any]) -> None:
    """Retiring a key removes it from the disk, and adding it again does not revive it."""
    keyring, key = ring(file, account), material()
    keyring.add(ACCOUNT, "spring", key, CALLER)
    assert key["token"] in file.read_text()
    retired = keyring.retire(ACCOUNT, "spring", CALLER)
    assert retired == keyring.retire(ACCOUNT, "spring", CALLER) == keyring.add(ACCOUNT, "spring", key, CALLER)
    assert retired.retired_at == NOW
    assert key["token"] not in file.read_text()
    assert live(keyring) == live(ring(file, account)) == [CONFIGURED]


def test_a_retired_key_leaves_memory_as_well(file: Path, account: dict[str, Any]) -> None:
    """It is kept for the answers that are under way, and then no longer, on every replica."""
    one, other = ring(file, account), ring(file, account)
    one.add(ACCOUNT, "spring", material(), CALLER)
    other.refresh()
    one.retire(ACCOUNT, "spring", CALLER)
    other.refresh()
    for keyring in (one, other):
        keyring.of(ACCOUNT).forget(NOW + SEALS_FOR_S)
        assert list(keyring.of(ACCOUNT).retiring) == ["spring"]
        keyring.of(ACCOUNT).forget(NOW + SEALS_FOR_S + 1)
        assert not keyring.of(ACCOUNT).retiring


def test_the_configured_key_can_be_retired_until_it_is_changed(file: Path, account: dict[str, Any]) -> None:
    """A configured key stays retired after a restart; another one that is configured later is live."""
    keyring = ring(file, account)
    keyring.add(ACCOUNT, "spring", material(), CALLER)
    keyring.retire(ACCOUNT, CONFIGURED, CALLER)
    assert live(ring(file, account)) == ["spring"]
    assert live(ring(file, account | material())) == ["spring", CONFIGURED]
    assert account["token"] not in file.read_text()


def test_the_last_key_cannot_be_retired(file: Path, account: dict[str, Any]) -> None:
    """An account never loses its last key."""
    with pytest.raises(LastKey):
        ring(file, account).retire(ACCOUNT, CONFIGURED, CALLER)


def test_names_that_are_not_known_are_told(file: Path, account: dict[str, Any]) -> None:
    """Accounts and keys that are not there have errors of their own."""
    keyring = ring(file, account)
    with pytest.raises(UnknownAccount, match=r"channels\.wecom"):
        keyring.of(("wecom", "default"))
    with pytest.raises(UnknownKey, match="'autumn'"):
        keyring.retire(ACCOUNT, "autumn", CALLER)
    with pytest.raises(InvalidKey, match="token must be"):
        keyring.add(ACCOUNT, "spring", {"token": "?", "aeskey": ""}, CALLER)


def test_a_key_that_cannot_be_written_is_not_live(file: Path, account: dict[str, Any]) -> None:
    """When the disk takes nothing, nothing is changed."""
    nothing_can_be_written_to(file)
    keyring = ring(file, account)
    with pytest.raises(StorageUnavailable, match=r"keys\.json: Is a directory"):
        keyring.add(ACCOUNT, "spring", material(), CALLER)
    assert live(keyring) == [CONFIGURED]


@pytest.mark.parametrize("content", ["", "{}", '[{"channel": "loopback"}]', "\ud800"])
def test_a_spoilt_file_stops_the_start(file: Path, account: dict[str, Any], content: str) -> None:
    """A file that is not ours is not taken for one without keys."""
    file.parent.mkdir()
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidSetting, match=r"keys\.json"):
        ring(file, account)


def test_nothing_shows_a_key(file: Path, account: dict[str, Any]) -> None:
    """No repr holds a key's material."""
    keyring, key = ring(file, account), material()
    record = keyring.add(ACCOUNT, "spring", key, CALLER)
    shown = f"{record!r} {keyring.of(ACCOUNT)!r} {keyring!r}"
    assert not [secret for secret in (*key.values(), account["token"], account["aeskey"]) if secret in shown]


# --- The configuration ------------------------------------------------------------------------------------


def test_a_key_that_was_added_and_is_then_configured_is_one_key(file: Path, account: dict[str, Any]) -> None:
    """It keeps its name and its age, so that a callback opened by one replica is sealed by another."""
    keyring, key = ring(file, account), material()
    keyring.add(ACCOUNT, "spring", key, CALLER)
    assert keyring.of(ACCOUNT).configured_id == CONFIGURED
    keyring.retire(ACCOUNT, CONFIGURED, CALLER)
    restarted = ring(file, account | key, NOW + 100)
    assert live(restarted) == ["spring"]
    assert restarted.of(ACCOUNT).configured_id == "spring"
    assert restarted.of(ACCOUNT).records["spring"].added_at == NOW
    assert restarted.of(ACCOUNT).records[CONFIGURED].retired_at == NOW
    assert live(ring(file, account)) == ["spring"]  # the old configuration does not revive what was retired


def test_a_configured_key_that_another_one_replaced_is_gone(file: Path, account: dict[str, Any]) -> None:
    """Its material was nowhere else, whether it was retired before or not."""
    keyring, key = ring(file, account), material()
    keyring.add(ACCOUNT, "spring", key, CALLER)
    assert live(ring(file, account | key)) == ["spring"]
    assert live(ring(file, account)) == ["spring", CONFIGURED]


def test_a_key_has_one_name(file: Path, account: dict[str, Any]) -> None:
    """A retired key does not come back under another name, nor is the configured one added beside itself."""
    keyring, key = ring(file, account), material()
    keyring.add(ACCOUNT, "spring", key, CALLER)
    keyring.retire(ACCOUNT, "spring", CALLER)
    for same, name in ((key, "spring"), ({"token": account["token"], "aeskey": account["aeskey"]}, CONFIGURED)):
        with pytest.raises(KeyExists, match=repr(name)):
            keyring.add(ACCOUNT, "summer", same, CALLER)


def test_a_file_can_be_written_by_hand(file: Path, account: dict[str, Any]) -> None:
    """Where nothing can be written while running, an operator gives further keys, by name and material alone."""
    key = material()
    keys = [{"key_id": "spring", "added_at": NOW, "material": key}]
    given = [{"channel": ACCOUNT[0], "name": ACCOUNT[1], "keys": keys}]
    file.parent.mkdir()
    file.write_text(json.dumps(given))
    keyring = ring(file, account)
    assert live(keyring) == ["spring", CONFIGURED]
    assert live(ring(file, account | key)) == ["spring"]


def test_what_is_removed_by_hand_is_gone(file: Path, account: dict[str, Any]) -> None:
    """A key that is no longer in the file opens nothing, and has no age."""
    keyring = ring(file, account)
    keyring.add(ACCOUNT, "spring", material(), CALLER)
    assert _added("spring") == NOW
    keys = [{"key_id": "summer", "added_at": NOW, "material": material()}]
    file.write_text(json.dumps([{"channel": ACCOUNT[0], "name": ACCOUNT[1], "keys": keys}]))
    keyring.refresh()
    assert live(keyring) == ["summer", CONFIGURED]
    assert (_added("spring"), _added("summer")) == (None, NOW)


# --- Replicas ---------------------------------------------------------------------------------------------


def test_replicas_take_up_what_another_one_wrote(file: Path, account: dict[str, Any]) -> None:
    """After a look at the file each knows the keys of all, and which were retired."""
    one, other = ring(file, account), ring(file, account)
    one.add(ACCOUNT, "spring", material(), CALLER)
    other.refresh()
    assert live(other) == ["spring", CONFIGURED]
    other.retire(ACCOUNT, CONFIGURED, CALLER)
    one.refresh()
    assert live(one) == ["spring"]


def test_replicas_never_overwrite_each_other(file: Path, account: dict[str, Any]) -> None:
    """A change is made to what the file says now, not to what this replica last saw."""
    one, other = ring(file, account), ring(file, account)
    one.add(ACCOUNT, "spring", material(), CALLER)
    other.add(ACCOUNT, "summer", material(), CALLER)
    one.retire(ACCOUNT, "summer", CALLER)
    other.refresh()
    assert live(one) == live(other) == live(ring(file, account)) == ["spring", CONFIGURED]


def test_many_replicas_change_keys_at_once(file: Path, account: dict[str, Any]) -> None:
    """Whoever is first, nothing is lost."""
    rings = [ring(file, account) for _ in range(4)]

    def add(number: int) -> None:
        for index in range(5):
            rings[number].add(ACCOUNT, f"key-{number}-{index}", material(), CALLER)

    with ThreadPoolExecutor() as pool:
        list(pool.map(add, range(4)))
    assert set(live(ring(file, account))) == {CONFIGURED} | {f"key-{n}-{i}" for n in range(4) for i in range(5)}


@pytest.mark.parametrize("content", ["", "{}", None], ids=["empty", "of another form", "gone"])
def test_a_file_that_is_spoilt_later_changes_nothing(file: Path, account: dict[str, Any], content: str | None) -> None:
    """The old keys stay, it is counted, and nothing is written over it; a whole file is taken up again."""
    keyring = ring(file, account)
    keyring.add(ACCOUNT, "spring", material(), CALLER)
    whole, before = file.read_text(), reload_failures()
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(StorageUnavailable, match=r"keys\.json"):
        keyring.refresh()
    with pytest.raises(StorageUnavailable, match=r"keys\.json"):
        keyring.add(ACCOUNT, "summer", material(), CALLER)
    assert live(keyring) == ["spring", CONFIGURED]
    assert reload_failures() == before + 2
    assert not file.exists() if content is None else file.read_text() == content
    file.write_text(whole)
    keyring.refresh()
    keyring.add(ACCOUNT, "summer", material(), CALLER)


def test_a_file_with_a_wrong_key_is_taken_up_whole_or_not_at_all(file: Path, account: dict[str, Any]) -> None:
    """One key that is none leaves all others as they were."""
    keyring, other, key = ring(file, account), ring(file, account), material()
    keyring.add(ACCOUNT, "spring", material(), CALLER)
    keyring.add(ACCOUNT, "summer", key, CALLER)
    file.write_text(file.read_text().replace(key["aeskey"], "short"))
    with pytest.raises(StorageUnavailable, match="aeskey"):
        other.refresh()
    assert live(other) == [CONFIGURED]


async def test_a_change_is_noticed_by_itself(
    file: Path, account: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that follows the file need not be told."""
    monkeypatch.setattr("crypto_svc.keyring.LOOK_EVERY_S", 0.01)
    one, other = ring(file, account), ring(file, account)
    following = asyncio.create_task(other.follow())
    await asyncio.to_thread(file.write_text, "spoilt meanwhile")
    before = reload_failures()
    async with asyncio.timeout(10):
        while reload_failures() == before:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(file.unlink)
        ring(file, account).add(ACCOUNT, "spring", material(), CALLER)
        while live(other) != ["spring", CONFIGURED]:
            await asyncio.sleep(0.01)
    following.cancel()
    assert live(one) == [CONFIGURED]


# --- Records ----------------------------------------------------------------------------------------------


def test_changes_are_recorded_once(file: Path, account: dict[str, Any]) -> None:
    """Who changed which key is in the audit log, without its material; what changes nothing is not."""
    keyring, key = ring(file, account), material()
    for _ in range(2):
        keyring.add(ACCOUNT, "spring", key, "operator")
        keyring.retire(ACCOUNT, CONFIGURED, "mesh")
        ring(file, account)
    assert recorded(file) == [
        ("key.configured", "configuration", CONFIGURED),
        ("key.add", "operator", "spring"),
        ("key.retire", "mesh", CONFIGURED),
    ]
    written = (file.parent.parent / "audit" / "crypto_svc.jsonl").read_text()
    assert not [secret for secret in (*key.values(), account["token"], account["aeskey"]) if secret in written]


def test_a_change_that_cannot_be_recorded_is_not_made(file: Path, account: dict[str, Any]) -> None:
    """Without an audit log callbacks are opened as ever, and keys stay as they are."""
    file.parent.mkdir()
    (file.parent.parent / "audit").write_text("in the way")
    keyring = ring(file, account)
    with pytest.raises(StorageUnavailable, match="audit log"):
        keyring.add(ACCOUNT, "spring", material(), CALLER)
    assert live(keyring) == live(ring(file, account)) == [CONFIGURED]


def test_a_change_that_fails_is_recorded_as_such(file: Path, account: dict[str, Any]) -> None:
    """What was begun and not done can be told from what was done."""
    keyring = ring(file, account)
    nothing_can_be_written_to(file)
    with pytest.raises(StorageUnavailable):
        keyring.add(ACCOUNT, "spring", material(), CALLER)
    assert [action for action, *_ in recorded(file)][-2:] == ["key.add", "key.add.failed"]
