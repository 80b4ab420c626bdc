"""The callback keys of all accounts: the configured one of each, and those that were added while running.

Added and retired keys, and when the configured one was seen first, are kept in one file, written anew and moved
into place, and readable to nobody else. Replicas may share it: each looks whether another one has changed it, and
reads it again before it changes it, while all others wait.
A retired key leaves only its name, its times and a fingerprint, by which it is known if it comes again. A configured
key that is known by another name already, since it was added first, is that key and no other.
"""

import asyncio
import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import Counter, Gauge

from assistant import telemetry
from assistant.audit import Audit
from assistant.errors import (
    AuditBroken,
    InvalidKey,
    InvalidSetting,
    KeyExists,
    LastKey,
    StorageUnavailable,
    UnknownAccount,
    UnknownKey,
)
from assistant.plugin import Callback, Crypto, HttpBody, Opened

CONFIGURED = "configured"
"""Name of the key in an account's settings, unless it is known by another."""

LOOK_EVERY_S = 2.0
"""How often a replica looks whether another one has changed the file."""
SEALS_FOR_S = 30.0
"""How long a retired key seals still: longer than any platform waits for the answer to a callback that it opened."""

_added = Gauge(
    "assistant_key_added_timestamp_seconds",
    "When a live callback key was added, in seconds since 1970.",
    ("channel", "account", "key_id"),
)
_reload_failures = Counter(
    "assistant_keyring_reload_failures", "Attempts to take up a changed keys file that failed: the old keys stay."
)

AccountName = tuple[str, str]
"""Channel, and account within it."""


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One key. Times are Unix time in seconds."""

    key_id: str
    fingerprint: str = ""
    """Left out by people who write the file by hand: it follows from the material."""
    added_at: float | None = None
    retired_at: float | None = None
    material: dict[str, str] = {}
    """Empty once it is retired; that of the configured key is never kept here."""

    def __repr__(self) -> str:
        return f"KeyRecord({self.key_id!r})"


class AccountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says of one account. Keys are in the order in which they came."""

    channel: str
    name: str
    keys: list[KeyRecord]


@dataclass(frozen=True, eq=False)
class AccountKeys:
    """The keys of one account as they are at a time: a change makes another one, so that readers see it whole."""

    crypto: Crypto
    records: dict[str, KeyRecord]
    """Oldest first; the configured one before all, unless it was added."""
    configured_id: str
    """The name of the key in the account's settings."""
    live: Mapping[str, Any] = field(repr=False)
    """What the channel works with, newest first."""
    last_used: dict[str, float] = field(default_factory=dict)
    """When each key last opened a callback. Passed on."""
    retiring: dict[str, tuple[float, Any]] = field(default_factory=dict, repr=False)
    """Keys that open nothing any longer, but seal the answers to what they opened, until this time. Passed on."""

    def open(self, callback: Callback, now: float, max_age_s: float) -> Opened:
        """Open with whichever key fits. Raises what Crypto.open raises."""
        opened = self.crypto.open(callback, self.live, now, max_age_s)
        self.last_used[opened.key_id] = now
        return opened

    def seal(self, payload: bytes, query: str, key_id: str, now: float) -> HttpBody:
        """Seal with a key; the newest if `key_id` is empty. Raises UnknownKey."""
        key_id = key_id or next(iter(self.live))
        if key_id in self.live:
            return self.crypto.seal(payload, query, self.live[key_id], now)
        until, key = self.retiring.get(key_id, (0.0, None))
        if now > until:
            raise UnknownKey(f"the account has no live key {key_id!r}")
        return self.crypto.seal(payload, query, key, now)

    def forget(self, now: float) -> None:
        """Let go of keys that were retired long enough ago."""
        for key_id, (until, _) in list(self.retiring.items()):
            if now > until:
                del self.retiring[key_id]


_Kept = Mapping[AccountName, AccountRecord]


