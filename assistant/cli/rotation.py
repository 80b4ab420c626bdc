"""Changing the callback key of an account without losing a message: one step after the other, each of which may be
the last for now. What is not known elsewhere, the new key itself, is kept in a file until all is done.
"""

import fcntl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import IO, Any

import msgspec

from assistant import plugin
from assistant.cli import config
from assistant.cli.audit import recorded
from assistant.cli.configuration import Configuration, Field, account_section
from assistant.cli.files import write_private
from assistant.cli.keyring import Key, Keyring
from assistant.cli.output import ourselves
from assistant.cli.simulation import SimulatorSettings, keep_simulated, simulated_channel
from assistant.errors import AssistantError, DeadlineExceeded, InvalidKey, InvalidRequest, KeyExists, UnknownKey
from assistant.settings import DEFAULT_ACCOUNT, fields, home, is_secret

_LOOK_EVERY_S = 1.0
_UNKNOWN_STEPS = ("Save the new key in the console of the platform.",)


class _Kept(msgspec.Struct, kw_only=True):
    """A rotation that is under way."""

    key_id: str
    material: dict[str, str]
    made: bool
    """Whether we made the material: then nobody else knows it yet."""
    proved_at: datetime | None = None
    """When a callback with the new key was seen."""


def material_fields(channel: plugin.Channel) -> dict[str, Field]:
    """The settings that are a key of this channel."""
    return {name: field for name, field in fields(channel.crypto).items() if is_secret(field)}


def add(keyring: Keyring, account: str, key_id: str, material: Mapping[str, str]) -> int:
    """Add a key on every replica, and record it: how many they are. `account` is channel/name."""
    with recorded("keys.add", account=account, key_id=key_id):
        return keyring.add(key_id, material)


def retire(keyring: Keyring, account: str, key_id: str) -> int:
    """Retire a key on every replica, and record it: how many they are. `account` is channel/name."""
    with recorded("keys.retire", account=account, key_id=key_id):
        return keyring.retire(key_id)


def new_key_id(keys: list[Key]) -> str:
    """A name for a new key: the day, and a number from the second key of the day on."""
    taken = {key.key_id for key in keys}
    today = datetime.now(UTC).date().isoformat()
    number = next(number for number in range(1, len(taken) + 2) if _numbered(today, number) not in taken)
    return _numbered(today, number)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


