"""Rules between the fields of a request's sampling."""

from __future__ import annotations

from memserve.errors import InvalidField


def check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    """Raises InvalidField.

    max_tokens: the request's own, or the default for a request without one.
    """
    if min_tokens > max_tokens:
        raise InvalidField(
            "sampling.min_tokens", f"{min_tokens} is over max_tokens, which is {max_tokens} for this request"
        )
