"""Pages of a list: their size, and the token that names where the next one begins."""

from __future__ import annotations

import base64
import binascii

from memserve.errors import InvalidField

PAGE_SIZE = 100
PAGE_SIZE_MAX = 1000


def page_size(size: int) -> int:
    """Raises InvalidField."""
    if not 0 <= size <= PAGE_SIZE_MAX:
        raise InvalidField("page_size", f"from 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE}")
    return size or PAGE_SIZE


def to_token(last: str) -> str:
    """last: what the page ended with."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def from_token(token: str) -> str:
    """What the page before ended with; empty for the first page. Raises InvalidField."""
    try:
        # Strict: the lenient decoder skips foreign letters, and the rest of noise would begin at some page.
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise foreign_token() from None


def foreign_token() -> InvalidField:
    return InvalidField("page_token", "must be the next_page_token of the page before")
