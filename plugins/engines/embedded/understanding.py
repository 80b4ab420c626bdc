"""From the words of a message to what its sender wants: whole messages only, so that nothing is guessed."""

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

from assistant.api.message.v1.message_pb2 import Event, InboundMessage
from plugins.engines.embedded.phrasebook import Language, Phrasebook

_LONGEST = 64
"""Characters. A longer text is no command and no question of ours."""

_SAMPLE = 256
"""Characters. So many tell the script of a text."""

_APOSTROPHES = str.maketrans("", "", "'’‘`")
_SEPARATORS = re.compile(r"[\W_]+")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN = re.compile(r"[A-Za-z\uff21-\uff3a\uff41-\uff5a]")


@dataclass(frozen=True, slots=True)
class Heard:
    """What reached us of a message."""

    words: str = ""
    kind: str = "text"
    """What it is instead, where there are no words: a kind of content, "welcome" or "silence"."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What the sender wants."""

    name: str
    argument: str = ""
    """Of `language`: the language's tag, or the word that is none."""


UNKNOWN = Intent("unknown")


def hear(message: InboundMessage) -> Heard:
    """Take the words out of a message: typed, spoken with a transcript, or clicked."""
    words, kind = [], ""
    for content in message.content:
        match content.WhichOneof("kind"):
            case "text":
                words.append(content.text.text)
            case "voice" if content.voice.transcript:
                words.append(content.voice.transcript)
            case "event":
                clicked, kind = _hear_event(content.event)
                words.append(clicked)
            case other:
                kind = kind or other or "unknown"
    return Heard(" ".join(words)) if any(words) or not kind else Heard(kind=kind)


def _hear_event(event: Event) -> tuple[str, str]:
    match event.WhichOneof("kind"):
        case "arrival" if event.arrival.first:
            return "", "welcome"
        case "menu_click" if not event.menu_click.opened_url:
            return event.menu_click.key, "silence"
        case "card_click":
            return event.card_click.action_id, "silence"
        case "scan" if event.scan.awaits_reply:
            return "", "scan"
        case _:
            return "", "silence"


def fold(text: str) -> str:
    """Lower case, half width, without punctuation and emoji, one space between words."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    return _SEPARATORS.sub(" ", plain).strip()


def script_of(text: str) -> Language | None:
    """The language that the script suggests: Chinese before English; None if neither."""
    if _HAN.search(text, 0, _SAMPLE):
        return "zh"
    return "en" if _LATIN.search(text, 0, _SAMPLE) else None


class Understanding:
    """Finds the intent of a text. Each language's phrases are understood whatever language is spoken."""

    def __init__(self, books: Collection[Phrasebook]) -> None:
        self._commands = {
            fold(phrase): Intent(name)
            for book in books
            for name, phrases in book.commands.items()
            for phrase in phrases
        }
        languages = {fold(name): tag for book in books for tag, names in book.languages.items() for name in names}
        self._choosers = frozenset(phrase for phrase, intent in self._commands.items() if intent.name == "language")
        for phrase in self._choosers:
            for name, tag in languages.items():
                choice = Intent("language", tag)
                self._commands |= {f"{phrase} {name}": choice, f"{phrase}{name}": choice}
        self._questions = [
            re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in book.questions.items())) for book in books
        ]

    def intent(self, text: str) -> Intent:
        """What the sender wants; UNKNOWN if it is none of what we understand."""
        if len(text) > _LONGEST:
            return UNKNOWN
        folded = fold(text)
        return self._commands.get(folded) or self._question(folded) or self._unknown_language(folded) or UNKNOWN

    def _question(self, folded: str) -> Intent | None:
        for questions in self._questions:
            found = questions.fullmatch(folded)
            if found and found.lastgroup:
                return Intent(found.lastgroup)
        return None

    def _unknown_language(self, folded: str) -> Intent | None:
        command, _, argument = folded.partition(" ")
        if command in self._choosers and argument and " " not in argument:
            return Intent("language", argument)
        return None
