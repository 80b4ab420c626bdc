"""Keys that are added and retired while callbacks come in."""

import stat
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from assistant import plugin
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
from crypto_svc.keyring import CONFIGURED, Keyring

ACCOUNT = ("loopback", "default")
NOW = 1_700_000_000.0


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


def ring(file: Path, account: dict[str, Any]) -> Keyring:
    return Keyring(file, {ACCOUNT: crypto(account)}, lambda: NOW)


def nothing_can_be_written_to(file: Path) -> None:
    file.with_name(f"{file.name}.new").mkdir(parents=True)


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
        keyring = Keyring(file, {ACCOUNT: crypto(account)}, lambda now=clock: now)
        assert keyring.of(ACCOUNT).records[CONFIGURED].added_at == NOW
        assert _added(CONFIGURED) == NOW
    assert not [value for value in (account["token"], account["aeskey"]) if value in file.read_text()]
    Keyring(file, {ACCOUNT: crypto(account | material())}, lambda: later)
    assert _added(CONFIGURED) == later


def test_a_retired_key_has_no_age(file: Path, account: dict[str, Any]) -> None:
    """The metric tells of live keys only."""
    keyring = ring(file, account)
    keyring.add(ACCOUNT, "spring", material())
    assert _added("spring") == NOW
    keyring.retire(ACCOUNT, "spring")
    assert _added("spring") is None


def _added(key_id: str) -> float | None:
    labels = {"channel": ACCOUNT[0], "account": ACCOUNT[1], "key_id": key_id}
    return REGISTRY.get_sample_value("assistant_key_added_timestamp_seconds", labels)


def test_an_added_key_outlives_the_process(file: Path, account: dict[str, Any]) -> None:
    """An added key is live at once, before the older ones, and still after a restart."""
    keyring = ring(file, account)
    added = keyring.add(ACCOUNT, "spring", material())
    assert (added.key_id, added.added_at, added.retired_at) == ("spring", NOW, None)
    assert live(keyring) == live(ring(file, account)) == ["spring", CONFIGURED]


def test_the_file_is_for_the_service_alone(file: Path, account: dict[str, Any]) -> None:
    """Nobody else may read the keys, whatever the umask."""
    ring(file, account).add(ACCOUNT, "spring", material())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_adding_is_repeatable(file: Path, account: dict[str, Any]) -> None:
    """The same key under the same name is answered as before; another one under it is refused."""
    keyring, key = ring(file, account), material()
    assert keyring.add(ACCOUNT, "spring", key) == keyring.add(ACCOUNT, "spring", key)
    with pytest.raises(KeyExists):
        keyring.add(ACCOUNT, "spring", material())
    with pytest.raises(KeyExists):
        keyring.add(ACCOUNT, CONFIGURED, material())


def test_a_retired_key_leaves_no_material(file: Path, account: dict[str, Any]) -> None:
    """Retiring a key removes it from memory and from the disk, and adding it again does not revive it."""
    keyring, key = ring(file, account), material()
    keyring.add(ACCOUNT, "spring", key)
    assert key["token"] in file.read_text()
    retired = keyring.retire(ACCOUNT, "spring")
    assert retired == keyring.retire(ACCOUNT, "spring") == keyring.add(ACCOUNT, "spring", key)
    assert retired.retired_at == NOW
    assert key["token"] not in file.read_text()
    assert live(keyring) == live(ring(file, account)) == [CONFIGURED]


def test_the_configured_key_can_be_retired_until_it_is_changed(file: Path, account: dict[str, Any]) -> None:
    """A configured key stays retired after a restart; another one that is configured later is live."""
    keyring = ring(file, account)
    keyring.add(ACCOUNT, "spring", material())
    keyring.retire(ACCOUNT, CONFIGURED)
    assert live(ring(file, account)) == ["spring"]
    assert live(ring(file, account | material())) == ["spring", CONFIGURED]
    assert account["token"] not in file.read_text()


def test_the_last_key_cannot_be_retired(file: Path, account: dict[str, Any]) -> None:
    """An account never loses its last key."""
    with pytest.raises(LastKey):
        ring(file, account).retire(ACCOUNT, CONFIGURED)


def test_names_that_are_not_known_are_told(file: Path, account: dict[str, Any]) -> None:
    """Accounts and keys that are not there have errors of their own."""
    keyring = ring(file, account)
    with pytest.raises(UnknownAccount, match=r"channels\.wecom"):
        keyring.of(("wecom", "default"))
    with pytest.raises(UnknownKey, match="'autumn'"):
        keyring.retire(ACCOUNT, "autumn")
    with pytest.raises(InvalidKey, match="token must be"):
        keyring.add(ACCOUNT, "spring", {"token": "?", "aeskey": ""})


def test_a_key_that_cannot_be_written_is_not_live(file: Path, account: dict[str, Any]) -> None:
    """When the disk takes nothing, nothing is changed."""
    nothing_can_be_written_to(file)
    keyring = ring(file, account)
    with pytest.raises(StorageUnavailable, match=r"keys\.json: Is a directory"):
        keyring.add(ACCOUNT, "spring", material())
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
    record = keyring.add(ACCOUNT, "spring", key)
    shown = f"{record!r} {keyring.of(ACCOUNT)!r} {keyring!r}"
    assert not [secret for secret in (*key.values(), account["token"], account["aeskey"]) if secret in shown]
