"""Cutting words to the 2,048 bytes that WeCom shows of a message (90236 发送应用消息): of more, the end is lost."""

import re

LIMIT_BYTES = 2048

_SENTENCE = r"""[。！？…][”’」』）)]*\s*|[.!?][)"']*\s+"""
_BORDERS = tuple(re.compile(border) for border in (r"\n\s*\n", r"\n", _SENTENCE, r"\s+"))
"""Where to cut, best first: behind a paragraph, a line, a sentence, a word."""


def size(text: str) -> int:
    """In bytes, as the platform counts."""
    return len(text.encode())


def split(text: str, limit_bytes: int = LIMIT_BYTES) -> list[str]:
    """Cut a text into parts that together are the text, each of at most `limit_bytes` (4 or more).

    Parts end behind a paragraph, else a line, a sentence, a word or a character: the best border that leaves a
    part at least half full.
    """
    parts = []
    while size(text) > limit_bytes:
        end = _cut(_head(text, limit_bytes))
        parts.append(text[:end])
        text = text[end:]
    return [*parts, text]


def sentences(text: str) -> list[str]:
    """Cut a text behind each sentence; together they are the text."""
    ends = [match.end() for match in re.finditer(_SENTENCE, text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if end > start]


def shorten(text: str, limit_bytes: int) -> str:
    """The beginning of a text, with "…" if something is left out."""
    return text if size(text) <= limit_bytes else _head(text, limit_bytes - size("…")) + "…"


def _head(text: str, limit_bytes: int) -> str:
    """As many whole characters as fit."""
    return text[:limit_bytes].encode()[:limit_bytes].decode(errors="ignore")


def _cut(head: str) -> int:
    for border in _BORDERS:
        ends = [match.end() for match in border.finditer(head) if 2 * match.end() >= len(head)]
        if ends:
            return ends[-1]
    return len(head)
