"""A document's blocks become passages that can be read alone. Pure, in time in proportion to the text.

1. Each passage begins with one line that says where it is from: the title and the headings above it.
2. Blocks below the same headings fill passages up to a target. Headings begin a new passage.
3. A block that is too long is cut where its kind allows. A table's header row and a fence of code are
   repeated.
4. What is checked is what is kept: bytes, tokens and control tokens count with the first line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from memserve.errors import InvalidField
from memserve.memory.documents.bounds import PassageSizes
from memserve.memory.documents.document import Block, BlockKind, Document, shortened
from memserve.memory.documents.sentences import pieces_of, sentences
from memserve.plain import plain

LEAD_MAX_CHARACTERS = 300
LEAD_PART_MAX_CHARACTERS = 120
# A fifth of the target is short.
SHORT_SHARE = 5
LEAD_SEPARATOR = " › "

CountTokens = Callable[[str], int]
ControlToken = Callable[[str], str | None]
"""The control token of the served model that a text has, as a name for a person. None: it has none."""


@dataclass(frozen=True, slots=True)
class DocumentPassage:
    """A part of a document that can be read alone."""

    position: int
    """From 0, without gaps."""
    text: str
    """The line with title and headings, an empty line, and `body`."""
    body: str
    """The document's own text."""
    title: str
    headings: tuple[str, ...]
    """From the outermost to the innermost."""
    page: int | None = None
    """Of a PDF, from 1: where the passage begins."""

    @property
    def digest(self) -> str:
        return passage_digest(self.text, self.title, self.headings)


def passage_digest(text: str, title: str, headings: tuple[str, ...]) -> str:
    """The same for a passage and for the memory that was made of it."""
    return hashlib.sha256(json.dumps([text, title, list(headings)]).encode()).hexdigest()


def passages_of(
    document: Document,
    sizes: PassageSizes,
    *,
    count_tokens: CountTokens | None = None,
    control_token: ControlToken | None = None,
) -> tuple[DocumentPassage, ...]:
    """The passages in reading order.

    count_tokens: is needed where `sizes` has `max_tokens`.
    control_token: a document with a control token is refused whole, because its sender can mend it. Half a
    document would be a loss that nobody sees.
    Raises InvalidField.
    """
    passages: list[DocumentPassage] = []
    for headings, blocks in groupby(document.blocks, key=lambda block: block.headings):
        room = _Room(sizes, document.title, headings, count_tokens)
        for body, page in _filled(blocks, room):
            text = room.text(body)
            if control_token is not None and (token := control_token(text)) is not None:
                raise InvalidField("document", _token_rule(token, len(passages), room.lead, page))
            if len(passages) == sizes.max_passages:
                raise InvalidField(
                    "document", f"must have at most {sizes.max_passages} passages; send it in parts"
                )
            passages.append(DocumentPassage(len(passages), text, body, document.title, headings, page))
    return tuple(passages)


def lead_of(title: str, headings: tuple[str, ...]) -> str:
    """Title and headings on one line. The innermost headings are kept when there is no room for all."""
    parts = [shortened(part, LEAD_PART_MAX_CHARACTERS) for part in (title, *headings) if part]
    parts = [part for place, part in enumerate(parts) if place == 0 or part != parts[place - 1]]
    while len(parts) > 2 and len(LEAD_SEPARATOR.join(parts)) > LEAD_MAX_CHARACTERS:
        del parts[1]
    return LEAD_SEPARATOR.join(parts)


