"""How much a document may ask of this machine, and how large its passages are."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.errors import InvalidField

MIB = 1 << 20
PASSAGE_MAX_BYTES = 8192
TARGET_LEAST = 100
MAX_BYTES_LEAST = 1024
MAX_TOKENS_LEAST = 32


@dataclass(frozen=True, slots=True)
class DocumentBounds:
    """What reading one document may take. More is refused."""

    bytes: int = 16 * MIB
    """Of the document as it comes."""
    text_bytes: int = 32 * MIB
    """Of its text in UTF-8."""
    blocks: int = 200_000
    """Paragraphs, list items, tables and blocks of code."""
    pages: int = 2_000
    """Of a PDF."""
    depth: int = 100
    """Elements inside elements of HTML, lists and quotations inside each other of Markdown."""
    stream_bytes: int = 32 * MIB
    """Of one stream of a PDF once it is decompressed, and of all streams of one page."""
    cpu_s: int = 30
    """Processor time of the process that reads."""
    wall_s: float = 60.0
    memory_bytes: int = 1024 * MIB
    """Address space of the process that reads."""


@dataclass(frozen=True, slots=True)
class PassageSizes:
    """How large passages are. Raises InvalidField."""

    target_characters: int = 1_000
    """A passage is filled up to this. One sentence may be twice as long, and one row or one block of code as
    long as `max_bytes` allows.
    """
    max_bytes: int = PASSAGE_MAX_BYTES
    """Of UTF-8, with title and headings."""
    max_tokens: int | None = None
    """With title and headings, as the function that is passed counts. None: they are not counted."""
    max_passages: int = 10_000

    def __post_init__(self) -> None:
        if self.target_characters < TARGET_LEAST:
            raise InvalidField("target_characters", f"must be at least {TARGET_LEAST}")
        if not MAX_BYTES_LEAST <= self.max_bytes <= PASSAGE_MAX_BYTES:
            raise InvalidField("max_bytes", f"must be {MAX_BYTES_LEAST} to {PASSAGE_MAX_BYTES}")
        if self.max_tokens is not None and self.max_tokens < MAX_TOKENS_LEAST:
            raise InvalidField("max_tokens", f"must be at least {MAX_TOKENS_LEAST}")
        if self.max_passages < 1:
            raise InvalidField("max_passages", "must be at least 1")
