"""Every rule for a name or a digest.

Each function takes the whole text and says whether the text follows the rule. The caller phrases the refusal,
because only the caller knows which field a user has to change.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LOWER_CASE_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
_ALIAS = r"[a-z][a-z0-9._-]{0,63}"

_NAME = re.compile(_LOWER_CASE_NAME)
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALIAS_NAME = re.compile(_ALIAS)
_REFERENCE = re.compile(
    rf"(?P<name>{_LOWER_CASE_NAME})(@(?:(?P<version>[1-9][0-9]{{0,8}})|(?P<alias>{_ALIAS})))?"
)
_MEMORY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class ReferenceParts(NamedTuple):
    """The parts of a module reference: `name`, `name@number` or `name@alias`."""

    name: str
    number: int
    """0 where the reference has no number."""
    alias: str
    """Empty where the reference has no alias."""


def is_name(text: str) -> bool:
    """A tenant, a module, a namespace of memories, a set of probes or a backup."""
    return _NAME.fullmatch(text) is not None


def is_key_name(text: str) -> bool:
    """An API key's name. Capital letters are allowed, because the name is often a person's or a machine's."""
    return _KEY_NAME.fullmatch(text) is not None


def is_alias(text: str) -> bool:
    """An alias of a module. It begins with a letter, so that it is never taken for a version number."""
    return _ALIAS_NAME.fullmatch(text) is not None


def split_reference(text: str) -> ReferenceParts | None:
    """The parts of a module reference. None: the text is not a reference."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    return ReferenceParts(match["name"], int(match["version"] or 0), match["alias"] or "")


def is_memory_id(text: str) -> bool:
    """The id of a text memory."""
    return _MEMORY_ID.fullmatch(text) is not None


def is_plain_file_name(text: str) -> bool:
    """A file of a module. The name becomes part of a path: it has no slash and does not begin with a dot."""
    return _FILE_NAME.fullmatch(text) is not None


def is_sha256(text: str) -> bool:
    """A SHA-256 in hexadecimal digits, in lower case. Digests of modules and of API keys look like this."""
    return _SHA256_HEX.fullmatch(text) is not None
