"""A call of a method of the client."""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf.message import Message as Proto


class Case(NamedTuple):
    """A call, what it sends, what the gateway answers, and what the caller gets."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    request: Proto | list[Any]
    """Of a stream of requests, all of them."""
    replies: list[Any]
    value: Any
    rpc: str = ""
    """Empty: as the request's message is called."""

    @property
    def called(self) -> str:
        first = self.request[0] if isinstance(self.request, list) else self.request
        return self.rpc or first.DESCRIPTOR.name.removesuffix("Request")
