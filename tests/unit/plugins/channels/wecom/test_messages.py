"""Our content as WeCom's messages."""

from typing import Any

import pytest

from assistant.api.message.v1.message_pb2 import (
    CARD_ACTION_STYLE_DANGER,
    TEXT_FORMAT_MARKDOWN,
    Card,
    CardAction,
    CardField,
    Content,
    Event,
    Link,
    Location,
    Media,
    Text,
)
from assistant.errors import PlatformRefused
from plugins.channels.wecom.messages import messages


def rendered(*contents: Content) -> list[dict[str, Any]]:
    return list(messages(contents))


def text(words: str) -> Content:
    return Content(text=Text(text=words))


def markdown(words: str) -> Content:
    return Content(text=Text(text=words, format=TEXT_FORMAT_MARKDOWN))


def test_neighbouring_texts_are_one_message() -> None:
    """Texts in a row are joined by a line break, as quota is counted in messages."""
    assert rendered(text("a"), text("b")) == [{"msgtype": "text", "text": {"content": "a\nb"}}]


def test_texts_are_joined_only_while_they_fit() -> None:
    """A text that does not fit beside its neighbour goes whole in the next message."""
    parts = rendered(text("你" * 600), text("好" * 600))
    assert [part["text"]["content"] for part in parts] == ["你" * 600, "好" * 600]


def test_order_is_kept_around_other_kinds() -> None:
    """A picture between two texts stays between them."""
    kinds = [part["msgtype"] for part in rendered(text("a"), Content(image=Media(media_id="m")), text("b"))]
    assert kinds == ["text", "image", "text"]


def test_markdown_with_marks_is_markdown() -> None:
    """What needs marks to look right is sent as markdown."""
    assert rendered(markdown("**now**")) == [{"msgtype": "markdown", "markdown": {"content": "**now**"}}]


def test_markdown_without_marks_is_text() -> None:
    """What needs no marks goes as text, which WeChat shows too."""
    assert rendered(markdown("- one\n- two")) == [{"msgtype": "text", "text": {"content": "- one\n- two"}}]


@pytest.mark.parametrize("kind", ["image", "voice", "file"])
def test_media_go_by_their_handle(kind: str) -> None:
    """A file that was uploaded is sent by its media_id."""
    content = Content(**{kind: Media(media_id="m1")})
    assert rendered(content) == [{"msgtype": kind, kind: {"media_id": "m1"}}]


def test_a_film_has_title_and_description() -> None:
    """A film carries the words around it."""
    content = Content(video=Media(media_id="m1", title="t", description="d"))
    assert rendered(content) == [{"msgtype": "video", "video": {"media_id": "m1", "title": "t", "description": "d"}}]


def test_media_without_handle_are_told_by_their_address() -> None:
    """A file that is only elsewhere is named with its address."""
    content = Content(file=Media(name="a.pdf", url="https://a.b/a.pdf"))
    assert rendered(content)[0]["text"]["content"] == "a.pdf\nhttps://a.b/a.pdf"


def test_media_without_anything_are_refused() -> None:
    """A picture that is nowhere cannot be sent."""
    with pytest.raises(PlatformRefused, match="media_id"):
        rendered(Content(image=Media()))


def test_a_place_is_said_in_words() -> None:
    """WeCom takes no places: the label and the degrees are sent."""
    content = Content(location=Location(label="广州塔", latitude=23.106, longitude=113.3245))
    assert rendered(content)[0]["text"]["content"] == "广州塔\n23.106000, 113.324500"


def test_links_with_pictures_are_news_of_at_most_eight() -> None:
    """Links in a row share a message, eight at most."""
    link = Content(link=Link(title="t", url="https://a.b/", image_url="https://a.b/p.png"))
    first, second = rendered(*[link] * 9)
    assert (len(first["news"]["articles"]), len(second["news"]["articles"])) == (8, 1)
    assert first["news"]["articles"][0]["picurl"] == "https://a.b/p.png"


