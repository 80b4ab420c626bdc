"""Cutting words to the size that WeCom shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.channels.wecom.text import sentences, shorten, size, split

WORDS = st.text(alphabet=st.sampled_from("ab。！? .\n你好😀é"), max_size=400)


@given(WORDS | st.text(max_size=200), st.integers(4, 64))
def test_parts_together_are_the_text(text: str, limit: int) -> None:
    """Nothing is lost, added or moved, and no part is larger than the limit in bytes."""
    parts = split(text, limit)
    assert "".join(parts) == text
    assert all(size(part) <= limit for part in parts)


@given(WORDS, st.integers(4, 64))
def test_parts_are_not_wastefully_small(text: str, limit: int) -> None:
    """Each part but the last fills at least a third of the limit, counted in characters of 4 bytes."""
    assert all(len(part) >= limit // 4 // 3 for part in split(text, limit)[:-1])


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("one. two.\n\nthree. four five six", "one. two.\n\n"),
        ("one two three\nfour five six", "one two three\n"),
        ("第一句。第二句话很长很长", "第一句。"),
        ("one two three. four five", "one two three. "),
        ("one two three four five", "one two three four "),
        ("https://example.com/?a=1&b=2", "https://example.com/"),
    ],
)
def test_the_best_border_is_taken(text: str, first: str) -> None:
    """A paragraph's end is preferred to a line's, that to a sentence's, that to a word's, that to none."""
    assert split(text, 20)[0] == first


@given(st.text(max_size=200))
def test_sentences_together_are_the_text(text: str) -> None:
    """Cutting behind sentences loses nothing."""
    assert "".join(sentences(text)) == text


@given(st.text(max_size=100), st.integers(3, 64))
def test_a_shortened_text_is_marked(text: str, limit: int) -> None:
    """What is too long ends with an ellipsis and fits; what fits stays as it is."""
    short = shorten(text, limit)
    assert size(short) <= limit
    assert short == text if size(text) <= limit else short.endswith("…")
