"""Lists in pages, newest first: what a caller asks for, and the token that leads to the next page."""

from collections.abc import Sequence

from assistant.errors import InvalidRequest
from assistant.journal import Row

_DEFAULT_SIZE = 100
_MOST = 1000
_LONGEST_TOKEN = 18
"""Digits, so that it is a number to every database."""


def page_size(asked: int) -> int:
    """How many to show; 0 leaves it to us. Raises InvalidRequest."""
    if asked > _MOST:
        raise InvalidRequest(f"page_size is {asked}: at most {_MOST}")
    return asked or _DEFAULT_SIZE


def before(page_token: str) -> int | None:
    """The `seq` before which the page begins; None: at the newest. Raises InvalidRequest."""
    if not page_token:
        return None
    if not (page_token.isascii() and page_token.isdigit() and len(page_token) <= _LONGEST_TOKEN):
        raise InvalidRequest("page_token is none: give the next_page_token of the page before")
    return int(page_token)


def next_page_token(found: Sequence[Row], size: int) -> str:
    """What leads on, of one row more than the page shows. Empty: there are no more."""
    return str(found[size - 1].seq) if len(found) > size else ""
