"""The callback keys of all accounts: the configured one of each, and those that were added while running.

Added and retired keys, and when the configured one was seen first, are kept in one file, written anew and moved
into place, and readable to nobody else.
A retired key leaves only its name, its times and a fingerprint, by which it is known if it comes again.
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import Gauge

from assistant import telemetry
from assistant.errors import InvalidSetting, KeyExists, LastKey, StorageUnavailable, UnknownAccount, UnknownKey
from assistant.plugin import Callback, Crypto, HttpBody, Opened

CONFIGURED = "configured"
"""Name of the key in an account's settings."""

_added = Gauge(
    "assistant_key_added_timestamp_seconds",
    "When a live callback key was added, in seconds since 1970.",
    ("channel", "account", "key_id"),
)

AccountName = tuple[str, str]
"""Channel, and account within it."""


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One key. Times are Unix time in seconds."""

    key_id: str
    fingerprint: str
    added_at: float | None = None
    retired_at: float | None = None
    material: dict[str, str] = {}
    """Empty once it is retired; that of the configured key is never kept here."""

    def __repr__(self) -> str:
        return f"KeyRecord({self.key_id!r})"


class AccountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says of one account."""

    channel: str
    name: str
    keys: list[KeyRecord]


@dataclass(frozen=True, eq=False)
class AccountKeys:
    """The keys of one account as they are at a time: a change makes another one, so that readers see it whole."""

    crypto: Crypto
    records: dict[str, KeyRecord]
    """Oldest first, the configured one before all."""
    live: Mapping[str, Any] = field(repr=False)
    """What the channel works with, newest first."""
    last_used: dict[str, float]
    """When each key last opened a callback. Passed on."""

    def open(self, callback: Callback, now: float, max_age_s: float) -> Opened:
        """Open with whichever key fits. Raises what Crypto.open raises."""
        opened = self.crypto.open(callback, self.live, now, max_age_s)
        self.last_used[opened.key_id] = now
        return opened

    def seal(self, payload: bytes, query: str, key_id: str, now: float) -> HttpBody:
        """Seal with a key; the newest if `key_id` is empty. Raises UnknownKey."""
        key_id = key_id or next(iter(self.live))
        if key_id not in self.live:
            raise UnknownKey(f"the account has no live key {key_id!r}")
        return self.crypto.seal(payload, query, self.live[key_id], now)


class Keyring:
    """All accounts. `add` and `retire` wait for the disk; no two of them may run at once."""

    def __init__(
        self, file: Path, accounts: Mapping[AccountName, Crypto], clock: Callable[[], float] = time.time
    ) -> None:
        """Read the file. Raises InvalidSetting if it cannot be read, and InvalidKey for a wrong key."""
        self._file = file
        self._clock = clock
        self._kept = {(account.channel, account.name): account for account in _read(file)}
        self._accounts = {name: self._load(name, crypto) for name, crypto in accounts.items()}
        for name in accounts:
            self._show(name)
            self._date(name)

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, account: AccountName) -> AccountKeys:
        """The keys of an account. Raises UnknownAccount."""
        try:
            return self._accounts[account]
        except KeyError:
            channel, name = account
            raise UnknownAccount(
                f"no account {name!r} of the channel {channel!r} is configured: "
                f"set it with ai-assistant-cli config set channels.{channel} …"
            ) from None

    def add(self, account: AccountName, key_id: str, material: Mapping[str, str]) -> KeyRecord:
        """Add a key. Raises InvalidKey, KeyExists, StorageUnavailable, UnknownAccount."""
        keys = self.of(account)
        keys.crypto.key(material)
        fingerprint = _fingerprint(material)
        if known := keys.records.get(key_id):
            if known.fingerprint != fingerprint:
                raise KeyExists(f"the account has another key {key_id!r}: choose another name")
            return known
        record = KeyRecord(key_id=key_id, fingerprint=fingerprint, added_at=self._clock(), material=dict(material))
        self._keep(account, record)
        return record

    def retire(self, account: AccountName, key_id: str) -> KeyRecord:
        """Retire a key. Raises LastKey, StorageUnavailable, UnknownAccount, UnknownKey."""
        keys = self.of(account)
        record = keys.records.get(key_id)
        if record is None:
            raise UnknownKey(f"the account has no key {key_id!r}")
        if record.retired_at is not None:
            return record
        if len(keys.live) == 1:
            raise LastKey
        record = msgspec.structs.replace(record, retired_at=self._clock(), material={})
        self._keep(account, record)
        return record

    def _date(self, account: AccountName) -> None:
        """Write down when the configured key was seen first, so that somebody can be told that it is old."""
        configured = self._accounts[account].records[CONFIGURED]
        if configured.added_at is None and configured.retired_at is None:
            try:
                self._keep(account, msgspec.structs.replace(configured, added_at=self._clock(), material={}))
            except StorageUnavailable as error:
                telemetry.warning("key_not_dated", reason=error.reason, detail=error.message)

    def _show(self, account: AccountName) -> None:
        for record in self._accounts[account].records.values():
            if record.retired_at is not None:
                with contextlib.suppress(KeyError):
                    _added.remove(*account, record.key_id)
            elif record.added_at is not None:
                _added.labels(*account, record.key_id).set(record.added_at)

    def _keep(self, account: AccountName, record: KeyRecord) -> None:
        """Write first: what is not on the disk is not so."""
        channel, name = account
        kept = {key.key_id: key for key in self._kept[account].keys} if account in self._kept else {}
        keys = list((kept | {record.key_id: record}).values())
        changed = self._kept | {account: AccountRecord(channel=channel, name=name, keys=keys)}
        _write(self._file, list(changed.values()))
        self._kept = changed
        self._accounts[account] = self._load(account, self.of(account).crypto, self.of(account).last_used)
        self._show(account)

    def _load(self, account: AccountName, crypto: Crypto, last_used: dict[str, float] | None = None) -> AccountKeys:
        material = {name: str(value) for name, value in crypto.configured_material().items()}  # no longer a Secret
        configured = KeyRecord(key_id=CONFIGURED, fingerprint=_fingerprint(material), material=material)
        kept = {key.key_id: key for key in self._kept[account].keys} if account in self._kept else {}
        known = kept.pop(CONFIGURED, None)
        if known and known.fingerprint == configured.fingerprint:  # else another one was configured since
            configured = msgspec.structs.replace(configured, added_at=known.added_at, retired_at=known.retired_at)
        if configured.retired_at is not None:
            configured = msgspec.structs.replace(configured, material={})
        records = {CONFIGURED: configured} | kept
        live = {
            record.key_id: crypto.key(record.material)
            for record in reversed(records.values())
            if record.retired_at is None
        }
        return AccountKeys(crypto, records, live, {} if last_used is None else last_used)


def _fingerprint(material: Mapping[str, str]) -> str:
    return sha256(msgspec.json.encode(dict(material), order="sorted")).hexdigest()


def _read(file: Path) -> list[AccountRecord]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[AccountRecord])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not what crypto_svc wrote"
        raise InvalidSetting(f"the keys in {file} cannot be read: {reason}. Restore the file or remove it") from None


def _write(file: Path, accounts: list[AccountRecord]) -> None:
    """All or nothing, and on the disk when it returns."""
    new = file.with_name(f"{file.name}.new")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(accounts)))
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageUnavailable(f"the keys cannot be written to {file}: {error.strerror}") from None