class Rotation:
    """One rotation of one account: begun, or gone on with if one is under way. `tell` is given lines for a person."""

    def __init__(self, keyring: Keyring, manifest: plugin.Channel, account: str, tell: Callable[[str], None]) -> None:
        self._keyring = keyring
        self._manifest = manifest
        self._account = account
        self._tell = tell
        self._file = home() / "rotations" / f"{manifest.name}.{account}.json"
        self._locked: IO[str]
        self._kept: _Kept

    @property
    def key_id(self) -> str:
        """The new key."""
        return self._kept.key_id

    @property
    def name(self) -> str:
        """The account, as channel/name."""
        return f"{self._manifest.name}/{self._account}"

    @property
    def command(self) -> str:
        """What goes on with it."""
        return self._command("rotate")

    def _command(self, name: str) -> str:
        account = "" if self._account == DEFAULT_ACCOUNT else f" --account {self._account}"
        return f"{ourselves()} keys {name} {self._manifest.name}{account}"

    def begin(self, key_id: str | None, material: Mapping[str, str]) -> None:
        """Make or take the new key, and add it on every replica. Empty material: make it."""
        self._lock()
        keys = self._keyring.known()
        under_way = self._under_way(keys)
        if under_way:
            if (material and material != under_way.material) or key_id not in (None, under_way.key_id):
                raise InvalidRequest(
                    f"a rotation of {self.name} to the key {under_way.key_id} is under way: finish it without giving "
                    f"a key, or give it up with {self._command('retire')} {under_way.key_id}"
                )
            self._kept = under_way
            self._tell(f"Going on with the key {under_way.key_id}.")
        else:
            change = self._manifest.key_change
            if not material and change is None:
                names = " ".join(f"--{name}" for name in material_fields(self._manifest))
                raise InvalidRequest(f"{self._manifest.name} does not say how to make a key: give it with {names}")
            made = dict(change.make()) if change and not material else {}
            self._kept = _Kept(key_id=key_id or new_key_id(keys), material=made or dict(material), made=bool(made))
            self._save()
        known = {key.key_id: key for key in keys}
        if not under_way or self.key_id not in known or not known[self.key_id].live_everywhere:
            self._add()
        old = ", ".join(key.key_id for key in self._old_keys()) or "no other key"
        self._tell(f"The key {self.key_id} is live beside {old}, on every replica of crypto_svc.")

    def show_steps(self, language: str) -> None:
        """Say what to do in the platform's console, unless it was done."""
        if self._proved():
            return
        change, configuration = self._manifest.key_change, Configuration.load()
        if change and change.simulated and simulated_channel(configuration):
            simulator = configuration.source.read(SimulatorSettings, "simulator").listen
            key = msgspec.json.encode(self._kept.material).decode()
            self._tell("The platform is simulated. This saves the key there:")
            self._tell(f"  curl -X PUT http://{simulator}{change.simulated} -d '{key}'")
            return
        for number, step in enumerate(change.steps[language] if change else _UNKNOWN_STEPS, 1):
            self._tell(f"  {number}. {step}")
        if self._kept.made:
            self._tell_material()

    def wait_for_proof(self, timeout_s: float) -> None:
        """Return when a callback was opened with the new key. Raises DeadlineExceeded."""
        deadline = time.monotonic() + timeout_s
        if not self._proved():
            self._tell("Waiting for a callback with the new key. You may interrupt this, and run it again later.")
        while not self._proved():
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"no callback with the key {self.key_id} came within {timeout_s:g} s. All keys stay live and "
                    f"nothing is lost. Go on: {self.command}"
                )
            time.sleep(_LOOK_EVERY_S)
        self._tell(f"A callback came with the key {self.key_id}: the platform uses it.")

    def wait_until_quiet(self, quiet_s: float) -> None:
        """Return when the new key has been in use, and no old one was used, for so long."""
        told = False
        while (left_s := quiet_s - self._quiet_for_s()) > 0:
            if not told:
                self._tell(f"Old keys are retired when none was used for {quiet_s:g} s: in {left_s:.0f} s, if so.")
            told = True
            time.sleep(min(left_s, _LOOK_EVERY_S))

    def old_keys(self) -> list[str]:
        """What is to be retired, for people: each with its last use."""
        return [
            f"{key.key_id} (last used {key.last_used_at:%Y-%m-%d %H:%M:%S} UTC)" if key.last_used_at else key.key_id
            for key in self._old_keys()
        ]

    def finish(self) -> tuple[list[str], dict[str, Any]]:
        """Retire the old keys, and put the new one into the configuration: what was retired, and what became of it."""
        old = [key.key_id for key in self._old_keys()]
        for key_id in old:
            retire(self._keyring, self.name, key_id)
            self._tell(f"The key {key_id} is retired.")
        configuration = self._configure()
        self._file.unlink()
        return old, configuration

    def _add(self) -> None:
        try:
            add(self._keyring, self.name, self.key_id, self._kept.material)
        except (InvalidKey, KeyExists):
            self._file.unlink()  # it will never be live
            raise

    # --- What is known ------------------------------------------------------------------------------------

    def _under_way(self, keys: list[Key]) -> _Kept | None:
        """The rotation that was begun before, unless its key was retired since: then it was given up."""
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError):
            raise InvalidRequest(
                f"{self._file} cannot be read: it holds a rotation that is under way. Remove it"
            ) from None
        known = next((key for key in keys if key.key_id == kept.key_id), None)
        return None if known is not None and not known.live else kept

    def _lock(self) -> None:
        """Be the only one who rotates this account here, until the process ends. Raises InvalidRequest."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._locked = self._file.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequest(f"another `keys rotate` of {self.name} runs here now") from None

    def _save(self) -> None:
        write_private(self._file, msgspec.json.encode(self._kept).decode())

    def _proved(self) -> bool:
        if self._kept.proved_at is None:
            key = next((key for key in self._keyring.known() if key.key_id == self.key_id), None)
            if key is None or not key.live:
                raise UnknownKey(f"the key {self.key_id} was retired meanwhile: the rotation was given up")
            if key.last_used_at is not None:
                self._kept.proved_at = key.last_used_at
                self._save()
        return self._kept.proved_at is not None

    def _old_keys(self) -> list[Key]:
        return [key for key in self._keyring.known() if key.live and key.key_id != self.key_id]

    def _quiet_for_s(self) -> float:
        used = [key.last_used_at for key in self._old_keys() if key.last_used_at]
        since = max([*used, self._kept.proved_at or datetime.now(UTC)])
        return (datetime.now(UTC) - since).total_seconds()

    # --- The configuration --------------------------------------------------------------------------------

    def _configure(self) -> dict[str, Any]:
        """Put the new key where the old one is configured, or say where that is."""
        configuration, channel = Configuration.load(), self._manifest.name
        section = account_section(channel, self._account)
        if simulated_channel(configuration) == channel:
            with recorded("config.set", settings=[f"{section}.{name}" for name in self._kept.material]):
                where = keep_simulated(channel, self._kept.material)
            self._tell(f"{where} has the new key. crypto_svc reads it at the next {ourselves()} up.")
            return {"changed": True, "where": [str(where)]}
        given = {name: configuration.source.origin(section, name) for name in self._kept.material}
        if set(given.values()) == {str(configuration.file)}:
            try:
                config.write(section, self._kept.material, tell=self._tell)
            except AssistantError as error:
                self._tell(error.message)
            else:
                self._tell("crypto_svc uses the new key already, and will know it from there as well.")
                return {"changed": True, "where": [str(configuration.file)]}
        places = sorted({place for place in given.values() if place}) or [str(configuration.file)]
        self._tell(
            f"TO DO: {' and '.join(places)} still hold{'s' if len(places) == 1 else ''} the old key. Put the new one "
            "there, in case the keys file of crypto_svc is lost."
        )
        if self._kept.made:
            self._tell_material()
        return {"changed": False, "where": places}

    def _tell_material(self) -> None:
        width = max(map(len, self._kept.material))
        for name, value in self._kept.material.items():
            self._tell(f"     {name:<{width}}  {value}")
