"""What the embedded engine understands and says."""

from typing import get_args

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from assistant.api.message.v1.message_pb2 import (
    Arrival,
    CardClick,
    Content,
    Departure,
    Event,
    InboundMessage,
    Media,
    MenuClick,
    OtherEvent,
    Scan,
    Text,
    Unknown,
)
from assistant.api.nlp.v1.nlp_pb2 import Action, GenerateReplyRequest, GenerateReplyResponse, SkillResult
from assistant.api.skill.v1.skill_pb2 import Skill
from assistant.plugin import load
from plugins.engines.embedded import phrasebook

ENGINE = load("engines", "embedded", "engine")(None)
CLOCK = Skill(name="clock")


def typed(text: str) -> Content:
    return Content(text=Text(text=text))


async def reply(
    content: Content | str,
    *more: Content,
    skills: tuple[Skill, ...] = (CLOCK,),
    locale: str = "",
    state: dict[str, object] | None = None,
    results: tuple[SkillResult, ...] = (),
) -> GenerateReplyResponse:
    first = typed(content) if isinstance(content, str) else content
    request = GenerateReplyRequest(
        turn_id="t", message=InboundMessage(content=[first, *more]), skills=skills, locale=locale, skill_results=results
    )
    if state is not None:
        request.state.update(state)
    response = await ENGINE.generate(request)
    assert isinstance(response, GenerateReplyResponse)
    return response


def said(response: GenerateReplyResponse) -> str:
    return "".join(content.text.text for content in response.content)


def clock_result(succeeded: bool = True, **reading: object) -> SkillResult:
    return SkillResult(
        action=Action(skill="clock"), succeeded=succeeded, result=ParseDict(reading, Struct()) if reading else None
    )


@pytest.mark.parametrize("text", ["ping", "PING", " Ping! ", "ｐｉｎｇ", "/ping", "ping。"])
async def test_ping_is_answered_with_pong(text: str) -> None:
    """A command is found whatever its case, width and punctuation."""
    response = await reply(text)
    assert (said(response), response.intent, response.confidence) == ("pong", "ping", 1.0)
    assert response.model == "embedded/1"


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("帮助", "help"),
        ("菜单", "help"),
        ("help", "help"),
        ("你能做什么？", "help"),
        ("新对话", "new"),
        ("new", "new"),
        ("你好", "greeting"),
        ("早上好！", "greeting"),
        ("Hello there", "greeting"),
        ("谢谢你", "thanks"),
        ("Thank you very much!", "thanks"),
        ("再见", "farewell"),
        ("bye bye", "farewell"),
        ("你是谁？", "identity"),
        ("What's your name?", "identity"),
    ],
)
async def test_commands_and_small_talk_are_understood(text: str, intent: str) -> None:
    """Whole messages in Chinese and English lead to an answer in words."""
    response = await reply(text)
    assert response.intent == intent
    assert said(response)
    assert response.starts_conversation == (intent == "new")


@pytest.mark.parametrize(
    "text",
    [
        "会议几点开始",
        "年假怎么申请",
        "语言学是什么",
        "how long is the time limit",
        "help me with my taxes",
        "🎉",
        "",
        "？？",
    ],
)
async def test_it_says_so_when_it_does_not_know(text: str) -> None:
    """A message that only resembles one it knows is not guessed at."""
    response = await reply(text)
    assert (response.intent, response.confidence) == ("unknown", 0.0)
    assert "帮助" in said(response) or "help" in said(response)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("几点了？", "time"),
        ("现在几点", "time"),
        ("请问现在几点钟", "time"),
        ("what time is it?", "time"),
        ("What’s the time", "time"),
        ("今天几号", "date"),
        ("今天是几月几号？", "date"),
        ("what is the date today", "date"),
        ("今天星期几", "weekday"),
        ("周几", "weekday"),
        ("what day is it today?", "weekday"),
    ],
)
async def test_questions_for_the_time_go_to_the_clock(text: str, what: str) -> None:
    """It knows no time itself: it proposes to look at the clock."""
    response = await reply(text)
    assert not response.content
    assert [(action.skill, dict(action.arguments.items())) for action in response.actions] == [
        ("clock", {"what": what})
    ]


async def test_without_a_clock_it_does_not_pretend_to_know_the_time() -> None:
    """A skill that is not offered is not proposed, and nothing is invented."""
    response = await reply("现在几点了", skills=())
    assert not response.actions
    assert "时钟" in said(response)
    assert "时间" not in said(await reply("帮助", skills=()))


@pytest.mark.parametrize(
    ("text", "reading", "answer"),
    [
        ("几点了", {"time": "14:05", "timezone": "Asia/Shanghai"}, "现在是 14:05（北京时间）。"),
        ("几点了", {"time": "14:05", "timezone": "Asia/Almaty"}, "现在是 14:05（Asia/Almaty）。"),
        ("what time is it", {"time": "14:05", "timezone": "Asia/Shanghai"}, "It is 14:05 (Beijing time)."),
        ("今天几号", {"date": "2026-11-23"}, "今天是 2026 年 11 月 23 日，星期一。"),
        ("what is the date", {"date": "2026-11-23"}, "Today is Monday, 23 November 2026."),
        ("今天星期几", {"weekday": 7}, "今天是星期日。"),
        ("what day is it", {"weekday": 7}, "Today is Sunday."),
    ],
)
async def test_it_words_what_the_clock_says(text: str, reading: dict[str, object], answer: str) -> None:
    """The reading is told in the language of the question, in the words that people use."""
    assert said(await reply(text, results=(clock_result(**reading),))) == answer


