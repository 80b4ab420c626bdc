"""CommonMark to what WeCom shows."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.channels.wecom.markdown import convert, pack
from plugins.channels.wecom.text import size

WORDS = st.text(alphabet="abc。你好 .", min_size=1, max_size=60).map(str.strip).filter(bool)


def shown(markdown: str) -> str:
    return "\n\n".join(pack(convert(markdown)))


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("# Title *now*", "# Title now"),
        ("Title\n---", "## Title"),
        ("**bold** and *italic* and ~~gone~~", "**bold** and italic and gone"),
        ("**bold [link](http://a.b/) end**", "**bold** [link](http://a.b/) **end**"),
        ("run `make up` now", "run `make up` now"),
        ("> one\n> two", "> one\n> two"),
        ("- a\n- b\n  - c", "- a\n- b\n  - c"),
        ("3. a\n4. b", "3. a\n4. b"),
        ("```python\nx = 1\n\ny = 2\n```", "x = 1\n\ny = 2"),
        ("| a | b |\n|---|---|\n| **1** | 2 |", "a | b\n**1** | 2"),
        ("![a chart](http://a.b/c.png)", "[a chart](http://a.b/c.png)"),
        ("[x](http://a.b/c(d))", "[x](http://a.b/c%28d%29)"),
        ("[](http://a.b/)", "[http://a.b/](http://a.b/)"),
        ("first\nsecond", "first\nsecond"),
        ("first\n\nsecond", "first\n\nsecond"),
        (r"\*plain\*", "*plain*"),
        ('<font color="info">green</font>', '<font color="info">green</font>'),
    ],
)
def test_what_wecom_does_not_show_is_said_otherwise(markdown: str, expected: str) -> None:
    """Headings, bold, links, code and quotes stay; all else becomes plain lines."""
    assert shown(markdown) == expected


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    """Whatever an engine writes, it comes out in parts that fit."""
    assert all(0 < size(part) <= 64 for part in pack(convert(text), 64))


@given(st.lists(WORDS, min_size=1, max_size=20))
def test_words_are_kept_in_order(paragraphs: list[str]) -> None:
    """Paragraphs keep all their words, in order, however often they are cut."""
    parts = pack(convert("\n\n".join(paragraphs)), 40)
    assert re.sub(r"\s", "", "".join(parts)) == re.sub(r"\s", "", "".join(paragraphs))


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12))
def test_links_are_not_cut(links: list[tuple[str, str]]) -> None:
    """A link that fits into a part is whole in one part."""
    markdown = " ".join(f"{words} [{label}](http://a.b/)" for words, label in links)
    assert len(re.findall(r"\[[^\]]*\]\(http://a\.b/\)", "\n".join(pack(convert(markdown), 220)))) == len(links)


def test_bold_words_are_closed_and_opened_again() -> None:
    """Bold words too long for a part are bold in each."""
    parts = pack(convert("**" + "重要。" * 30 + "**"), 64)
    assert len(parts) > 1
    assert all(part.startswith("**") and part.endswith("**") for part in parts)


def test_a_link_that_fills_the_message_is_still_sent() -> None:
    """An address too long to stand in a link beside its label goes as plain words."""
    address = "http://a.b/" + "x" * 100
    assert address in "".join(pack(convert(f"[label]({address})"), 64)).replace("\n", "")
