"""The text of a PDF as blocks.

pypdf is written in Python, and bounds what it decompresses, and how much of it. Neither scripts, attached
files nor forms of a PDF are looked at. The bookmarks are its headings.
"""

from __future__ import annotations

import io
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from pypdf import PdfReader, apply_configuration
from pypdf.errors import LimitReachedError

from memserve.errors import InvalidField
from memserve.memory.documents.bounds import DocumentBounds
from memserve.memory.documents.document import BlockKind, Outline
from memserve.memory.documents.encodings import tidy
from memserve.memory.documents.lines import Line, paragraphs

BOOKMARKS_MAX = 10_000
BOOKMARK_LEVELS = 6
PAGES_NAMED_MAX = 20

# Letters that a font draws as one, and the forms of Arabic letters: what is searched for has none of them.
_PRINTED = re.compile("[\ufb00-\ufb06\ufb13-\ufb17\ufb50-\ufdff\ufe70-\ufefc]")

Bookmarks = dict[int, list[tuple[int, str]]]
"""By page, from 1: levels, from 1, and titles."""


class PdfText:
    """What one PDF says."""

    def __init__(self, content: bytes, bounds: DocumentBounds) -> None:
        """Raises InvalidField for a PDF that is encrypted, damaged, too large or without text."""
        # It logs what it finds in the document. A document's text belongs in no log.
        logging.getLogger("pypdf").setLevel(logging.CRITICAL)
        self._bounds = bounds
        self.outline = Outline(bounds)
        self.title = ""
        self.left_out: tuple[str, ...] = ()
        with apply_configuration(
            zlib_maximum_output_length=bounds.stream_bytes,
            lzw_maximum_output_length=bounds.stream_bytes,
            run_length_maximum_output_length=bounds.stream_bytes,
            brotli_maximum_output_length=bounds.stream_bytes,
            array_based_stream_maximum_output_length=bounds.stream_bytes,
            maximum_declared_stream_length=bounds.stream_bytes,
            stream_decoding_work_maximum_length=2 * bounds.stream_bytes,
            outline_maximum_entries=BOOKMARKS_MAX,
            # No program is started for an image.
            jbig2dec_binary=None,
        ):
            self._read(content)

    def _read(self, content: bytes) -> None:
        try:
            reader = PdfReader(io.BytesIO(content), strict=False)
            encrypted = reader.is_encrypted
            pages = 0 if encrypted else len(reader.pages)
        except Exception as error:
            raise _unreadable("", error) from None
        if encrypted:
            raise InvalidField("document", "is an encrypted PDF; save it without a password")
        if not 1 <= pages <= self._bounds.pages:
            raise InvalidField("document", f"must have 1 to {self._bounds.pages} pages, has {pages}")
        texts = [self._page(reader, number) for number in range(1, pages + 1)]
        empty = [number for number, text in enumerate(texts, 1) if not text.strip()]
        if len(empty) == pages:
            raise InvalidField("document", "is a PDF without text, such as a scan; send its text")
        if empty:
            named = ", ".join(str(number) for number in empty[:PAGES_NAMED_MAX])
            more = f" and {len(empty) - PAGES_NAMED_MAX} more" if len(empty) > PAGES_NAMED_MAX else ""
            self.left_out = (f"pages without text, which may be images: {named}{more}",)
        self.title = _title(reader)
        self._blocks(texts, _bookmarks(reader))

    def _page(self, reader: PdfReader, number: int) -> str:
        try:
            text = reader.pages[number - 1].extract_text()
            return tidy(_PRINTED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text))
        except Exception as error:
            raise _unreadable(f" on page {number}", error) from None

    def _blocks(self, texts: list[str], bookmarks: Bookmarks) -> None:
        for paragraph in paragraphs(list(_lines(texts, bookmarks))):
            if paragraph.level:
                self.outline.heading(paragraph.level, paragraph.text, paragraph.page)
            else:
                self.outline.block(BlockKind.TEXT, paragraph.text, paragraph.page)


def _lines(texts: list[str], bookmarks: Bookmarks) -> Iterator[Line]:
    """The lines of all pages. A bookmark stands where its title is a line of its page, else above it."""
    for page, text in enumerate(texts, 1):
        lines = [" ".join(line.split()) for line in text.strip().split("\n")]
        whole = set(lines)
        levels = {}
        for level, title in bookmarks.get(page, ()):
            if title in whole:
                levels[title] = level
            else:
                yield Line(title, page, level)
        for line in lines:
            yield Line(line, page, levels.pop(line, 0))


def _bookmarks(reader: PdfReader) -> Bookmarks:
    """A PDF's text is there without its bookmarks: bookmarks that cannot be read are none."""
    try:
        entries = reader.outline
        found: Bookmarks = defaultdict(list)
        stack: list[tuple[Any, int]] = [(entry, 1) for entry in reversed(entries)]
        while stack:
            entry, level = stack.pop()
            if isinstance(entry, list):
                stack += [(inner, level + 1) for inner in reversed(entry)]
                continue
            page = reader.get_destination_page_number(entry)
            title = " ".join(tidy(str(entry.title or "")).split())
            if page is not None and page >= 0 and title:
                found[page + 1].append((min(level, BOOKMARK_LEVELS), title))
    except Exception:
        return {}
    return found


def _title(reader: PdfReader) -> str:
    try:
        title = reader.metadata.title if reader.metadata is not None else None
    except Exception:
        return ""
    return " ".join(tidy(title).split()) if isinstance(title, str) else ""


def _unreadable(where: str, error: Exception) -> InvalidField:
    """Of a library's message nothing is shown: it may quote the document."""
    if isinstance(error, LimitReachedError | MemoryError):
        return InvalidField("document", f"is larger{where} than what a PDF may have once it is decompressed")
    return InvalidField("document", f"is a PDF that cannot be read{where} ({type(error).__name__})")
