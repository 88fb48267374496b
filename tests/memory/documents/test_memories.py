"""Passages as memories, and documents that come again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memserve.domain.memories import Link, LinkKind, Memory, MemoryKind, Place
from memserve.errors import InvalidField
from memserve.memory.documents.bounds import PassageSizes
from memserve.memory.documents.document import Block, BlockKind, Document
from memserve.memory.documents.memories import (
    PassageChanges,
    PassageFate,
    PassageOrigin,
    changed_passages,
    kept_passages,
    passages_to_new_memories,
)
from memserve.memory.documents.passages import DocumentPassage, passages_of
from memserve.memory.texts.rules import checked_new

ORIGIN = PassageOrigin("docs", "pump.md", ("pump",), {"lang": "en"})


def passages(texts: Sequence[str], page: int | None = None) -> tuple[DocumentPassage, ...]:
    """A passage for each text."""
    blocks = tuple(Block(BlockKind.TEXT, text, (str(n % 2),), page) for n, text in enumerate(texts))
    return passages_of(Document("", "text/plain", blocks), PassageSizes())


def same_heading(texts: Sequence[str]) -> tuple[DocumentPassage, ...]:
    return tuple(DocumentPassage(place, text, text, "", ()) for place, text in enumerate(texts))


def first_versions(
    document_id: str, of: Sequence[DocumentPassage], origin: PassageOrigin = ORIGIN
) -> list[Memory]:
    """As the store has them."""
    return [checked_new(new, "key", 5.0) for new in passages_to_new_memories(document_id, of, origin)]


def again(before: Sequence[str], after: Sequence[str], taken: Sequence[str] = ()) -> PassageChanges:
    old = kept_passages(first_versions("doc", same_heading(before)))
    return changed_passages("doc", old, same_heading(after), taken)


def test_a_passage_is_a_memory_in_its_place() -> None:
    first, second = first_versions("manual", passages(["Oil it.", "Two seals."], page=3))
    assert first.memory_id == "manual:0" and first.text == "0\n\nOil it."
    assert first.kind is MemoryKind.PASSAGE and first.place == Place("manual", 0, "", ("0",))
    assert first.links == (Link(LinkKind.NEXT, "manual:1"),) and second.links == ()
    assert dict(first.metadata) == {"lang": "en", "page": 3}
    assert (first.namespace, first.source, first.keywords) == ("docs", "pump.md", ("pump",))
    assert (first.author, first.created_s, first.updated_s) == ("key", 5.0, 5.0)


def test_a_memory_of_the_whole_document_has_its_passages_as_parts() -> None:
    origin = PassageOrigin("docs", "pump.md", document_memory_id="manual")
    first, second = first_versions("manual", passages(["a", "b"]), origin)
    assert first.links == (Link(LinkKind.NEXT, "manual:1"), Link(LinkKind.PART_OF, "manual"))
    assert second.links == (Link(LinkKind.PART_OF, "manual"),)


@pytest.mark.parametrize("document_id", ["", "-a", "a b", "a/b", "x" * 127, "é"])
def test_a_document_id_leaves_room_for_the_number(document_id: str) -> None:
    with pytest.raises(InvalidField, match="document_id"):
        passages_to_new_memories(document_id, passages(["a"]), ORIGIN)


def test_the_same_document_again_changes_nothing() -> None:
    changes = again("abc", "abc")
    assert set(changes.fates) == {PassageFate.UNCHANGED} and changes.gone == ()
    assert changes.memory_ids == ("doc:0", "doc:1", "doc:2")


def test_a_text_that_changes_in_its_place_is_updated() -> None:
    changes = again("abc", "aXc")
    assert changes.fates == (PassageFate.UNCHANGED, PassageFate.UPDATED, PassageFate.UNCHANGED)
    assert changes.memory_ids == ("doc:0", "doc:1", "doc:2") and changes.gone == ()


def test_what_is_put_in_front_moves_the_others_and_they_keep_their_memories() -> None:
    changes = again("abc", "Xabc")
    assert changes.memory_ids == ("doc:3", "doc:0", "doc:1", "doc:2")
    assert changes.fates == (PassageFate.NEW, *[PassageFate.MOVED] * 3)


def test_what_is_taken_out_is_gone_and_the_one_before_links_on() -> None:
    changes = again("abc", "ac")
    assert changes.gone == ("doc:1",) and changes.memory_ids == ("doc:0", "doc:2")
    assert changes.fates == (PassageFate.MOVED, PassageFate.MOVED)


def test_a_number_that_was_used_once_does_not_come_again() -> None:
    assert again("a", "ab", ["doc:7", "doc:x", "other:9"]).memory_ids == ("doc:0", "doc:8")


def test_another_page_or_another_heading_is_a_change() -> None:
    old = kept_passages(first_versions("doc", passages(["a"], page=1)))
    assert changed_passages("doc", old, passages(["a"], page=2)).fates == (PassageFate.MOVED,)
    renamed = (DocumentPassage(0, "0\n\na", "a", "", ("other",), 1),)
    assert changed_passages("doc", old, renamed).fates == (PassageFate.UPDATED,)


@settings(max_examples=100, deadline=None)
@given(
    before=st.lists(st.sampled_from("abcdef"), max_size=12),
    after=st.lists(st.sampled_from("abcdef"), max_size=12),
)
def test_what_is_written_by_the_changes_is_the_new_document(before: list[str], after: list[str]) -> None:
    """A store that applies the changes has the new document, and nothing changes the second time."""
    store = {memory.memory_id: memory for memory in first_versions("doc", same_heading(before))}
    changes = again(before, after)
    assert len(set(changes.memory_ids)) == len(after)
    wanted = passages_to_new_memories("doc", same_heading(after), ORIGIN, memory_ids=changes.memory_ids)
    for memory_id in changes.gone:
        del store[memory_id]
    for new, fate in zip(wanted, changes.fates, strict=True):
        stored = store.get(new.memory_id)
        assert (stored is not None) == (fate is not PassageFate.NEW)
        if stored is not None:
            same = (stored.text, stored.place, stored.links) == (new.text, new.place, new.links)
            assert same == (fate is PassageFate.UNCHANGED)
            assert (stored.text == new.text) == (fate is not PassageFate.UPDATED)
        memory = stored or Memory(new.memory_id, new.namespace, new.text, new.source, new.keywords, 6.0)
        store[new.memory_id] = replace(memory, text=new.text, place=new.place, links=new.links)
    assert sorted(store) == sorted(changes.memory_ids)
    second = changed_passages("doc", kept_passages(list(store.values())), same_heading(after))
    assert set(second.fates) <= {PassageFate.UNCHANGED} and second.gone == ()
    assert second.memory_ids == changes.memory_ids
    assert sum(fate is PassageFate.NEW for fate in changes.fates) - len(changes.gone) == len(after) - len(
        before
    )
