"""Pages of a list: their size, and the token that tells where the next page begins."""

from __future__ import annotations

import base64
import binascii

from memserve.errors import InvalidField

PAGE_SIZE = 100
PAGE_SIZE_MAX = 1000


def page_size(size: int) -> int:
    """The size to use; 0 is the default. Raises InvalidField."""
    if not 0 <= size <= PAGE_SIZE_MAX:
        raise InvalidField("page_size", f"from 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE}")
    return size or PAGE_SIZE


def to_token(last: str) -> str:
    """The token of the next page.

    last: the entry that the page ended with.
    """
    return base64.urlsafe_b64encode(last.encode()).decode()


def from_token(token: str) -> str:
    """The entry that the page before ended with. Empty for the first page. Raises InvalidField."""
    try:
        # The lenient decoder skips foreign letters, so that noise would name the beginning of some page.
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise foreign_token() from None


def foreign_token() -> InvalidField:
    """The error for a token that is from no page of this list."""
    return InvalidField("page_token", "must be the next_page_token of the page before")