@pytest.mark.parametrize(
    "result",
    [
        clock_result(succeeded=False),
        clock_result(),
        clock_result(date="the day after the 31st"),
        clock_result(weekday=8),
        clock_result(time=14.05),
    ],
)
async def test_a_clock_that_fails_is_admitted(result: SkillResult) -> None:
    """No reading, or none that makes sense, ends the turn with an apology and not with a time."""
    response = await reply("几点了", results=(result,))
    assert not response.actions
    assert "没有办成" in said(response)


async def test_the_words_of_a_skill_win() -> None:
    """What a skill wants shown is shown as it is; a skill without words is confirmed."""
    action = Action(skill="ticket")
    shown = SkillResult(action=action, succeeded=True, content=[typed("工单 42 已创建")])
    assert said(await reply("开个工单", results=(shown,))) == "工单 42 已创建"
    assert said(await reply("开个工单", results=(SkillResult(action=action, succeeded=True),))) == "已经办好了。"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("语言 en", "en"),
        ("语言：英文", "en"),
        ("切换语言 English", "en"),
        ("language zh", "zh"),
        ("Language 中文", "zh"),
    ],
)
async def test_a_member_can_choose_the_language(text: str, language: str) -> None:
    """The choice is kept in the state, confirmed in the new language, and stronger than locale and script."""
    response = await reply(text, state={"other": 1})
    assert dict(response.state.items()) == {"other": 1, "language": language}
    chosen = said(await reply("你好", state=dict(response.state.items()), locale="zh-CN"))
    assert chosen == phrasebook.load()[language].answers["greeting"]


@pytest.mark.parametrize("text", ["语言 法语", "language french"])
async def test_an_unknown_language_is_answered_with_those_that_exist(text: str) -> None:
    """Nothing changes, and the member learns what can be chosen."""
    response = await reply(text)
    assert not response.HasField("state")
    assert "zh" in said(response)
    assert "en" in said(response)


@pytest.mark.parametrize(
    ("text", "locale", "language"),
    [
        ("hello", "", "en"),
        ("你好", "", "zh"),
        ("OK 谢谢", "", "zh"),
        ("123", "", "zh"),
        ("hello", "zh-CN", "zh"),
        ("你好", "en-US", "en"),
        ("你好", "ja", "zh"),
    ],
)
async def test_it_answers_in_the_language_of_the_member(text: str, locale: str, language: str) -> None:
    """The locale decides where it is known and ours, else the script, else Chinese."""
    answers = phrasebook.load()[language].answers.values()
    assert said(await reply(text, locale=locale)) in answers


@pytest.mark.parametrize("kind", ["image", "voice", "video", "file"])
async def test_media_are_declined_kindly(kind: str) -> None:
    """It says that the file arrived and that it cannot look at it yet."""
    response = await reply(Content(**{kind: Media(media_id="m")}))
    assert response.intent == kind
    assert "收到了" in said(response)


async def test_a_voice_with_a_transcript_is_heard() -> None:
    """Words that the platform recognised count as typed."""
    assert said(await reply(Content(voice=Media(media_id="m", transcript="Ping。")))) == "pong"


async def test_words_beside_a_picture_are_read() -> None:
    """A mixed message is answered for its words."""
    assert said(await reply(Content(image=Media(media_id="m")), typed("ping"))) == "pong"


@pytest.mark.parametrize(
    ("event", "intent"),
    [
        (Event(arrival=Arrival(first=True)), "welcome"),
        (Event(arrival=Arrival(first=False)), "none"),
        (Event(departure=Departure()), "none"),
        (Event(menu_click=MenuClick(key="help")), "help"),
        (Event(menu_click=MenuClick(key="新对话")), "new"),
        (Event(menu_click=MenuClick(key="https://example.com/", opened_url=True)), "none"),
        (Event(card_click=CardClick(action_id="ping")), "ping"),
        (Event(scan=Scan(result="1", awaits_reply=True)), "scan"),
        (Event(scan=Scan(result="1")), "none"),
        (Event(other=OtherEvent(), name="batch_job_result"), "none"),
    ],
)
async def test_events_are_answered_where_a_member_waits(event: Event, intent: str) -> None:
    """A newcomer is welcomed, a click counts as typed, and what nobody waits for is met with silence."""
    response = await reply(Content(event=event))
    assert response.intent == intent
    assert bool(said(response)) == (intent != "none")
    assert not response.actions


async def test_a_kind_that_it_does_not_know_is_declined() -> None:
    """Neither an unknown kind nor one of a newer contract fails."""
    assert (await reply(Content(unknown=Unknown(name="new")))).intent == "unknown"
    assert said(await reply(Content())) == phrasebook.load()["zh"].cannot["unknown"]


def test_the_languages_say_the_same_things() -> None:
    """No phrase is missing in one of the languages."""
    books = phrasebook.load()
    assert set(books) == set(get_args(phrasebook.Language))
    shapes = [
        (set(book.commands), set(book.questions), set(book.answers), set(book.cannot), set(book.languages))
        for book in books.values()
    ]
    assert all(shape == shapes[0] for shape in shapes)
    assert all(len(book.calendar.months) == 12 and len(book.calendar.weekdays) == 7 for book in books.values())


@given(st.text(max_size=200))
async def test_any_text_is_answered(text: str) -> None:
    """Whatever a member types, something is said or a skill is proposed."""
    response = await reply(text)
    assert bool(said(response)) != bool(response.actions)
