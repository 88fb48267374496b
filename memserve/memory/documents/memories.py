"""Passages as memories, and what changed when a document comes again. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from memserve.domain.memories import Link, LinkKind, Memory, MemoryKind, MetadataValue, NewMemory, Place
from memserve.domain.names import is_memory_id
from memserve.errors import InvalidField
from memserve.memory.documents.passages import DocumentPassage, passage_digest

PAGE = "page"
"""The metadata with a passage's page, from 1. Passages of documents without pages do not have it."""


@dataclass(frozen=True, slots=True)
class PassageOrigin:
    """What all memories of a document have in common."""

    namespace: str
    source: str
    keywords: tuple[str, ...] = ()
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    document_memory_id: str = ""
    """A memory that stands for the whole document: each passage is then linked to it as PART_OF. "": there is
    none, and `Place.within` alone says to which document a passage belongs.
    """


def passages_to_new_memories(
    document_id: str,
    passages: Sequence[DocumentPassage],
    origin: PassageOrigin,
    *,
    memory_ids: Sequence[str] | None = None,
) -> list[NewMemory]:
    """What is to be remembered: a memory for each passage, linked NEXT to the one behind it.

    memory_ids: as `changed_passages` gives them for a document that was there before. None: each is the
    document's id, a colon and the passage's position.
    Raises InvalidField for an id that is no memory's id with the number behind it.
    """
    ids = memory_ids if memory_ids is not None else first_ids(document_id, len(passages))
    return [
        NewMemory(
            namespace=origin.namespace,
            text=passage.text,
            source=origin.source,
            keywords=origin.keywords,
            memory_id=memory_id,
            kind=MemoryKind.PASSAGE,
            metadata={**origin.metadata, **({} if passage.page is None else {PAGE: passage.page})},
            links=tuple(_links(next_id, origin)),
            place=Place(document_id, passage.position, passage.title, passage.headings),
        )
        for passage, memory_id, next_id in zip(passages, ids, _following(ids), strict=True)
    ]


def first_ids(document_id: str, passages: int) -> tuple[str, ...]:
    """The ids of a document that comes for the first time. Raises InvalidField."""
    if not is_memory_id(f"{document_id}:{max(0, passages - 1)}"):
        raise InvalidField(
            "document_id",
            "must be A-Z, a-z, 0-9, '.', '_', ':' and '-', begin with a letter or a digit, and have at most"
            " 128 characters together with ':' and the position of a passage",
        )
    return tuple(f"{document_id}:{position}" for position in range(passages))


class PassageFate(StrEnum):
    """What becomes of a passage's memory when its document comes again."""

    NEW = "new"
    UPDATED = "updated"
    """The memory gets another text: a new version."""
    MOVED = "moved"
    """The same text at another position, on another page or in front of another memory."""
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class KeptPassage:
    """What is stored of a passage, as far as it is compared."""

    memory_id: str
    position: int
    digest: str
    page: int | None
    next_id: str
    """Of the memory that it links to as NEXT. "": none."""


@dataclass(frozen=True, slots=True)
class PassageChanges:
    """What a document's new passages mean for its memories."""

    memory_ids: tuple[str, ...]
    """For each new passage its memory's id, in the order of the passages."""
    fates: tuple[PassageFate, ...]
    """For each new passage."""
    gone: tuple[str, ...]
    """Memories whose passages are not there any more, in their old order."""

    def ids(self, fate: PassageFate) -> tuple[str, ...]:
        return tuple(id for id, its in zip(self.memory_ids, self.fates, strict=True) if its is fate)


def kept_passages(memories: Sequence[Memory]) -> list[KeptPassage]:
    """What `changed_passages` compares, of one document's memories."""
    return [
        KeptPassage(
            memory.memory_id,
            memory.place.position,
            passage_digest(memory.text, memory.place.title, memory.place.headings),
            page if isinstance(page := memory.metadata.get(PAGE), int) else None,
            next((link.memory_id for link in memory.links if link.kind is LinkKind.NEXT), ""),
        )
        for memory in memories
    ]


