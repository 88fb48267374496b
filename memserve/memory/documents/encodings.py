"""From bytes to text. Bytes that are not what they are said to be are refused, with the place."""

from __future__ import annotations

import re
import unicodedata

from memserve.errors import InvalidField
from memserve.plain import plain

_BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_META_WITHIN_BYTES = 1024
_META_CHARSET = re.compile(rb"charset\s{0,9}=\s{0,9}[\"']?\s{0,9}([a-z0-9_:.-]{1,40})", re.IGNORECASE)
# Labels of the WHATWG's encoding standard, and Python's codec for each. No other codec of Python's is
# reached: some of them decompress.
_CODECS = {
    **dict.fromkeys(("utf-8", "utf8", "unicode-1-1-utf-8"), "utf-8"),
    **dict.fromkeys(("ascii", "us-ascii", "iso-8859-1", "iso8859-1", "latin1", "l1"), "cp1252"),
    **dict.fromkeys(("windows-1252", "cp1252", "x-cp1252"), "cp1252"),
    **{f"windows-{number}": f"cp{number}" for number in (1250, 1251, 1253, 1254, 1255, 1256, 1257, 1258)},
    **{f"iso-8859-{part}": f"iso8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
    "iso-8859-9": "cp1254",
    "iso-8859-11": "cp874",
    "windows-874": "cp874",
    "tis-620": "cp874",
    "koi8-r": "koi8-r",
    "koi8-u": "koi8-u",
    "ibm866": "cp866",
    "macintosh": "mac-roman",
    **dict.fromkeys(("gb2312", "gbk", "x-gbk", "gb18030", "chinese"), "gb18030"),
    **dict.fromkeys(("big5", "big5-hkscs"), "big5hkscs"),
    **dict.fromkeys(("euc-jp", "x-euc-jp"), "euc-jp"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis", "windows-31j"), "cp932"),
    "iso-2022-jp": "iso2022-jp",
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "korean", "windows-949"), "cp949"),
    "utf-16": "utf-16-le",
    "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be",
}
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff\ufeff]")
_PAGE_END = "\f"


def decoded(content: bytes, charset: str = "", *, html: bool = False) -> str:
    """The text as `tidy` leaves it: by its byte order mark, else by `charset`, else by what HTML says in its
    first kilobyte, else as UTF-8.

    Raises InvalidField for an unknown charset, bytes that break its rules, and a NUL.
    """
    bom, codec = next(((bom, codec) for bom, codec in _BOMS.items() if content.startswith(bom)), (b"", ""))
    if content.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        raise InvalidField("document", "is in UTF-32; send UTF-8")
    if not codec and charset:
        codec = _codec("media_type", charset)
    if not codec and html and (declared := _META_CHARSET.search(_head(content))):
        codec = _codec("document", declared[1].decode().lower())
        # What could be read as ASCII to find this is no UTF-16. Browsers take it as UTF-8, too.
        codec = "utf-8" if codec.startswith("utf-16") else codec
    codec = codec or "utf-8"
    try:
        text = content[len(bom) :].decode(codec)
    except UnicodeDecodeError as error:
        raise InvalidField(
            "document",
            f"is not valid {codec}: the byte at offset {error.start + len(bom)} cannot be read; save it as"
            " UTF-8 or say its charset",
        ) from None
    if (place := text.find("\0")) >= 0:
        raise InvalidField(
            "document",
            f"has a NUL at character {place}; it is no text, or UTF-16 without a byte order mark",
        )
    return tidy(text)


def tidy(text: str) -> str:
    """The text in NFC, with one kind of line end, and without control characters and half characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace(_PAGE_END, "\n\n")
    return unicodedata.normalize("NFC", _NOT_TEXT.sub(_instead, text))


def _instead(match: re.Match[str]) -> str:
    if match[0] == "\ufeff":
        return ""
    return "\ufffd" if match[0] >= "\ud800" else " "


def _codec(field: str, charset: str) -> str:
    if charset not in _CODECS:
        raise InvalidField(field, f"has the charset {plain(charset[:40])}, which is not read; send UTF-8")
    return _CODECS[charset]


def _head(content: bytes) -> bytes:
    """The declarations of HTML's first kilobyte: `<meta charset=…>` and `<?xml encoding=…?>` alike."""
    begin = content[:_META_WITHIN_BYTES].replace(b"encoding=", b"charset=")
    places = [place for mark in (b"<meta", b"<META", b"<?xml") if (place := begin.find(mark)) >= 0]
    return begin[min(places) :] if places else b""
