"""A document as its blocks of text, in reading order, each with the headings above it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from memserve.errors import InvalidField
from memserve.memory.documents.bounds import DocumentBounds

HEADING_MAX_CHARACTERS = 200
TITLE_MAX_CHARACTERS = 200


class BlockKind(StrEnum):
    """What a block is, which decides where it may be cut."""

    TEXT = "text"
    """A paragraph. Cut between sentences."""
    ITEM = "item"
    """An item of a list with the lists inside it. Cut between lines, then between sentences."""
    CODE = "code"
    """Cut between lines."""
    TABLE = "table"
    """A row is a line. Cut between rows."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a document that stays together where it fits."""

    kind: BlockKind
    text: str
    headings: tuple[str, ...] = ()
    """From the outermost to the innermost, each at most 200 characters."""
    page: int | None = None
    """Of a PDF, from 1: where the block begins."""
    opening: str = ""
    """The line above the text, repeated in each piece: a table's header row, a fence of code."""
    closing: str = ""
    """The line below the text, repeated in each piece."""


@dataclass(frozen=True, slots=True)
class Document:
    """What was read from a document's bytes."""

    title: str
    media_type: str
    blocks: tuple[Block, ...]
    left_out: tuple[str, ...] = ()
    """What was seen and is in no block, one line each for a person."""


class Outline:
    """Blocks under their headings, collected from the top of a document to its end."""

    def __init__(self, bounds: DocumentBounds) -> None:
        self._bounds = bounds
        self._blocks: list[Block] = []
        self._text_bytes = 0
        # Levels grow strictly. Below the last heading there is no block yet while it is `_bare`.
        self._path: list[tuple[int, str]] = []
        self._headings: tuple[str, ...] = ()
        self._bare = False
        self.first_level: list[str] = []
        """The headings of level 1, at most two."""

    def heading(self, level: int, text: str, page: int | None = None) -> None:
        """level: from 1. A heading without any text below it becomes a block itself: nothing is lost."""
        text = " ".join(text.split())
        if not text:
            return
        if level == 1 and len(self.first_level) < 2:
            self.first_level.append(text)
        if self._bare and self._path[-1][0] >= level:
            self._keep_bare_heading(page)
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        self._path.append((level, shortened(text, HEADING_MAX_CHARACTERS)))
        self._headings = tuple(heading for _, heading in self._path)
        self._bare = True
        if len(text) > HEADING_MAX_CHARACTERS:
            self.block(BlockKind.TEXT, text, page)

    def block(
        self, kind: BlockKind, text: str, page: int | None = None, *, opening: str = "", closing: str = ""
    ) -> None:
        """A blank text is no block. Raises InvalidField when there is too much text."""
        text = text.strip("\n") if kind is BlockKind.CODE else text.strip()
        if not text.strip():
            return
        self._append(Block(kind, text, self._headings, page, opening, closing))
        self._bare = False

    def blocks(self) -> tuple[Block, ...]:
        """All of them. The document ends here."""
        if self._bare:
            self._keep_bare_heading(None)
        return tuple(self._blocks)

    def _keep_bare_heading(self, page: int | None) -> None:
        above = tuple(heading for _, heading in self._path[:-1])
        self._append(Block(BlockKind.TEXT, self._path[-1][1], above, page))
        self._bare = False

    def _append(self, block: Block) -> None:
        self._text_bytes += len(block.text.encode()) + len(block.opening.encode())
        if self._text_bytes > self._bounds.text_bytes:
            raise InvalidField("document", f"must have at most {self._bounds.text_bytes} bytes of text")
        if len(self._blocks) == self._bounds.blocks:
            raise InvalidField(
                "document", f"must have at most {self._bounds.blocks} paragraphs, items and tables"
            )
        self._blocks.append(block)


def shortened(text: str, max_characters: int) -> str:
    """The text, cut behind a word where there is one, with an ellipsis for what is left out."""
    if len(text) <= max_characters:
        return text
    kept = text[: max_characters - 1]
    space = kept.rfind(" ")
    return (kept[:space] if space > max_characters // 2 else kept).rstrip() + "…"
