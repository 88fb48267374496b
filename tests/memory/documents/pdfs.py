"""PDFs, written by hand."""

from __future__ import annotations

import zlib
from collections.abc import Sequence


def pdf(
    pages: Sequence[Sequence[str]],
    *,
    title: str = "",
    bookmarks: Sequence[tuple[str, int]] = (),
    encrypted: bool = False,
) -> bytes:
    """A PDF with a line of text for each string of a page.

    bookmarks: a title and a page, from 0.
    """
    return _file([_stream(_drawn(lines)) for lines in pages], title, bookmarks, encrypted)


def bomb(megabytes: int, times: int = 1) -> bytes:
    """A PDF whose only page is a stream of spaces, compressed `times` times."""
    content = b"BT /F1 12 Tf (text) Tj ET " + b" " * (megabytes << 20)
    for _ in range(times):
        content = zlib.compress(content, 9)
    filters = b" ".join([b"/FlateDecode"] * times)
    stream = b"<< /Length %d /Filter [%s] >>\nstream\n%s\nendstream" % (len(content), filters, content)
    return _file([stream], "", (), False)


def _drawn(lines: Sequence[str]) -> bytes:
    spelt = [line.encode("latin-1").replace(b"(", b"\\(").replace(b")", b"\\)") for line in lines]
    shown = [b"(%s) Tj T*" % line for line in spelt]
    return b"\n".join([b"BT /F1 12 Tf 14 TL 72 720 Td", *shown, b"ET"])


def _stream(content: bytes) -> bytes:
    packed = zlib.compress(content)
    return b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed)


def _file(
    streams: Sequence[bytes], title: str, bookmarks: Sequence[tuple[str, int]], encrypted: bool
) -> bytes:
    first_page, marks = 6, 6 + 2 * len(streams)
    kids = b" ".join(b"%d 0 R" % (first_page + 2 * place) for place in range(len(streams)))
    outlines = b" /Outlines 5 0 R" if bookmarks else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R%s >>" % outlines,
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(streams)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Title (%s) >>" % title.encode(),
        b"<< /Type /Outlines /First %d 0 R /Last %d 0 R >>" % (marks, marks + len(bookmarks) - 1),
    ]
    for place, stream in enumerate(streams):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>" % (first_page + 2 * place + 1)
        )
        objects.append(stream)
    for place, (name, page) in enumerate(bookmarks):
        following = b" /Next %d 0 R" % (marks + place + 1) if place + 1 < len(bookmarks) else b""
        objects.append(
            b"<< /Title (%s) /Parent 5 0 R /Dest [%d 0 R /Fit]%s >>"
            % (name.encode(), first_page + 2 * page, following)
        )
    written, offsets = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(written))
        written += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    encryption = (
        b" /Encrypt << /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >> /ID [<00> <00>]"
        % (b"00" * 32, b"00" * 32)
        if encrypted
        else b""
    )
    return written + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R /Info 4 0 R%s >>\n"
        b"startxref\n%d\n%%%%EOF\n"
    ) % (len(objects) + 1, table, len(objects) + 1, encryption, len(written))
