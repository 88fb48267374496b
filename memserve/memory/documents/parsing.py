"""A document's bytes become a `Document`, in this process. Bytes from elsewhere go to `DocumentReader`."""

from __future__ import annotations

from collections.abc import Iterator

from memserve.errors import InvalidField
from memserve.memory.documents import media_types
from memserve.memory.documents.bounds import DocumentBounds
from memserve.memory.documents.document import (
    TITLE_MAX_CHARACTERS,
    Block,
    BlockKind,
    Document,
    Outline,
    shortened,
)
from memserve.memory.documents.encodings import decoded, tidy
from memserve.memory.documents.html_text import HtmlText
from memserve.memory.documents.markdown_text import markdown_text
from memserve.memory.documents.pdf_text import PdfText

FRONT_MATTER = "the front matter of the Markdown"


def parse_document(
    content: bytes,
    media_type: str = "",
    bounds: DocumentBounds | None = None,
    *,
    file_name: str = "",
    title: str = "",
) -> Document:
    """Read a document. Neither time nor memory are bounded here: `DocumentReader` bounds them.

    media_type: "" takes what the bytes and the file's name say.
    title: "" takes the document's own title, its only heading of the first level, or its file's name.
    Raises InvalidField.
    """
    bounds = bounds or DocumentBounds()
    if not content:
        raise InvalidField("document", "must not be empty")
    if len(content) > bounds.bytes:
        raise InvalidField("document", f"must be at most {bounds.bytes} bytes, is {len(content)}")
    format = media_types.format_of(content, media_type, file_name)
    own_title, blocks, left_out = _read(content, format, bounds)
    if not blocks:
        raise InvalidField("document", "has no text")
    best = next(
        (name for name in (tidy(title), own_title, tidy(media_types.title_from(file_name))) if name), ""
    )
    best = shortened(" ".join(best.split()), TITLE_MAX_CHARACTERS)
    return Document(best, format.media_type, blocks, left_out)


def _read(
    content: bytes, format: media_types.Format, bounds: DocumentBounds
) -> tuple[str, tuple[Block, ...], tuple[str, ...]]:
    """Its own title, its blocks, and what is left out."""
    if format.media_type == media_types.PDF:
        pdf = PdfText(content, bounds)
        return pdf.title, pdf.outline.blocks(), pdf.left_out
    text = decoded(content, format.charset, html=format.media_type == media_types.HTML)
    if format.media_type == media_types.HTML:
        html = HtmlText(text, bounds)
        return html.title or _only_heading(html.outline), html.outline.blocks(), ()
    if format.media_type == media_types.MARKDOWN:
        html, title, front_matter = markdown_text(text, bounds)
        left_out = (FRONT_MATTER,) if front_matter else ()
        return title or html.title or _only_heading(html.outline), html.outline.blocks(), left_out
    outline = Outline(bounds)
    for paragraph in _paragraphs(text):
        outline.block(BlockKind.TEXT, paragraph)
    return "", outline.blocks(), ()


def _only_heading(outline: Outline) -> str:
    return outline.first_level[0] if len(outline.first_level) == 1 else ""


def _paragraphs(text: str) -> Iterator[str]:
    """Of a plain text: what stands between empty lines, with its own line ends."""
    lines: list[str] = []
    for line in text.split("\n"):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)
