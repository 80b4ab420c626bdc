"""Answers what it is sure about, and says so when it is not. It never guesses and never invents."""

import datetime
from typing import Annotated, Any

import msgspec
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from assistant import plugin
from assistant.api.message.v1.message_pb2 import Content, Text, TextFormat
from assistant.api.nlp.v1.nlp_pb2 import (
    Action,
    Capability,
    DescribeModelResponse,
    GenerateReplyRequest,
    GenerateReplyResponse,
    SkillResult,
)
from plugins.engines.embedded.phrasebook import Language, Phrasebook, load
from plugins.engines.embedded.understanding import Heard, Intent, Understanding, hear, script_of

VERSION = "1"
MODEL = f"embedded/{VERSION}"

CLOCK = "clock"
"""Name of the skill that knows the time."""

_LANGUAGE = "language"
"""Key in the conversation's state: the language that the member chose."""


class _Reading(msgspec.Struct):
    """What the clock gives of these, depending on what it was asked."""

    timezone: str = ""
    time: str = ""
    date: datetime.date | None = None
    weekday: Annotated[int, msgspec.Meta(ge=1, le=7)] | None = None


class Engine(plugin.Engine):
    """Knows commands, small talk and, with the help of the skill `clock`, the time and the date."""

    def __init__(self, settings: Any) -> None:
        self._books = load()
        self._understanding = Understanding(self._books.values())

    def describe(self) -> DescribeModelResponse:
        """No model at all: phrases."""
        return DescribeModelResponse(
            provider="embedded",
            model="embedded",
            version=VERSION,
            capabilities=[Capability.CAPABILITY_SKILLS],
        )

    async def generate(self, request: GenerateReplyRequest) -> GenerateReplyResponse:
        """Never waits: one look into a table, or a few regular expressions."""
        heard = hear(request.message)
        language = self._language(request, heard.words)
        book = self._books[language]
        if request.skill_results:
            return _report(book, request.skill_results[-1])
        if heard.kind != "text":
            return _wordless(book, heard)
        return self._answer(book, self._understanding.intent(heard.words), request)

    def _language(self, request: GenerateReplyRequest, words: str) -> Language:
        """What the member chose, else what the platform tells, else what the script suggests; Chinese at last."""
        state = request.state.fields
        chosen = state[_LANGUAGE].string_value if _LANGUAGE in state else ""
        for tag in (chosen, request.locale):
            for language in self._books:
                if tag[:2].lower() == language:
                    return language
        return script_of(words) or "zh"

    def _answer(self, book: Phrasebook, intent: Intent, request: GenerateReplyRequest) -> GenerateReplyResponse:
        match intent.name:
            case "time" | "date" | "weekday" if _offers_clock(request):
                return _ask_clock(intent.name)
            case "time" | "date" | "weekday":
                return _say(book.answers["clock_missing"], intent.name)
            case "help" if _offers_clock(request):
                return _say("\n".join((book.answers["help"], book.answers["help_clock"])), "help")
            case "new":
                return _say(book.answers["new"], "new", starts_conversation=True)
            case "language":
                return self._choose_language(book, intent.argument, request.state)
            case "unknown":
                return _say(book.answers["unknown"], "unknown", confidence=0.0)
            case name:
                return _say(book.answers[name], name)

    def _choose_language(self, book: Phrasebook, argument: str, state: Struct) -> GenerateReplyResponse:
        if argument not in self._books:
            answer = "language_unknown" if argument else "language_choices"
            return _say(book.answers[answer], "language")
        kept = Struct()
        kept.CopyFrom(state)
        kept[_LANGUAGE] = argument
        return _say(self._books[argument].answers["language"], "language", state=kept)


def _offers_clock(request: GenerateReplyRequest) -> bool:
    return any(skill.name == CLOCK for skill in request.skills)


def _say(text: str, intent: str, confidence: float = 1.0, **fields: Any) -> GenerateReplyResponse:
    content = Content(text=Text(text=text, format=TextFormat.TEXT_FORMAT_PLAIN))
    return GenerateReplyResponse(content=[content], intent=intent, confidence=confidence, model=MODEL, **fields)


def _wordless(book: Phrasebook, heard: Heard) -> GenerateReplyResponse:
    match heard.kind:
        case "silence":
            return GenerateReplyResponse(intent="none", confidence=1.0, model=MODEL)
        case "welcome":
            return _say(book.answers["welcome"], "welcome")
        case kind:
            return _say(book.cannot[kind], kind)


def _ask_clock(what: str) -> GenerateReplyResponse:
    arguments = Struct()
    arguments["what"] = what
    return GenerateReplyResponse(
        actions=[Action(skill=CLOCK, arguments=arguments)], intent=what, confidence=1.0, model=MODEL
    )


def _report(book: Phrasebook, result: SkillResult) -> GenerateReplyResponse:
    """Word what a skill gave. Its own words win."""
    intent = result.action.skill
    if not result.succeeded:
        return _say(book.answers["skill_failed"], intent)
    if result.content:
        return GenerateReplyResponse(content=result.content, intent=intent, confidence=1.0, model=MODEL)
    if result.action.skill == CLOCK:
        return _say(_read_clock(book, result.result) or book.answers["skill_failed"], intent)
    return _say(book.answers["skill_done"], intent)


def _read_clock(book: Phrasebook, result: Struct) -> str | None:
    """None if it is no reading of a clock: the skill may be somebody else's."""
    try:
        reading = msgspec.convert(MessageToDict(result), _Reading, strict=False)
    except msgspec.ValidationError:
        return None
    weekdays, months = book.calendar.weekdays, book.calendar.months
    if reading.time:
        return book.answers["time"].format(time=reading.time, zone=book.zones.get(reading.timezone, reading.timezone))
    if reading.date:
        day = reading.date
        return book.answers["date"].format(
            year=day.year, month=months[day.month - 1], day=day.day, weekday=weekdays[day.weekday()]
        )
    if reading.weekday:
        return book.answers["weekday"].format(weekday=weekdays[reading.weekday - 1])
    return None
