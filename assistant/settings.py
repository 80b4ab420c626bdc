"""File, environment and secret files -> typed, validated, frozen settings.

A setting has a name `section.key`. Its value comes from, strongest first:

1. the environment: `AI_ASSISTANT_<SECTION>_<KEY>` (a channel's default account: `<CHANNEL>_<KEY>`),
2. a file that the same variable with `_FILE` at its end names (a mounted secret); an empty one counts as none,
3. the TOML file: `AI_ASSISTANT_CONFIG`, or `config.toml` in the home folder,
4. the default in the code.

An unknown key, a missing value or a wrong one stops the start with InvalidSetting, which names every
wrong setting, where it stands, what is wrong and how to mend it.
"""

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec

from assistant.errors import InvalidSetting

PREFIX = "AI_ASSISTANT_"
DEFAULT_ACCOUNT = "default"
_ACCOUNTS = "accounts"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all settings. A field's `Meta` carries its meaning (with unit) and its limits.

    Subclasses say `frozen=True, kw_only=True` again: msgspec inherits the one, type checkers the other.

    A `__post_init__` may raise ValueError to refuse values that do not fit together.
    """


S = TypeVar("S", bound=Settings)


class Secret(str):
    """A string that is not shown: its repr is a mask."""

    def __repr__(self) -> str:
        return "Secret(******)"


class Address(str):
    """Where a server listens: "host:port"."""

    def __new__(cls, text: str) -> "Address":
        """Raises ValueError."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError(f"expected host:port, such as 127.0.0.1:7001, got {text!r}")
        return super().__new__(cls, text)

    @property
    def host(self) -> str:
        """Without the brackets of IPv6."""
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """1 to 65535."""
        return int(self.rpartition(":")[2])


class Names(str):
    """Several words with commas between them, or none: "2, 3". In TOML a list of them is the same."""

    def __new__(cls, given: object = "") -> "Names":
        """Raises ValueError."""
        words = given if isinstance(given, list) else [given]
        if not all(isinstance(word, str | int) and not isinstance(word, bool) for word in words):
            raise ValueError(f"expected words with commas between them, such as 'a, b', got {given!r}")
        parts = ",".join(str(word) for word in words).split(",")
        return super().__new__(cls, ", ".join(word for part in parts if (word := part.strip())))

    def split_up(self) -> list[str]:
        """Each word by itself."""
        return self.split(", ") if self else []


def home() -> Path:
    """Where a mesh keeps its configuration and state: AI_ASSISTANT_HOME, or `.ai-assistant` in the checkout."""
    given = os.environ.get(PREFIX + "HOME")
    return Path(given).expanduser().absolute() if given else Path(__file__).resolve().parents[1] / ".ai-assistant"


def config_file() -> Path:
    """The TOML file: AI_ASSISTANT_CONFIG, or `config.toml` in the home folder. Need not exist."""
    given = os.environ.get(PREFIX + "CONFIG")
    return Path(given).expanduser() if given else home() / "config.toml"


def load_tables(file: Path) -> dict[str, Any]:
    """What stands in a TOML file; nothing if there is none. Raises InvalidSetting."""
    try:
        return tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidSetting(f"{file} cannot be read as TOML: {error}") from error