class Keyring:
    """All accounts. `add`, `retire` and `refresh` wait for the disk, and may be called from any thread.

    A change is recorded before it is made.
    """

    def __init__(
        self,
        file: Path,
        accounts: Mapping[AccountName, Crypto],
        audit: Audit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read the file. Raises InvalidSetting if it cannot be read, and InvalidKey for a wrong key."""
        self._file = file
        self._audit = audit
        self._clock = clock
        self._changing = threading.Lock()
        self._shown: set[tuple[str, str, str]] = set()
        self._seen = _content(file)
        self._kept = _parsed(file, self._seen)
        self._accounts = {name: _load(self._kept.get(name), crypto) for name, crypto in accounts.items()}
        self._show()
        for name in accounts:
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

    def add(self, account: AccountName, key_id: str, material: Mapping[str, str], caller: str) -> KeyRecord:
        """Add a key. Raises AuditBroken, InvalidKey, KeyExists, StorageUnavailable, UnknownAccount."""
        self.of(account).crypto.key(material)
        fingerprint = _fingerprint(material)
        with self._alone():
            keys = self.of(account)
            if known := keys.records.get(key_id):
                if known.fingerprint != fingerprint:
                    raise KeyExists(f"the account has another key {key_id!r}: choose another name")
                return known
            for other in keys.records.values():
                if other.fingerprint == fingerprint:
                    raise KeyExists(f"the account has this key already: it is called {other.key_id!r}")
            record = KeyRecord(key_id=key_id, fingerprint=fingerprint, added_at=self._clock(), material=dict(material))
            self._keep(account, record, "key.add", caller)
            return record

    def retire(self, account: AccountName, key_id: str, caller: str) -> KeyRecord:
        """Retire a key. Raises AuditBroken, LastKey, StorageUnavailable, UnknownAccount, UnknownKey."""
        with self._alone():
            keys = self.of(account)
            record = keys.records.get(key_id)
            if record is None:
                raise UnknownKey(f"the account has no key {key_id!r}")
            if record.retired_at is not None:
                return record
            if len(keys.live) == 1:
                raise LastKey
            record = msgspec.structs.replace(record, retired_at=self._clock(), material={})
            self._keep(account, record, "key.retire", caller)
            return record

    def refresh(self) -> None:
        """Take up what another replica wrote. Raises StorageUnavailable if it makes no sense: the old keys stay."""
        with self._changing:
            self._refresh()

    async def follow(self) -> None:
        """Take up what other replicas write, for ever."""
        problem = ""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for keys in self._accounts.values():
                keys.forget(self._clock())
            try:
                await asyncio.to_thread(self.refresh)
                problem = ""
            except StorageUnavailable as error:
                if error.message != problem:
                    telemetry.error("keys_not_taken_up", error)
                problem = error.message

    def _refresh(self) -> None:
        try:
            content = _content(self._file)
            if content == self._seen:
                return
            self._take(content)
        except (InvalidKey, InvalidSetting) as error:
            _reload_failures.inc()
            what = f"a key in {self._file} is wrong: " if isinstance(error, InvalidKey) else ""
            raise StorageUnavailable(what + error.message) from None
        telemetry.info("keys_changed", file=str(self._file))

    def _take(self, content: bytes | None) -> None:
        """Everything is made before anything is exchanged. Raises InvalidKey, InvalidSetting."""
        if content is None:
            raise InvalidSetting(f"the keys in {self._file} are gone: restore the file")
        kept = _parsed(self._file, content)
        accounts = {name: _load(kept.get(name), keys.crypto, keys) for name, keys in self._accounts.items()}
        until = self._clock() + SEALS_FOR_S
        for name, keys in self._accounts.items():
            gone = keys.live.keys() - accounts[name].live.keys()
            keys.retiring.update({key_id: (until, keys.live[key_id]) for key_id in gone})
        self._seen, self._kept, self._accounts = content, kept, accounts
        self._show()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep everybody else from changing the file, and know what is in it. Raises StorageUnavailable."""
        with self._changing, _locked(self._file):
            self._refresh()
            yield

    def _date(self, account: AccountName) -> None:
        """Write down when the configured key was seen first, so that somebody can be told that it is old."""
        if self._is_dated(account):
            return
        try:
            with self._alone():
                if not self._is_dated(account):
                    keys = self._accounts[account]
                    dated = msgspec.structs.replace(keys.records[keys.configured_id], added_at=self._clock())
                    self._keep(account, dated, "key.configured", "configuration")
        except (AuditBroken, StorageUnavailable) as error:
            telemetry.warning("key_not_dated", reason=error.reason, detail=error.message)

    def _is_dated(self, account: AccountName) -> bool:
        keys = self._accounts[account]
        configured = keys.records[keys.configured_id]
        return configured.added_at is not None or configured.retired_at is not None

    def _show(self) -> None:
        """Bring the metric in line with the live keys."""
        ages = {
            (*account, record.key_id): record.added_at
            for account, keys in self._accounts.items()
            for record in keys.records.values()
            if record.added_at is not None and record.retired_at is None
        }
        for labels in self._shown - ages.keys():
            _added.remove(*labels)
        for labels, added_at in ages.items():
            _added.labels(*labels).set(added_at)
        self._shown = set(ages)

    def _keep(self, account: AccountName, record: KeyRecord, action: str, caller: str) -> None:
        """Write first: what is not on the disk is not so."""
        channel, name = account
        kept = {key.key_id: key for key in self._kept[account].keys} if account in self._kept else {}
        keys = list((kept | {record.key_id: record}).values())
        changed = {**self._kept, account: AccountRecord(channel=channel, name=name, keys=keys)}
        content = msgspec.json.format(msgspec.json.encode(list(changed.values())))
        with self._audit.recording(action, caller, account=f"{channel}/{name}", key_id=record.key_id):
            _write(self._file, content)
        self._take(content)


def _load(kept: AccountRecord | None, crypto: Crypto, before: AccountKeys | None = None) -> AccountKeys:
    """The keys that the file and the configuration have. Raises InvalidKey."""
    material = {name: str(value) for name, value in crypto.configured_material().items()}  # no longer a Secret
    fingerprint = _fingerprint(material)
    records = {key.key_id: key for key in kept.keys} if kept else {}
    configured = next((key for key in records.values() if key.fingerprint == fingerprint), None)
    earlier = records.pop(CONFIGURED, None)
    if configured is None:  # another one was configured since
        configured = KeyRecord(key_id=CONFIGURED, fingerprint=fingerprint)
    if configured.key_id == CONFIGURED:
        records = {CONFIGURED: configured, **records}
    elif earlier is not None and earlier.retired_at is not None:  # else its material is gone
        records = {CONFIGURED: earlier, **records}
    live = {
        record.key_id: crypto.key(material if record is configured else record.material)
        for record in reversed(records.values())
        if record.retired_at is None
    }
    if before is None:
        return AccountKeys(crypto, records, configured.key_id, live)
    return AccountKeys(crypto, records, configured.key_id, live, before.last_used, before.retiring)


def _fingerprint(material: Mapping[str, str]) -> str:
    return sha256(msgspec.json.encode(dict(material), order="sorted")).hexdigest()


def _content(file: Path) -> bytes | None:
    """None: there is no file. Raises InvalidSetting."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidSetting(_unreadable(file, error.strerror)) from None


def _parsed(file: Path, content: bytes | None) -> _Kept:
    """What stands in the file. Raises InvalidSetting."""
    try:
        accounts = [] if content is None else msgspec.json.decode(content, type=list[AccountRecord])
    except msgspec.MsgspecError:
        raise InvalidSetting(_unreadable(file, "it is not what crypto_svc wrote")) from None
    return {(account.channel, account.name): _fingerprinted(account) for account in accounts}


def _fingerprinted(account: AccountRecord) -> AccountRecord:
    keys = [
        msgspec.structs.replace(key, fingerprint=_fingerprint(key.material)) if key.material else key
        for key in account.keys
    ]
    return msgspec.structs.replace(account, keys=keys)


def _unreadable(file: Path, reason: str | None) -> str:
    return f"the keys in {file} cannot be read: {reason}. Restore the file or remove it"


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock beside the file, which all who change it wait for. Raises StorageUnavailable."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageUnavailable(f"the keys cannot be written to {file}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(file: Path, content: bytes) -> None:
    """All or nothing, and on the disk when it returns."""
    new = file.with_name(f"{file.name}.new")
    try:
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(content)
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
