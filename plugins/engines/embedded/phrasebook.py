"""What the embedded engine understands and says, one TOML file per language in `phrases/`."""

from importlib import resources
from typing import Literal, get_args

import msgspec

Language = Literal["zh", "en"]


class Calendar(msgspec.Struct, frozen=True):
    """Names of months, January first, and of weekdays, Monday first."""

    months: tuple[str, ...]
    weekdays: tuple[str, ...]


class Phrasebook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One language. The files say what each part is."""

    commands: dict[str, tuple[str, ...]]
    languages: dict[Language, tuple[str, ...]]
    questions: dict[str, str]
    answers: dict[str, str]
    cannot: dict[str, str]
    calendar: Calendar
    zones: dict[str, str]


def load() -> dict[Language, Phrasebook]:
    """All languages."""
    folder = resources.files(__package__) / "phrases"
    return {
        language: msgspec.toml.decode((folder / f"{language}.toml").read_bytes(), type=Phrasebook)
        for language in get_args(Language)
    }