class Source:
    """The values that were given, before anyone has looked at what they mean."""

    def __init__(self, tables: Mapping[str, Any], environ: Mapping[str, str], origin: str) -> None:
        self._tables = tables
        self._environ = environ
        self._origin = origin

    @classmethod
    def load(cls, file: Path | None = None, environ: Mapping[str, str] | None = None) -> "Source":
        """Read the file (by default `config_file()`) and the environment. Raises InvalidSetting."""
        file = file or config_file()
        tables = load_tables(file)
        return cls(tables, os.environ if environ is None else environ, str(file))

    def origin(self, section: str, key: str) -> str:
        """Where the value of a setting comes from: a variable or the file. Empty: nobody gave one."""
        prefix = section.upper().replace(".", "_") + "_"
        variables = self._variables(
            prefix.removeprefix("CHANNELS_") if section.startswith("channels.") else PREFIX + prefix, {key}
        )
        if key in variables:
            return variables[key][0]
        return self._origin if key in self._table(section) else ""

    def sections(self) -> list[str]:
        """Names of the tables in the file, such as "gateway" or "channels.wecom"."""
        channels = self._tables.get("channels", {})
        plain = [name for name in self._tables if name != "channels"]
        return plain + [f"channels.{name}" for name in channels]

    def read(self, cls: type[S], section: str, *, exact: bool = True) -> S:
        """The settings of one section. Raises InvalidSetting with every problem in it.

        `exact=False` is for a reader that has only a part of another service's section, such as its address:
        the rest is not its business.
        """
        prefix = f"{PREFIX}{section.upper().replace('.', '_')}_"
        table, variables = self._table(section), self._variables(prefix, fields(cls))
        if not exact:
            table = {key: value for key, value in table.items() if key in fields(cls)}
            variables = {key: value for key, value in variables.items() if key in fields(cls)}
        return _build(cls, section, table, variables, self._origin)

    def accounts(self, cls: type[S], channel: str, known: frozenset[str]) -> dict[str, S]:
        """The settings of each account of a channel, by the account's name; none if it is not configured.

        `known` are the names of all settings that the channel has: `cls` may have fewer, the part that one
        service is given. Raises InvalidSetting.
        """
        return {
            name: _build(cls, where, values, environment, self._origin, known)
            for name, (where, values, environment) in self._accounts(channel, known).items()
        }

    def given_accounts(self, channel: str, known: frozenset[str]) -> dict[str, dict[str, Any]]:
        """What was given of each account, by the names of the settings, whatever it is worth. Raises InvalidSetting."""
        return {
            name: {**values, **{key: raw for key, (_, raw) in variables.items() if key in known}}
            for name, (_, values, variables) in self._accounts(channel, known).items()
        }

    def _accounts(
        self, channel: str, known: frozenset[str]
    ) -> dict[str, tuple[str, Mapping[str, Any], Mapping[str, tuple[str, str]]]]:
        """What is given of each account: its section, values of the file, variables."""
        section = f"channels.{channel}"
        table = dict(self._table(section))
        named = table.pop(_ACCOUNTS, {})
        variables = self._variables(f"{channel.upper()}_", known)
        given: dict[str, tuple[str, Mapping[str, Any], Mapping[str, tuple[str, str]]]] = {
            name: (f"{section}.{_ACCOUNTS}.{name}", values, {})
            for name, values in named.items()
            if values  # an empty table is no account, as that of the default one is none
        }
        if table or any(key in known for key in variables):
            given[DEFAULT_ACCOUNT] = (section, table, variables)
        return given

    def _table(self, section: str) -> Mapping[str, Any]:
        table: Mapping[str, Any] = self._tables
        for name in section.split("."):
            table = table.get(name, {})
            if not isinstance(table, Mapping):
                raise InvalidSetting(f"{section} in {self._origin} is a value: write it as a table [{section}]")
        return table

    def _variables(self, prefix: str, known: Collection[str]) -> dict[str, tuple[str, str]]:
        """Key -> (name of the variable, value) for the variables that begin with the prefix.

        `known` are names of settings: one that ends with "_file" itself names no file that holds it.
        """
        found: dict[str, tuple[str, str]] = {}
        for name, value in self._environ.items():
            if name.startswith(prefix) and value:
                key = name[len(prefix) :].lower()
                if key in known or not key.endswith("_file"):
                    found[key] = (name, value)
                elif secret := _secret_file(name, value):
                    found.setdefault(key.removesuffix("_file"), (name, secret))
        return found


def fields(cls: type[Settings]) -> dict[str, msgspec.structs.FieldInfo]:
    """The settings of a class by name."""
    return {field.encode_name: field for field in msgspec.structs.fields(cls)}


def meaning(field: msgspec.structs.FieldInfo) -> str:
    """What a setting means, from its `Meta`. Empty if nothing is said."""
    if get_origin(field.type) is Annotated:
        for meta in get_args(field.type)[1:]:
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description
    return ""


def set_command(section: str, key: str) -> str:
    """What to type to set a setting, without its value."""
    if not section.startswith("channels."):
        return f"ai-assistant-cli config set {section}.{key} …"
    channel, _, account = section.partition(f".{_ACCOUNTS}.")
    named = f" --account {account}" if account else ""
    return f"ai-assistant-cli config set {channel}{named} --{key.replace('_', '-')} …"


def is_secret(field: msgspec.structs.FieldInfo) -> bool:
    """Whether a setting's value must not be shown."""
    return Secret in _types(field.type)


def _types(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return {annotation}.union(*(_types(part) for part in inner)) if inner else {annotation}


def _build(
    cls: type[S],
    section: str,
    table: Mapping[str, Any],
    variables: Mapping[str, tuple[str, str]],
    origin: str,
    known: frozenset[str] = frozenset(),
) -> S:
    ours = fields(cls)
    known = known | ours.keys()
    problems = [_unknown(f"{section}.{key}", key, known, origin) for key in table if key not in known]
    if section.split(".")[0] != "channels":  # a channel's prefix is a plain word that others may use as well
        problems += [
            _unknown(name, key, known, "the environment") for key, (name, _) in variables.items() if key not in known
        ]
    values: dict[str, Any] = {}
    for key, field in ours.items():
        if key in variables:
            where, raw = variables[key]
        elif key in table:
            where, raw = f"{section}.{key} in {origin}", table[key]
        elif field.required:
            problems.append(f"{section}.{key} is missing ({meaning(field)}). Set it with: {set_command(section, key)}")
            continue
        else:
            continue
        try:
            values[field.name] = msgspec.convert(raw, field.type, strict=False, dec_hook=_decode)
        except msgspec.ValidationError as error:
            shown = "its value (not shown)" if is_secret(field) else repr(raw)
            problems.append(f"{where} is wrong: {shown}: {error}. It means: {meaning(field)}")
    if problems:
        raise InvalidSetting("\n".join(problems))
    try:
        return cls(**values)
    except ValueError as error:
        raise InvalidSetting(f"{section}: {error}") from error


def _unknown(where: str, key: str, known: frozenset[str], origin: str) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
    return f"{where} in {origin} is not a setting: {hint}"


def _secret_file(name: str, path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InvalidSetting(f"{name} names the file {path}, which cannot be read: {reason}") from error


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Secret or kind is Path:
        if not isinstance(value, str):
            raise ValueError(f"expected text in quotes, got {type(value).__name__}")
        return Secret(value) if kind is Secret else Path(value).expanduser()
    if kind is Address:
        return Address(str(value))
    if kind is Names:
        return Names(value)
    raise NotImplementedError(f"no setting can have the type {kind}")
