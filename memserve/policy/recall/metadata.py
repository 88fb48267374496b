"""What a memory's metadata and a request's context may be."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping

from memserve.domain.memories import MetadataValue
from memserve.errors import InvalidField

KEYS_MAX = 32
STRING_MAX_BYTES = 512
LIST_MAX = 32
_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
# A condition could not name them.
_WORDS_OF_CONDITIONS = frozenset({"and", "or", "not", "in", "true", "false"})
_INT_MAX = 2**63


def checked_metadata(field: str, values: Mapping[str, object]) -> dict[str, MetadataValue]:
    """The values as they are kept: texts in NFC, lists as tuples, in the order of their keys.

    field: which field of the request it is, for the error.
    values: at most 32. A value is text of at most 512 bytes of UTF-8, a whole number of 64 bits, a finite
    float, a bool, or a list of at most 32 texts.
    Raises InvalidField, which names the key.
    """
    if len(values) > KEYS_MAX:
        raise InvalidField(field, f"must have at most {KEYS_MAX} keys, has {len(values)}")
    checked: dict[str, MetadataValue] = {}
    for key in values:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InvalidField(
                field,
                f"key {ascii(key)[:80]} must be 1 to 64 of a-z, 0-9, '.', '_' and '-', from a letter on",
            )
        if key in _WORDS_OF_CONDITIONS:
            raise InvalidField(field, f"key {key} is a word of conditions")
    for key in sorted(values):
        checked[key] = _checked(f"{field}.{key}", values[key])
    return checked


def _checked(field: str, value: object) -> MetadataValue:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_INT_MAX <= value < _INT_MAX:
            raise InvalidField(field, "must be a whole number of at most 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidField(field, "must be a finite number")
        return value
    if isinstance(value, str):
        return _text(field, value)
    if isinstance(value, list | tuple):
        if len(value) > LIST_MAX:
            raise InvalidField(field, f"must be a list of at most {LIST_MAX} texts, has {len(value)}")
        return tuple(_text(field, item) for item in value)
    raise InvalidField(field, "must be text, a number, true, false or a list of texts")


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidField(field, "must be a list of texts")
    text = unicodedata.normalize("NFC", value)
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidField(field, "must be valid Unicode") from None
    if size_bytes > STRING_MAX_BYTES:
        raise InvalidField(field, f"must be at most {STRING_MAX_BYTES} bytes of UTF-8, is {size_bytes}")
    return text