class _Room:
    """What has room in a passage below given headings."""

    def __init__(
        self, sizes: PassageSizes, title: str, headings: tuple[str, ...], count_tokens: CountTokens | None
    ) -> None:
        if sizes.max_tokens is not None and count_tokens is None:
            raise InvalidField("max_tokens", "needs a tokenizer")
        self.target = sizes.target_characters
        self.longest = 2 * sizes.target_characters
        self._sizes = sizes
        self._count_tokens = count_tokens
        self.lead = ""
        # Most of the room is the text's own.
        for lead in (lead_of(title, headings), lead_of("", headings[-1:])):
            if self._within(lead, 4):
                self.lead = lead
                break

    def text(self, body: str) -> str:
        return f"{self.lead}\n\n{body}" if self.lead else body

    def fits(self, body: str) -> bool:
        return self._within(self.text(body), 1)

    def fits_twice(self, opening: str) -> bool:
        """Whether an opening leaves as much room as it takes. One that does not is not repeated."""
        return self._within(self.text(opening), 2) if opening else True

    def _within(self, text: str, share: int) -> bool:
        size_bytes, max_tokens = len(text.encode()), self._sizes.max_tokens
        if share * size_bytes > self._sizes.max_bytes:
            return False
        # A token has at least one byte: a short text need not be counted.
        if max_tokens is None or share * size_bytes <= max_tokens or self._count_tokens is None:
            return True
        return share * self._count_tokens(text) <= max_tokens


def _filled(blocks: Iterator[Block], room: _Room) -> Iterator[tuple[str, int | None]]:
    """Bodies with the page on which each begins: blocks are put together up to the target."""
    body, page, before = "", None, BlockKind.TEXT
    for block in blocks:
        for piece in _pieces(block, room):
            both_items = block.kind is before is BlockKind.ITEM
            joined = f"{body}\n{piece}" if both_items else f"{body}\n\n{piece}"
            if body and (len(joined) > _most(body, piece, room) or not room.fits(joined)):
                yield body, page
                body = ""
            body, page = (joined, page) if body else (piece, block.page)
            before = block.kind
    if body:
        yield body, page


def _most(body: str, piece: str, room: _Room) -> int:
    """How many characters the two may have together. What is short is not left alone: neither the line that
    introduces a table, nor what is left of a paragraph.
    """
    short = room.target // SHORT_SHARE
    if len(body) < short:
        return room.longest
    return room.target + short if len(piece) < short else room.target


def _pieces(block: Block, room: _Room) -> Iterator[str]:
    """The block, in as many pieces as it needs."""
    if not room.fits_twice(block.opening):
        block = replace(block, opening="", text=_framed(replace(block, closing=""), block.text))
    whole = _framed(block, block.text)
    limit = room.target if block.kind is BlockKind.TEXT else room.longest
    # Code loses most when it is cut.
    if (block.kind is BlockKind.CODE or len(whole) <= limit) and room.fits(whole):
        yield whole
    else:
        yield from _packed(block, _atoms(block, room), room)


def _packed(block: Block, atoms: Iterator[str], room: _Room) -> Iterator[str]:
    """Atoms are put together up to the target. Each fits."""
    kept = ""
    for atom in atoms:
        joined = kept + atom
        full = len(joined.rstrip()) > room.target or not room.fits(_framed(block, _trimmed(block, joined)))
        if kept and full:
            if trimmed := _trimmed(block, kept):
                yield _framed(block, trimmed)
            kept = atom
        else:
            kept = joined
    if trimmed := _trimmed(block, kept):
        yield _framed(block, trimmed)


def _atoms(block: Block, room: _Room) -> Iterator[str]:
    """Parts that are cut only where they do not fit alone. Put together they are the block's text."""
    if block.kind is BlockKind.TEXT:
        parts, longest = sentences(block.text), room.longest
    else:
        parts, longest = iter(block.text.splitlines(keepends=True)), room._sizes.max_bytes

    def fits(part: str) -> bool:
        return room.fits(_framed(block, part))

    for part in parts:
        if len(part) <= longest and fits(part):
            yield part
        elif block.kind is BlockKind.ITEM:
            for sentence in sentences(part):
                yield from pieces_of(sentence, fits, room.longest)
        else:
            yield from pieces_of(part, fits, room.target if block.kind is BlockKind.TEXT else longest)


def _framed(block: Block, text: str) -> str:
    return "\n".join(part for part in (block.opening, text, block.closing) if part)


def _trimmed(block: Block, text: str) -> str:
    """Code keeps its indentation."""
    return text.strip("\n") if block.kind is BlockKind.CODE else text.strip()


def _token_rule(token: str, position: int, lead: str, page: int | None) -> str:
    where = f" on page {page}" if page is not None else ""
    below = f" ({plain(lead)})" if lead else ""
    return f"has the control token {plain(token)} in passage {position}{where}{below}"