def changed_passages(
    document_id: str,
    old: Sequence[KeptPassage],
    new: Sequence[DocumentPassage],
    taken: Collection[str] = (),
) -> PassageChanges:
    """Which memory each passage of the new document is, and what has to be written.

    1. A passage whose text is there already keeps its memory, wherever it moves. Of equal texts the first
       stays the first.
    2. What is left between two such passages is paired in order: those memories are updated.
    3. What is left then is new, with a number that no memory of the document has had, or gone.

    taken: ids of the document that must not come again, such as those of forgotten passages.
    Raises InvalidField.
    """
    old = sorted(old, key=lambda passage: passage.position)
    same = _same_text(old, new)
    paired = {**same, **_paired_between(old, new, same)}
    free = _free_ids(document_id, {*taken, *(passage.memory_id for passage in old)})
    ids = [old[paired[place]].memory_id if place in paired else next(free) for place in range(len(new))]
    first_ids(document_id, 0)
    for memory_id in ids:
        if not is_memory_id(memory_id):
            first_ids(document_id, len(old) + len(new) + len(taken))
    fates = [
        _fate(old[paired[place]] if place in paired else None, passage, next_id)
        for place, (passage, next_id) in enumerate(zip(new, _following(ids), strict=True))
    ]
    used = set(paired.values())
    gone = tuple(passage.memory_id for place, passage in enumerate(old) if place not in used)
    return PassageChanges(tuple(ids), tuple(fates), gone)


def _same_text(old: Sequence[KeptPassage], new: Sequence[DocumentPassage]) -> dict[int, int]:
    """Places in `new` to places in `old` with the same content."""
    places: dict[str, deque[int]] = defaultdict(deque)
    for place, kept in enumerate(old):
        places[kept.digest].append(place)
    return {
        place: places[passage.digest].popleft()
        for place, passage in enumerate(new)
        if places.get(passage.digest)
    }


def _paired_between(
    old: Sequence[KeptPassage], new: Sequence[DocumentPassage], same: Mapping[int, int]
) -> dict[int, int]:
    """Pairs what is left behind the same passage, or at the begin."""
    used = set(same.values())
    left: dict[int, deque[int]] = defaultdict(deque)
    behind = -1
    for place in range(len(old)):
        if place in used:
            behind = place
        else:
            left[behind].append(place)
    pairs, behind = {}, -1
    for place in range(len(new)):
        if place in same:
            behind = same[place]
        elif left.get(behind):
            pairs[place] = left[behind].popleft()
    return pairs


def _free_ids(document_id: str, taken: Collection[str]) -> Iterator[str]:
    prefix = f"{document_id}:"
    numbers = [id[len(prefix) :] for id in taken if id.startswith(prefix)]
    number = max((int(text) for text in numbers if text.isascii() and text.isdigit()), default=-1)
    while True:
        number += 1
        yield f"{prefix}{number}"


def _fate(kept: KeptPassage | None, passage: DocumentPassage, next_id: str) -> PassageFate:
    if kept is None:
        return PassageFate.NEW
    if kept.digest != passage.digest:
        return PassageFate.UPDATED
    if (kept.position, kept.page, kept.next_id) != (passage.position, passage.page, next_id):
        return PassageFate.MOVED
    return PassageFate.UNCHANGED


def _following(memory_ids: Sequence[str]) -> Sequence[str]:
    """For each memory the one behind it, "" for the last one."""
    return (*memory_ids[1:], "") if memory_ids else ()


def _links(next_id: str, origin: PassageOrigin) -> Iterator[Link]:
    if next_id:
        yield Link(LinkKind.NEXT, next_id)
    if origin.document_memory_id:
        yield Link(LinkKind.PART_OF, origin.document_memory_id)
