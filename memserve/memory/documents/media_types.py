"""Which format a document has: as its sender says, and as its bytes look."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.errors import InvalidField
from memserve.plain import plain

TEXT = "text/plain"
MARKDOWN = "text/markdown"
HTML = "text/html"
PDF = "application/pdf"
MEDIA_TYPES = (TEXT, MARKDOWN, HTML, PDF)

_OTHER_NAMES = {"application/xhtml+xml": HTML, "text/x-markdown": MARKDOWN, "application/x-pdf": PDF}
# Senders that know no type say so.
_UNKNOWN = ("", "application/octet-stream", "binary/octet-stream")
_SUFFIXES = {
    ".txt": TEXT,
    ".text": TEXT,
    ".log": TEXT,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".htm": HTML,
    ".html": HTML,
    ".xhtml": HTML,
    ".pdf": PDF,
}
_REFUSED = {
    b"PK\x03\x04": "a ZIP archive (a .docx, .xlsx, .odt or .epub file is one, too)",
    b"PK\x05\x06": "a ZIP archive",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstandard",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\xd0\xcf\x11\xe0": "an old Office file (.doc, .xls, .ppt)",
    b"{\\rtf": "a file in Rich Text Format",
    b"%!PS": "a PostScript file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x7fELF": "a program",
}
_LOOKED_AT_BYTES = 1024
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_HTML_BEGINS = (b"<!doctype html", b"<html", b"<head", b"<body")
_TYPE_MAX_BYTES = 200


@dataclass(frozen=True, slots=True)
class Format:
    """How a document's bytes are to be read."""

    media_type: str
    """One of MEDIA_TYPES."""
    charset: str = ""
    """As its sender says, in lower case. "": nothing was said."""


def format_of(content: bytes, media_type: str = "", file_name: str = "") -> Format:
    """The document's format: by `media_type`, else by its bytes, else by the suffix of its name.

    media_type: as in HTTP, also with a charset. "" and application/octet-stream say nothing.
    Raises InvalidField for a format that is not read, and where what is said and the bytes do not agree.
    """
    for magic, what in _REFUSED.items():
        if content.startswith(magic):
            raise InvalidField("document", f"is {what}; send text, Markdown, HTML or PDF")
    told, charset = _told(media_type)
    looks = _looks_like(content)
    if told == PDF and b"%PDF-" in content[:_LOOKED_AT_BYTES]:
        looks = PDF  # Some programs write a few bytes of their own first.
    if told:
        if PDF in (told, looks) and told != looks:
            raise InvalidField("media_type", f"is {told}, and the document is {_said(looks)}")
        if told == TEXT and looks == HTML:
            raise InvalidField("media_type", f"is {TEXT}, and the document is {HTML}")
        return Format(told, charset)
    named = _SUFFIXES.get(_suffix(file_name), "")
    if named and PDF in (named, looks) and named != looks:
        raise InvalidField("file_name", f"ends in {_suffix(file_name)}, and the document is {_said(looks)}")
    return Format(looks or named or TEXT, charset)


def title_from(file_name: str) -> str:
    """The name of a file as a title: without its folders and without a suffix that names a format."""
    name = file_name.replace("\\", "/").rsplit("/", 1)[-1]
    if (suffix := _suffix(name)) in _SUFFIXES:
        name = name[: -len(suffix)]
    return " ".join(name.split())


def _told(media_type: str) -> tuple[str, str]:
    if len(media_type.encode(errors="replace")) > _TYPE_MAX_BYTES:
        raise InvalidField("media_type", f"must be at most {_TYPE_MAX_BYTES} bytes")
    name, *parameters = (part.strip() for part in media_type.lower().split(";"))
    charset = next(
        (
            value.strip("\"' ")
            for key, _, value in (part.partition("=") for part in parameters)
            if key.strip() == "charset"
        ),
        "",
    )
    if name in _UNKNOWN:
        return "", charset
    name = _OTHER_NAMES.get(name, name)
    if name not in MEDIA_TYPES:
        raise InvalidField("media_type", f"must be one of {', '.join(MEDIA_TYPES)}, is {plain(name)}")
    return name, charset


def _looks_like(content: bytes) -> str:
    """ "": it may be text of any kind."""
    begin = content[:_LOOKED_AT_BYTES]
    for bom in _BOMS:
        begin = begin.removeprefix(bom)
    # Of UTF-16, Latin letters are left.
    begin = begin.replace(b"\x00", b"").lstrip().lower()
    if begin.startswith(b"%pdf-"):
        return PDF
    if begin.startswith(_HTML_BEGINS) or (begin.startswith(b"<?xml") and b"<html" in begin):
        return HTML
    return ""


def _said(looks: str) -> str:
    return looks or "no PDF"


def _suffix(file_name: str) -> str:
    dot = file_name.rfind(".")
    return file_name[dot:].lower() if dot > 0 else ""
