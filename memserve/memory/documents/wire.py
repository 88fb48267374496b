"""Between the gateway and the process that reads a document: JSON, one value a line.

Of a long document, one JSON text would keep the gateway's other threads waiting while it is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from memserve.errors import InvalidField
from memserve.memory.documents.bounds import DocumentBounds
from memserve.memory.documents.document import Block, BlockKind, Document

log = logging.getLogger("memserve.memory.documents")


@dataclass(frozen=True, slots=True)
class Upload:
    """A document as it comes."""

    content: bytes
    media_type: str = ""
    """As in HTTP. "": the bytes and the name say it."""
    file_name: str = ""
    title: str = ""
    """"": the document's own, or the name of its file."""


def question(upload: Upload, bounds: DocumentBounds) -> bytes:
    """The upload: a line of JSON, and the document's bytes behind it."""
    about = {
        "media_type": upload.media_type,
        "file_name": upload.file_name,
        "title": upload.title,
        "bounds": asdict(bounds),
    }
    return json.dumps(about).encode() + b"\n" + upload.content


def asked(line: bytes, content: bytes) -> tuple[Upload, DocumentBounds]:
    """The two parts of `question`."""
    about = json.loads(line)
    upload = Upload(content, about["media_type"], about["file_name"], about["title"])
    return upload, DocumentBounds(**about["bounds"])


def answer(document: Document) -> Iterator[bytes]:
    """The document's lines. The last one is empty JSON: an answer that was cut off is seen."""
    about = {"title": document.title, "media_type": document.media_type, "left_out": document.left_out}
    yield _line(about)
    before: tuple[str, ...] = ()
    for block in document.blocks:
        same = block.headings == before
        before = block.headings
        # None: the same headings as above.
        headings = None if same else block.headings
        yield _line([block.kind, block.text, headings, block.page, block.opening, block.closing])
    yield _line({})


def refusal(field: str, rule: str) -> bytes:
    return _line({"field": field, "rule": rule})


def failure(what: str) -> bytes:
    """The reader itself is wrong. what: an exception's name and place."""
    return _line({"failure": what})


def document_from(lines: Iterable[bytes]) -> Document | None:
    """None: the answer is not complete. Raises InvalidField for a document that was refused."""
    read = iter(lines)
    about: dict[str, Any] = json.loads(next(read, b"{}"))
    if "rule" in about:
        raise InvalidField(about["field"], about["rule"])
    if "failure" in about:
        log.error("a document could not be read: %s", about["failure"])
        raise InvalidField("document", "cannot be read; the gateway's log says why")
    blocks: list[Block] = []
    headings: tuple[str, ...] = ()
    for line in read:
        values = json.loads(line)
        if not values:
            return Document(about["title"], about["media_type"], tuple(blocks), tuple(about["left_out"]))
        kind, text, its_headings, page, opening, closing = values
        headings = headings if its_headings is None else tuple(its_headings)
        blocks.append(Block(BlockKind(kind), text, headings, page, opening, closing))
    return None


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