def test_a_link_without_picture_is_a_text_card() -> None:
    """A link with words below its headline and no picture is a text card."""
    content = Content(link=Link(title="t", description="d", url="https://a.b/"))
    assert rendered(content) == [
        {"msgtype": "textcard", "textcard": {"title": "t", "description": "d", "url": "https://a.b/"}}
    ]


def test_long_headlines_are_cut_between_characters() -> None:
    """An article's title has at most 128 bytes."""
    content = Content(link=Link(title="标" * 60, url="https://a.b/", image_url="https://a.b/p.png"))
    title = rendered(content)[0]["news"]["articles"][0]["title"]
    assert len(title.encode()) <= 128
    assert title.endswith("…")


def test_a_link_that_is_no_web_address_is_said_in_words() -> None:
    """Only http and https can be clicked."""
    content = Content(link=Link(title="t", url="ftp://a.b/"))
    assert rendered(content)[0]["text"]["content"] == "t\nftp://a.b/"


def test_a_card_with_buttons_reports_clicks() -> None:
    """Buttons carry our action ids, and the card its id."""
    card = Card(
        card_id="c1",
        title="Leave",
        fields=[CardField(name="days", value="2")],
        actions=[
            CardAction(action_id="yes", label="Yes"),
            CardAction(action_id="no", label="No", style=CARD_ACTION_STYLE_DANGER),
            CardAction(label="More", url="https://a.b/"),
        ],
    )
    template = rendered(Content(card=card))[0]["template_card"]
    assert template["card_type"] == "button_interaction"
    assert template["task_id"] == "c1"
    assert [(button["key"], button["style"]) for button in template["button_list"]] == [("yes", 1), ("no", 3)]
    assert template["horizontal_content_list"] == [
        {"keyname": "days", "value": "2"},
        {"keyname": "🔗", "value": "More", "type": 1, "url": "https://a.b/"},
    ]


def test_a_card_that_only_leads_somewhere_is_a_notice() -> None:
    """Without buttons that report it is a notice with jumps."""
    card = Card(card_id="c1", title="T", url="https://a.b/", actions=[CardAction(label="Go", url="https://a.b/go")])
    template = rendered(Content(card=card))[0]["template_card"]
    assert template["card_type"] == "text_notice"
    assert template["card_action"] == {"type": 1, "url": "https://a.b/"}
    assert template["jump_list"] == [{"type": 1, "title": "Go", "url": "https://a.b/go"}]


def test_a_card_with_a_picture_shows_it() -> None:
    """A notice with a picture is of the kind that has one."""
    card = Card(card_id="c1", title="T", url="https://a.b/", image_url="https://a.b/p.png")
    template = rendered(Content(card=card))[0]["template_card"]
    assert (template["card_type"], template["card_image"]) == ("news_notice", {"url": "https://a.b/p.png"})


def test_rows_without_room_are_said_before_the_card() -> None:
    """A card shows six rows; the others are not lost."""
    fields = [CardField(name=f"n{number}", value=str(number)) for number in range(8)]
    words, card = rendered(Content(card=Card(card_id="c1", title="T", url="https://a.b/", fields=fields)))
    assert words["text"]["content"] == "n6: 6\nn7: 7"
    assert len(card["template_card"]["horizontal_content_list"]) == 6


def test_a_card_with_nothing_to_click_is_said_in_words() -> None:
    """WeCom has no card without a click."""
    card = Card(card_id="c1", title="T", description="D", fields=[CardField(name="a", value="b")])
    assert rendered(Content(card=card)) == [{"msgtype": "text", "text": {"content": "T\nD\na: b"}}]


def test_too_many_buttons_are_refused() -> None:
    """What cannot be shown whole is not shown in part."""
    actions = [CardAction(action_id=str(number), label="x") for number in range(7)]
    with pytest.raises(PlatformRefused, match="at most 6 buttons"):
        rendered(Content(card=Card(card_id="c1", title="T", actions=actions)))


@pytest.mark.parametrize("content", [Content(event=Event()), Content()])
def test_what_is_inbound_only_is_refused(content: Content) -> None:
    """Events cannot be sent."""
    with pytest.raises(PlatformRefused):
        rendered(content)
